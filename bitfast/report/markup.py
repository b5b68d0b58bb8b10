"""HTML and SVG elements as strings that escape what is put into them, so that no name can become markup."""

import unicodedata
from html import escape

VOID = {"meta", "link", "img", "br", "line", "rect", "circle", "path", "polyline", "polygon"}


class Markup(str):
    """Text that is markup already and is not escaped again."""


def element(name, /, *content, **attributes):
    """<name attribute="value">content</name>; contents that are no Markup are escaped, None and "" attributes left out.

    Underscores in attribute names become hyphens, one at the end is dropped: class_, aria_label.
    """
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    given = "".join(f' {key}="{escape(clean(value))}"' for key, value in named.items() if value not in (None, ""))
    if name in VOID:
        return Markup(f"<{name}{given}>" if name in ("meta", "link", "img", "br") else f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(content)}</{name}>")


def join(parts):
    """The parts one after another, escaped where they are no Markup; None is nothing."""
    texts = (part if isinstance(part, Markup) else escape(clean(part)) for part in parts if part is not None)
    return Markup("".join(texts))


def name_of(text):
    """A class or file name, which may be written in any direction, as an island in the text around it."""
    return element("bdi", text)


def table(header, rows, *, caption, class_=None, numbers=()):
    """A table in a box of its own that scrolls where it is too wide; `numbers` are the columns set to the right.

    A cell that is a td or th element already is taken as it is.
    """

    def row(tag, cells, **attributes):
        return element(
            "tr",
            *(
                cell
                if isinstance(cell, Markup) and cell.startswith(("<td", "<th"))
                else element(tag, cell, class_="number" if i in numbers else None, **attributes)
                for i, cell in enumerate(cells)
            ),
        )

    head, body = element("thead", row("th", header, scope="col")), element("tbody", *(row("td", r) for r in rows))
    inside = element("table", element("caption", caption), head, body, class_=class_)
    return element("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def clean(text):
    """Text that HTML can hold: control characters and bytes that are no UTF-8 become U+FFFD."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c
        for c in str(text)
    )

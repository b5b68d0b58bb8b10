"""What every opener of data returns: images and the names of their labels, before classes are numbered."""

from dataclasses import dataclass, field

from bitfast.data.source import Source

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Fields:
    """How the data names its parts; None: found by the usual names.

    image      the column, feature or key that holds the image
    label      the one that holds the label
    separator  splits the text of a label into several labels: multi-label
    root       the folder that paths in a table are relative to; None: the table's own
    empty      class folders without images are left out, otherwise they are an error
    """

    image: str | None = None
    label: str | None = None
    separator: str | None = None
    root: str | None = None
    empty: bool = False

    @classmethod
    def of(cls, config):
        """The Fields in a config that has config.DataFields."""
        names = config.image_field, config.label_field, config.label_separator, config.image_root
        return cls(*names, config.allow_empty)


@dataclass(eq=False)
class Listing:
    """Images and, for each, the name of its label; a tuple of names where the labels are multi-label.

    where    what messages call it
    classes  multi-label only: names that count as classes even if no image has them
    """

    images: Source
    names: list
    where: str
    classes: tuple[str, ...] = ()

    @property
    def multilabel(self):
        return bool(self.classes) or any(isinstance(name, tuple) for name in self.names)

    def separated(self, separator):
        """The listing with every label text split at the separator; empty pieces and surrounding spaces dropped."""
        names = [_pieces(name, separator) if isinstance(name, str) else name for name in self.names]
        return Listing(self.images, names, self.where, self.classes)

    def label_tuples(self):
        """The names, as tuples also where an image has a single name."""
        return [(name,) if isinstance(name, str) else name for name in self.names]


def _pieces(text, separator):
    return tuple(piece.strip() for piece in text.split(separator) if piece.strip())


@dataclass(eq=False)
class Parts:
    """The listings in one DATA.

    val      its own validation part, if there is one
    settled  the data says of each image which part it is in: nothing is drawn
    note     what a person should know about how it was read
    ignored  files that were left out: suffix -> count
    """

    train: Listing
    val: Listing | None = None
    settled: bool = False
    note: str = ""
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def labelled(self):
        """What to evaluate on: the validation part, or everything."""
        return self.val or self.train

"""report.html: one file without scripts and without a single request, which a browser shows anywhere."""

import base64
import io
import os
from importlib.resources import files

from ..calibration import BINS
from . import charts
from .markup import Markup, element, name_of, table
from .record import wilson
from .tables import MATRIX_CLASSES

MATRIX_SHOWN, CLASSES_SHOWN, PAIRS_SHOWN = 50, 100, 15
WAIT_NOTED = 0.1
# Whatever is in the page, a browser loads nothing from elsewhere and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mAP": "mean average precision",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "ece": "calibration error",
    "loss": "loss",
}
PERCENT = ("top1", "top5", "balanced_accuracy", "mAP", "ece")
NOTES = {
    "top5": "label among the five likeliest",
    "balanced_accuracy": "mean over the classes",
    "mAP": "mean over the classes",
    "macro_f1": "mean over the classes",
    "micro_f1": "all labels together",
    "ece": f"expected, {BINS} ranges",
    "loss": "cross-entropy, nats",
}


def page(record):
    """The whole document as text."""
    title = f"{record.config.model} on {data_name(record)}"
    sections = [section for section in _sections(record) if section]
    links = [element("a", name, href=f"#{_anchor(name)}") for name, _ in sections]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(files("bitfast").joinpath("assets/report.css").read_text(encoding="utf-8"))),
    )
    top = element(
        "header",
        element("p", "bitfast run report", class_="eyebrow"),
        element("h1", record.config.model, " on ", name_of(data_name(record))),
        element("p", *verdict(record), class_="lead"),
        _tiles(record),
        element("nav", *links, aria_label="Sections"),
    )
    body = [element("section", element("h2", name), *parts, id=_anchor(name)) for name, parts in sections]
    main = element("main", top, *body)
    return "<!DOCTYPE html>\n" + element("html", head, "\n", element("body", main), lang="en") + "\n"


def data_name(record):
    """The last part of DATA's path, or what a run on Python objects is called."""
    return os.path.basename(str(record.config.data or "").rstrip("/")) or "images"


def verdict(record):
    """The run in one sentence, as parts."""
    metrics = record.metrics
    if not record.finished:
        yield f"Not finished: {record.steps_done:,} of {record.plan.get('steps', 0):,} steps are done. "
    if metrics is None:
        yield "No validation split, so no accuracy." if record.finished else "Nothing is evaluated yet."
        return
    n = metrics["images"]
    if record.multilabel:
        yield f"Mean average precision {metrics['mAP']:.1%} on {n:,} validation images with any number of labels each."
        return
    low, high = wilson(metrics["top1"], n)
    yield f"{round(metrics['top1'] * n):,} of {n:,} validation images are named right: {metrics['top1']:.1%}"
    yield f", with a 95% interval from {low:.1%} to {high:.1%}."


def _tiles(record):
    metrics = record.metrics or {}
    cards = []
    for name, title in METRICS.items():
        if name not in metrics:
            continue
        value = f"{metrics[name]:.1%}" if name in PERCENT else f"{metrics[name]:.3f}"
        note = NOTES.get(name)
        if name == "top1":
            low, high = wilson(metrics[name], metrics["images"])
            note = f"95% interval {100 * low:.1f} to {high:.1%}"
        cards.append((title, value, note))
    if not metrics and record.train:
        cards.append(("training loss", f"{record.train[-1]['loss']:.3f}", f"after step {record.steps_done:,}"))
    cells = [
        element("div", element("dt", title), element("dd", value), element("dd", note, class_="note"))
        for title, value, note in cards
    ]
    return element("dl", *cells, class_="tiles") if cells else None


def _sections(record):
    """(title, parts) in the order in which a person asks."""
    yield "Training", _training(record)
    if record.top_losses:
        yield "Top losses", _top_losses(record)
    if record.most_confused or record.confusion is not None:
        yield "Confusion", _confusion(record)
    if record.per_class:
        yield "Classes", _classes(record)
    if record.calibration:
        yield "Calibration", _calibration(record)
    if record.train_batch:
        yield "First batch", _first_batch(record)
    if record.train:
        yield "Speed", _speed(record)
    yield "Plan", _plan(record)
    yield "Environment", _environment(record)
    if record.command:
        yield "Run it again", (element("pre", element("code", record.command), tabindex="0"),)


def _training(record):
    steps = [r["step"] for r in record.train]
    curves = [
        charts.line_chart("training loss, nats", steps, [r["loss"] for r in record.train], x_label="step"),
        charts.line_chart("learning rate", steps, [r["lr"] for r in record.train], x_label="step"),
    ]
    metric = "mAP" if record.multilabel else "top1"
    for name in (metric, "loss"):
        points = [(r["step"], r[name]) for r in record.evals if name in r]
        if points:
            options = {"percent": True, "top": 1} if name == metric else {}
            title = f"validation {METRICS[name]}" + (", nats" if name == "loss" else "")
            curves.append(charts.line_chart(title, *zip(*points, strict=True), x_label="step", dots=True, **options))
    if not record.train:
        return (element("p", "No step is done yet."),)
    return (element("div", *curves, class_="charts"),)


def _top_losses(record):
    yield element(
        "p",
        "The validation images whose label the network found least likely, the worst first."
        " A wrong label in the data shows here before anything else.",
    )
    yield element("div", *(_photo(*entry) for entry in record.photos), class_="photos")


def _photo(loss, tile, why):
    right = loss.label == loss.predicted
    said = f" {loss.probability:.0%}" if loss.probability is not None else ""
    file = os.path.basename(loss.path)
    lines = [
        element("strong", name_of(loss.label or "no label"), class_="short"),
        element(
            "span", "found " if right else "taken for ", name_of(loss.predicted or "nothing"), said, class_="short"
        ),
        element("span", f"loss {loss.loss:.2f}", class_="quiet"),
        element("span", name_of(file), class_="quiet short", title=loss.path),
        element("span", f"{_gone(tile)}: {why}", class_="warn") if why else None,
    ]
    picture = _picture(tile, f"{file}, label {loss.label}")
    return element("figure", picture, element("figcaption", *lines))


def _gone(tile):
    return "cannot be read any more" if tile and tile.picture else "cannot be read"


def _confusion(record):
    if record.most_confused:
        count = {row["class"]: row["images"] for row in record.per_class}
        rows = [
            [name_of(label), name_of(guess), f"{n:,}", f"{n / count[label]:.0%}" if count.get(label) else ""]
            for label, guess, n in record.most_confused[:PAIRS_SHOWN]
        ]
        header = ["label", "taken for", "images", "share of the label"]
        yield table(header, rows, caption="Most confused classes", numbers=(2, 3))
    else:
        yield element("p", "No image is taken for another class.")
    classes = len(record.per_class)
    if classes > MATRIX_CLASSES:
        yield element("p", f"Above {MATRIX_CLASSES:,} classes no matrix is made.", class_="quiet")
    elif classes > MATRIX_SHOWN:
        yield element("p", f"The matrix of all {classes:,} classes is in confusion_matrix.csv.", class_="quiet")
    elif record.confusion is not None:
        yield _matrix(record.confusion, [row["class"] for row in record.per_class])


def _matrix(confusion, classes):
    shares = confusion / confusion.sum(1, keepdims=True).clip(1)
    rows = []
    for i, (name, row) in enumerate(zip(classes, confusion.tolist(), strict=True)):
        cells = [
            element(
                "td",
                str(n) if n else "",
                class_="right" if i == j else None,
                style=f"--share:{shares[i, j]:.2f}" if n else None,
            )
            for j, n in enumerate(row)
        ]
        rows.append([element("th", name_of(name), scope="row"), *cells])
    header = ["label \\ predicted", *(element("th", element("span", name_of(c)), scope="col") for c in classes)]
    caption = "Confusion matrix: images, shaded by their share of the row"
    return table(header, rows, caption=caption, class_="matrix")


def _classes(record):
    weakest = sorted(record.per_class, key=_weakness)[:CLASSES_SHOWN]
    names = [name for name in ("average_precision", "recall", "precision", "f1") if name in record.per_class[0]]
    rows = [
        [
            name_of(row["class"]),
            f"{row['images']:,}",
            f"{row['train_images']:,}" if "train_images" in row else "",
            *(_meter(row[name]) for name in names),
        ]
        for row in weakest
    ]
    if len(weakest) < len(record.per_class):
        yield element("p", f"The weakest {len(weakest)} of {len(record.per_class):,}; per_class.csv has all of them.")
    titles = [{"f1": "F1", "average_precision": "average precision"}.get(name, name) for name in names]
    header = ["class", "val images", "train images", *titles]
    yield table(header, rows, caption="Per class, the weakest first", numbers=range(1, len(header)), class_="classes")


def _weakness(row):
    """Sorts by average precision or F1, classes without validation images last."""
    value = row.get("average_precision", row["f1"])
    return not row["images"], 0.0 if value is None else value, row["class"]


def _meter(value):
    if value is None:
        return element("td", "–", class_="number")
    return element("td", f"{value:.1%}", class_="number meter", style=f"--share:{value:.3f}")


def _calibration(record):
    images = sum(n for _, _, n, _, _ in record.calibration)
    confidence = sum(n * c for _, _, n, c, _ in record.calibration) / images
    accuracy = sum(n * a for _, _, n, _, a in record.calibration) / images
    gap = confidence - accuracy
    kind = "over-confident" if gap > 0.02 else "under-confident" if gap < -0.02 else "about as sure as it should be"
    average = (
        f"On average a class is given {confidence:.1%} and is there in {accuracy:.1%}: the network is {kind}."
        if record.multilabel
        else f"On average the network is {confidence:.1%} sure and {accuracy:.1%} right: {kind}."
    )
    yield element(
        "p",
        average,
        " Bars on the diagonal mean that a probability can be taken at its word; pale bars hold little.",
    )
    yield element("div", charts.reliability(record.calibration), class_="charts")


def _first_batch(record):
    yield element("p", "What the network was given in its first step: cropped, flipped and mixed, with its labels.")
    figures = [
        element(
            "figure",
            _picture(tile, f"training image, {tile.caption}"),
            element("figcaption", element("span", name_of(tile.caption), class_="short")),
        )
        for tile in record.train_batch
    ]
    yield element("div", *figures, class_="photos")


def _speed(record):
    speed = record.speed
    cards = [("images per second", f"{speed.images_per_second:,.4g}", "training, all steps")]
    cards.append(("waiting for images", f"{speed.data_wait:.1%}", "of the training time"))
    if speed.seconds:
        cards.append(("training time", _duration(speed.seconds), "without evaluations"))
    if speed.peak_memory_bytes:
        cards.append(("peak memory", f"{speed.peak_memory_bytes / 2**30:.2f} GiB", memory_kind(record)))
    cells = [
        element("div", element("dt", title), element("dd", value), element("dd", note, class_="note"))
        for title, value, note in cards
    ]
    yield element("dl", *cells, class_="tiles small")
    if speed.data_wait > WAIT_NOTED:
        yield element(
            "p",
            "The network waits for its images: ",
            element("code", "bitfast bench --input-only DATA"),
            " says which stage is slow.",
        )
    steps = [r["step"] for r in record.train]
    rates, waits = ([r[name] for r in record.train] for name in ("images_per_second", "data_wait"))
    yield element(
        "div",
        charts.line_chart("images per second", steps, rates, x_label="step"),
        charts.line_chart("share of time waiting for images", steps, waits, x_label="step", percent=True),
        class_="charts",
    )


def memory_kind(record):
    """What the peak counts."""
    return "of the GPU" if str(record.environment.get("device", "")).startswith("cuda") else "of the whole process"


def _plan(record):
    rows = [[row["name"], row["value"], row["origin"]] for row in record.plan.get("settings", [])]
    yield table(["setting", "value", "origin"], rows, caption="Every setting, and where it comes from", class_="plan")
    for note in record.plan.get("notes", []):
        yield element("p", f"Note: {note}.", class_="quiet")
    if "data" in record.plan:
        yield element("p", "Data: ", name_of(record.plan["data"]), ".", class_="quiet")
    if record.bad_images:
        yield element(
            "p", f"{record.bad_images:,} unreadable images were left out; bad_images.csv lists them.", class_="warn"
        )


def _environment(record):
    facts = dict(record.environment)
    ops = facts.pop("ops", [])
    command = facts.pop("command", None)
    rows = [[name.replace("_", " "), str(value)] for name, value in facts.items() if value not in (None, "")]
    if command:
        rows.append(["started as", " ".join(command)])
    rows.append(["folder", str(record.folder.path.absolute())])
    yield table(["what", "value"], rows, caption="Where it ran")
    if ops:
        rows = [[op["op"], op["impl"], op["why"]] for op in ops]
        yield table(["operator", "implementation", "why"], rows, caption="What ran each operator")


def _picture(tile, alt):
    """The tile's picture as part of the page."""
    if tile is None or tile.picture is None:
        return element("div", "no picture", class_="gone")
    file = io.BytesIO()
    tile.picture.convert("RGB").save(file, format="JPEG", quality=82)
    source = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return element("img", src=source, alt=alt, width=tile.picture.width, height=tile.picture.height)


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _anchor(title):
    return title.lower().replace(" ", "-")

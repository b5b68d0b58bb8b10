"""The pictures in plots/. matplotlib is an extra and is imported when a picture is drawn."""

import warnings

from .markup import clean
from .page import MATRIX_SHOWN


def draw(record):
    """Draw what the record has of curves, confusion_matrix and calibration; returns their names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # of names that the font lacks letters for
        return _draw(record)


def _draw(record):
    folder, drawn = record.folder.path / "plots", []
    folder.mkdir(exist_ok=True)
    if record.train:
        _curves(folder / "curves.png", record.train, record.evals)
        drawn.append("curves")
    if record.confusion is not None and len(record.per_class) <= MATRIX_SHOWN:
        _confusion(folder / "confusion_matrix.png", record.confusion, [clean(row["class"]) for row in record.per_class])
        drawn.append("confusion_matrix")
    if record.calibration:
        _calibration(folder / "calibration.png", record.calibration)
        drawn.append("calibration")
    return drawn


def _curves(path, train, evals):
    """Training loss and learning rate by step, and top-1 accuracy or mAP of the validation where there is one."""
    panels = 3 if evals else 2
    figure, axes = _figure(4.2 * panels, 3.2, panels)
    steps = [record["step"] for record in train]
    axes[0].plot(steps, [record["loss"] for record in train], linewidth=1)
    axes[0].set(title="training loss", xlabel="step", ylabel="cross-entropy [nats]", ylim=(0, None))
    axes[1].plot(steps, [record["lr"] for record in train], linewidth=1)
    axes[1].set(title="learning rate", xlabel="step", ylim=(0, None))
    if evals:
        metric = "top1" if "top1" in evals[0] else "mAP"
        axes[2].plot([r["step"] for r in evals], [100 * r[metric] for r in evals], marker="o", markersize=4)
        axes[2].set(title=f"validation {metric}", xlabel="step", ylabel="%", ylim=(0, 100))
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _confusion(path, confusion, classes):
    """Counts, row = label, column = prediction, shaded by share of the row."""
    size = max(4.5, 0.45 * len(classes) + 2)
    figure, (axis,) = _figure(size, size, 1)
    share = confusion / confusion.sum(1, keepdims=True).clip(1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
    axis.set_yticks(range(len(classes)), classes, parse_math=False)
    axis.set(xlabel="predicted", ylabel="label")
    for i, row in enumerate(confusion):
        for j, count in enumerate(row):
            if count:
                axis.text(j, i, str(count), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    figure.savefig(path, dpi=120)


def _calibration(path, bins):
    """Accuracy of each range of confidence, with the diagonal of a network that is as sure as it is right."""
    figure, (axis,) = _figure(4.2, 4.2, 1)
    axis.bar([b[0] for b in bins], [b[4] for b in bins], [b[1] - b[0] for b in bins], align="edge", edgecolor="white")
    axis.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    figure.savefig(path, dpi=120)


def _figure(width, height, panels):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]

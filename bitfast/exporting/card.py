"""README.md of an exported folder: the model card, with what a program needs to use the file."""

from pathlib import Path

_USE = {
    "onnx": """    session = onnxruntime.InferenceSession("model.onnx")
    logits = session.run(None, {"images": images})[0]""",
    "pt2": """    network = torch.export.load("model.pt2").module()
    logits = network(images)""",
    "safetensors": """    classifier = bitfast.load("THIS FOLDER")
    classifier.predict(["photo.jpg"])""",
}
_LIBRARY = {"onnx": "onnx", "pt2": "pytorch", "safetensors": "bitfast"}
_LOGITS = {
    False: "`logits`: (N, classes) float32; their softmax is the probability of each class.",
    True: "`logits`: (N, classes) float32; an image can have several classes: the sigmoid of each is its probability.",
}
_SHOWN = 50


def card(config, exported):
    """The text of README.md for config.json's content and an Exported."""
    own, labels = config["bitfast"], config["label_names"]
    transform, channels = own["transform"], config["pretrained_cfg"]["input_size"][0]
    lines = [
        "---",
        f"library_name: {_LIBRARY[exported.format]}",
        "pipeline_tag: image-classification",
        "tags: [bitfast, big-transfer]",
        "---",
        f"# {own['model']}, {config['num_classes']} classes, {Path(exported.file).name}",
        "",
        f"A Big Transfer network ([1912.11370](https://arxiv.org/abs/1912.11370)) exported by bitfast {own['version']} "
        f"in {exported.precision}. Weight standardization is folded into the weights: plain convolutions are left.",
        "",
        "## Use",
        "",
        _USE[exported.format],
        "",
        f"`images`: (N, {channels}, H, W) float32, RGB. Turn the photo upright (EXIF), lay it on white where it is "
        f"transparent, resize {_resize(transform)}, then (v - {transform['mean']:g}) / "
        f"{transform['std']:g} of values 0 to 255. Other sizes run too.",
        "",
        _LOGITS[own.get("multilabel", False)],
        "",
        "The same facts are in the file's metadata (`preprocessing`, `probabilities`, `label_names`).",
        "",
        "## Check",
        "",
        f"Largest logit difference to bitfast {exported.max_logit_difference:.2g} (allowed {exported.allowed:.2g}), at "
        "two image sizes and two batch sizes.",
    ]
    if metrics := own.get("metrics"):
        lines += ["", "## Validation", "", "| metric | value |", "|---|---|"]
        lines += [
            f"| {name} | {value:.4f} |" if isinstance(value, float) else f"| {name} | {value} |"
            for name, value in metrics.items()
        ]
        lines += ["", "Measured before the export, on images held out of the same data; other photos may be harder."]
    if labels:
        more = f" and {len(labels) - _SHOWN} more, in config.json" if len(labels) > _SHOWN else ""
        lines += ["", "## Classes", "", ", ".join(labels[:_SHOWN]) + more + "."]
    return "\n".join(lines) + "\n"


def _resize(transform):
    crop, how = transform["crop"], f"{transform['interpolation']}, antialiased"
    if transform["geometry"] == "short_side":
        return f"its short side to {transform['resize']} px ({how}), take the central {crop} x {crop} px of it"
    return f"it to {crop} x {crop} px ({how}, aspect not kept)"

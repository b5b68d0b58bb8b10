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
_SHOWN = 50


def card(config, exported):
    """The text of README.md for config.json's content and an Exported."""
    own, labels = config["bitfast"], config["label_names"]
    transform, channels = own["transform"], config["pretrained_cfg"]["input_size"][0]
    side, how = transform["crop"], f"{transform['interpolation']}, antialiased"
    if transform["geometry"] == "short_side":
        resizing = f"resize its short side to {transform['resize']} px ({how}), take the central {side} x {side} px"
    else:
        resizing = f"resize it to {side} x {side} px ({how}, aspect not kept)"
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
        f"`images`: (N, {channels}, H, W) float32, RGB. Turn the photo upright (EXIF), {resizing}, then "
        f"(v - {transform['mean']:g}) / {transform['std']:g} of values 0 to 255. Other sizes run too.",
        "",
        f"Probabilities are the {'sigmoid of each logit' if own.get('multilabel') else 'softmax of the logits'}"
        + (
            f", divided by the temperature {own['temperature']:.6g} first (calibrated)."
            if "temperature" in own
            else "."
        ),
        "",
        "The same facts are in the file's metadata (`preprocessing`, `label_names`, `probabilities`, `temperature`).",
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

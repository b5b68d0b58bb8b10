"""Weights of a whole RGB network for one that is cut after a stage or takes other input channels."""

import re


def adapted(tensors, own):
    """(tensors for the names of `own`, what was changed in words); both are state dicts under timm's names.

    stages  those behind the network's are left out, with the head; the norm is the one that the next stage begins with,
            which is made for these features
    norm    left out where the network ends without one
    stem    for one input channel the sum over the channels; for more, the channels over and over, times the ratio of
            the numbers. Weight standardization takes the ratio out again; it is kept so that raw weights equal timm's
            (source: timm's `adapt_input_conv`). Only weights for RGB are changed
    """
    tensors, changes = dict(tensors), []
    stages, held = _stages(own), _stages(tensors)
    if 0 <= stages < held:
        for leaf in ("weight", "bias"):
            tensors[f"norm.{leaf}"] = tensors.get(f"stages.{stages}.blocks.0.norm1.{leaf}")
        gone = tuple(f"stages.{i}." for i in range(stages, held)) + ("head.",)
        tensors = {name: t for name, t in tensors.items() if t is not None and not name.startswith(gone)}
        if "norm.weight" in own:
            changes.append(f"the first {stages} of {held} stages, normalized as the next stage does")
    if "norm.weight" not in own:
        tensors = {name: t for name, t in tensors.items() if name not in ("norm.weight", "norm.bias")}
    stem, channels = tensors.get("stem.conv.weight"), own["stem.conv.weight"].shape[1]
    if stem is not None and stem.ndim == 4 and stem.shape[1] == 3 != channels:
        tensors["stem.conv.weight"] = _for_channels(stem, channels)
        changes.append(f"the stem's 3 input channels are made {channels}")
    return tensors, changes


def _stages(tensors):
    found = [int(match[1]) for name in tensors if (match := re.match(r"stages\.(\d+)\.", name))]
    return max(found, default=-1) + 1


def _for_channels(stem, channels):
    if channels == 1:
        return stem.float().sum(1, keepdim=True)
    repeated = stem.float().repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    return repeated * (3 / channels)

"""What timm calls a network's architecture and `pretrained_cfg`: the one home of that layout."""

import math


def architecture(model):
    """timm's name of a network of `variants.VARIANTS`: "resnet50x1" -> "resnetv2_50x1_bit"."""
    return f"resnetv2_{model.removeprefix('resnet')}_bit"


def crop_share(crop, resize):
    """The `crop_pct` of a central crop: timm resizes the short side to floor(crop / crop_pct), which is `resize`."""
    share = crop / resize
    return share if math.floor(crop / share) == resize else math.nextafter(share, 0)


def pretrained_cfg(
    num_classes,
    *,
    size=224,
    in_chans=3,
    tag="",
    interpolation="bilinear",
    crop_pct=1.0,
    crop_mode=None,
):
    """The dict that timm's `resolve_model_data_config` and `local-dir:` read; a new one at each call.

    num_classes    outputs of the weights it describes
    size           side of the test image in pixels
    interpolation  the resize filter
    crop_pct       1.0: the whole image is resized to the square, as BiT does; below: share of it in a centre crop
    crop_mode      "center" where a crop_pct of 1.0 keeps the aspect: short side to `size`, then the central square
    """
    return {
        "tag": tag,
        "input_size": (in_chans, size, size),
        "fixed_input_size": False,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode or ("squash" if crop_pct == 1 else "center"),
        "mean": (0.5,) * in_chans,
        "std": (0.5,) * in_chans,
        "num_classes": num_classes,
        "pool_size": None,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }

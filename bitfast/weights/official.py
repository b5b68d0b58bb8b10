"""The layout of the released .npz files and its two-way translation to timm's state-dict names.

    resnet/root_block/standardized_conv2d/kernel                  stem.conv.weight
    resnet/block{1..}/unit{01..}/{a,b,c}/group_norm/{gamma,beta}  stages.{0..}.blocks.{0..}.norm{1,2,3}.{weight,bias}
    resnet/block{1..}/unit{01..}/{a,b,c}/standardized_conv2d/kernel               .conv{1,2,3}.weight
    resnet/block{1..}/unit01/a/proj/standardized_conv2d/kernel                    .downsample.conv.weight
    resnet/group_norm/{gamma,beta}                                norm.{weight,bias}
    resnet/head/conv2d/{kernel,bias}                              head.fc.{weight,bias}

Kernels are raw (not standardized) and stored HWIO; here they are OIHW. Some files number their layers
(`standardized_conv2d_17`) or lack the `resnet/` prefix. Source: bit_pytorch/models.py of the BiT release.
"""

import re

import torch

_TOP = {
    "root_block/standardized_conv2d/kernel": "stem.conv.weight",
    "group_norm/gamma": "norm.weight",
    "group_norm/beta": "norm.bias",
    "head/conv2d/kernel": "head.fc.weight",
    "head/conv2d/bias": "head.fc.bias",
}
_UNIT = {"a/proj/standardized_conv2d/kernel": "downsample.conv.weight"}
for _part, _number in (("a", 1), ("b", 2), ("c", 3)):
    _UNIT[f"{_part}/standardized_conv2d/kernel"] = f"conv{_number}.weight"
    _UNIT[f"{_part}/group_norm/gamma"] = f"norm{_number}.weight"
    _UNIT[f"{_part}/group_norm/beta"] = f"norm{_number}.bias"
_TOP_KEY = {name: key for key, name in _TOP.items()}
_UNIT_KEY = {name: key for key, name in _UNIT.items()}


def to_name(key):
    """State-dict name of an official key; a key of another kind comes back as it is."""
    plain = re.sub(r"(standardized_conv2d|group_norm|conv2d)_\d+/", r"\1/", key.removeprefix("resnet/"))
    unit = re.fullmatch(r"block(\d+)/unit(\d+)/(.+)", plain)
    if unit and unit[3] in _UNIT:
        return f"stages.{int(unit[1]) - 1}.blocks.{int(unit[2]) - 1}.{_UNIT[unit[3]]}"
    return _TOP.get(plain, key)


def to_key(name):
    """Official key of a state-dict name."""
    block = re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", name)
    if block:
        return f"resnet/block{int(block[1]) + 1}/unit{int(block[2]) + 1:02d}/{_UNIT_KEY[block[3]]}"
    return f"resnet/{_TOP_KEY[name]}"


def to_tensor(array):
    """OIHW tensor of an HWIO kernel; vectors as they are. Shares memory with the array."""
    tensor = torch.from_numpy(array)
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor


def to_array(tensor):
    """HWIO array of an OIHW weight, vectors as they are; float32, or float64 for float64."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    tensor = tensor.detach().to("cpu", dtype)
    return (tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor).contiguous().numpy()

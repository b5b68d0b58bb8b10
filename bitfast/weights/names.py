"""State-dict names of other programs, brought to timm's `resnetv2_*_bit` names, which are ours.

Sources: wrappers of torch (DataParallel, DDP, torch.compile, FSDP, activation checkpointing) and of training programs
(`model.`); HF transformers' BiT (convert_bit_to_pytorch.py); bit_pytorch/models.py of the BiT release.
"""

import re

from ..errors import WeightsError

_WRAPPERS = {"module", "model", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def to_timm(tensors, path):
    """(renamed tensors, layout), layout one of "timm", "transformers", "big_transfer".

    Unknown names come back as they are. Raises WeightsError if two entries get the same name.
    """
    tensors = rename(tensors, _unwrapped, path)
    if any(name.startswith(("root.", "body.")) for name in tensors):
        return rename(tensors, _from_big_transfer, path), "big_transfer"
    if any(name.startswith(("bit.", "embedder.", "encoder.")) for name in tensors):
        return rename(tensors, _from_transformers, path), "transformers"
    return tensors, "timm"


def rename(entries, rule, path):
    """`entries` under the names rule(key). Raises WeightsError if two entries get the same name."""
    renamed, origin = {}, {}
    for key, value in entries.items():
        name = rule(key)
        if name in renamed:
            raise WeightsError(f"{path}: {origin[name]} and {key} are both {name}; keep one of them")
        renamed[name], origin[name] = value, key
    return renamed


def _unwrapped(name):
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _from_transformers(name):
    name = re.sub(r"^(bit\.)?(embedder\.convolution\.)", "stem.conv.", name)
    name = re.sub(r"^(bit\.)?encoder\.stages\.(\d+)\.layers\.", r"stages.\2.blocks.", name)
    name = re.sub(r"^bit\.norm\.", "norm.", name)
    return re.sub(r"^classifier\.1\.", "head.fc.", name)


def _from_big_transfer(name):
    unit = re.fullmatch(r"body\.block(\d+)\.unit(\d+)\.(.+)", name)
    if unit:
        leaf = unit[3].replace("gn", "norm").replace("downsample.", "downsample.conv.")
        return f"stages.{int(unit[1]) - 1}.blocks.{int(unit[2]) - 1}.{leaf}"
    for old, new in (("root.conv.", "stem.conv."), ("head.gn.", "norm."), ("head.conv.", "head.fc.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name

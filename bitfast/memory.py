"""How much memory one training image takes, and the micro-batch that follows from it."""

import torch

from .errors import OutOfMemory
from .folding import fold
from .model import ResNetV2
from .ops import report
from .runtime import available_memory_bytes

# Share of the free memory given to activations, and a ceiling on a CPU: larger micro-batches gain nothing there.
SHARE = 0.6
CPU_CEILING_BYTES = 3 * 2**30


def activation_bytes(model, crop, dtype, device):
    """Bytes that autograd keeps for one crop x crop image in a training on the device with activations of the dtype.

    Counted exactly, on the meta device; no weights are made. Native norm_conv makes normalized images again in either
    mode of `model.memory`; on the meta device that has to be asked for.
    """
    native = any((choice.op, choice.impl) == ("norm_conv", "native") for choice in report(device, dtype))
    with torch.device("meta"):
        raw = ResNetV2(model.depths, model.width, model.num_classes, model.in_chans)
        network = fold(raw, dtype, "save" if native else model.memory)
        image = torch.empty(1, model.in_chans, crop, crop, dtype=dtype).to(memory_format=torch.channels_last)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(image)
    return sum(nbytes for nbytes, _ in kept.values())


def state_bytes(model, dtype):
    """Bytes of the raw weights and momentum in float32, of the folded weights and their gradients in the dtype."""
    return sum(parameter.numel() for parameter in model.parameters()) * (8 + 2 * dtype.itemsize)


def micro_batch(model, crop, batch_size, device, dtype, *, paired=False, shares=1):
    """Images per forward and backward: the batch, or the largest power of two whose activations fit.

    paired  MixUp pairs neighbours, so the micro-batch is even
    shares  processes that weights, gradients and momentum are split over
    Raises  OutOfMemory if not even one image (or pair) fits
    """
    per_image = activation_bytes(model, crop, dtype, device)
    smallest = 2 if paired and batch_size > 1 else 1
    optimizer_bytes = state_bytes(model, dtype) // shares
    available = available_memory_bytes(device)
    needed = per_image * smallest + optimizer_bytes
    if needed > available:
        raise OutOfMemory(
            f"training needs {needed / 2**30:.1f} GB for {smallest} image(s) of {crop} px, {available / 2**30:.1f} GB"
            " are free: use a smaller --crop or a smaller --model"
        )
    free = available - optimizer_bytes
    budget = free * SHARE
    if device.type == "cpu":
        budget = min(budget, CPU_CEILING_BYTES)
    fit = int(budget // per_image)
    if fit >= batch_size:
        return batch_size
    return max(smallest, 1 << (fit.bit_length() - 1) if fit else smallest)

"""Optional peers of the tests: other implementations that may or may not be installed."""

import importlib.util

import hf_bit
import pytest

from benchmarks.torchvision_stub import torchvision_or_stub

HF_SIZES = {"depths": [1, 2, 1], "hidden_sizes": [128, 256, 512], "embedding_size": 32, "num_labels": 5}


def import_timm():
    """timm, or skip the test."""
    pytest.importorskip("safetensors")
    with torchvision_or_stub():
        return pytest.importorskip("timm")


def import_onnx():
    """(onnx, onnxruntime) of the extra "onnx", or skip the test."""
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")


def hf_network():
    """A small BitForImageClassification of transformers, or of `hf_bit` without it."""
    if importlib.util.find_spec("transformers") is None:
        return hf_bit.BitForImageClassification(**HF_SIZES)
    from transformers import BitConfig
    from transformers.models.bit.modeling_bit import BitForImageClassification

    return BitForImageClassification(BitConfig(**HF_SIZES))


def logits(output):
    """The tensor in what a network of any of these libraries returns."""
    return getattr(output, "logits", output)

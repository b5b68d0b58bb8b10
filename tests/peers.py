"""Optional peers of the tests: other implementations that may or may not be installed."""

import pytest

from benchmarks.torchvision_stub import torchvision_or_stub


def import_timm():
    """timm, or skip the test."""
    pytest.importorskip("safetensors")
    with torchvision_or_stub():
        return pytest.importorskip("timm")

"""Small networks and official-layout arrays of the weights tests."""

import numpy as np
import pytest
import torch
from golden import official as golden

from bitfast.model import ResNetV2

DEPTHS, WIDTH = (1, 2, 1), 0.5


def fill(model, seed=0):
    """Every parameter random, so that a tensor that was not copied shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.fixture
def network():
    """network(num_classes=5, seed=0, depths=..., ...) -> a small ResNetV2 with random parameters."""

    def build(num_classes=5, seed=0, depths=DEPTHS, width=WIDTH, **options):
        return fill(ResNetV2(depths, width, num_classes, **options), seed)

    return build


@pytest.fixture(scope="session")
def arrays():
    """A small network with 5 classes in the official layout, written without bitfast."""
    values = golden.seeded_weights(DEPTHS, WIDTH, 5, seed=3)
    return {key: value.astype(np.float32) for key, value in values.items()}


@pytest.fixture
def npz(arrays, tmp_path):
    path = tmp_path / "BiT-tiny.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def lines(capsys):
    """What was said on stderr since the last call, as lines."""
    return lambda: capsys.readouterr().err.splitlines()

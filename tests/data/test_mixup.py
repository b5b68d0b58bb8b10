"""MixUp equals its formula, keeps the memory layout, and does nothing at lam == 1."""

import numpy as np
import pytest
import torch

from bitfast.data.mixup import mix
from bitfast.data.sampler import Sampler
from bitfast.data.transform import Transform


def test_mix():
    x = torch.randn(5, 3, 6, 4, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    partner = np.array([1, 0, 4, 3, 2])
    expected = 0.3 * x + 0.7 * x[partner]
    mixed = mix(x.clone(), partner, 0.3)
    assert torch.allclose(mixed, expected, rtol=0, atol=1e-6) and torch.equal(mixed[3], x[3])
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mix(x.clone(), partner, 1.0), x)
    assert mix(x, partner, 1.0) is x


def test_refuses_what_is_no_pairing():
    with pytest.raises(ValueError, match="are not pairs"):
        mix(torch.zeros(3, 1, 1, 1), np.array([1, 2, 0]), 0.5)


def test_micro_batches_mix_to_the_same():
    batch = Sampler(50, 10, Transform.test(4), 0.4).batch(1)
    x = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = mix(x[batch.indices], batch.partner, batch.lam)
    parts = [mix(x[part.indices], part.partner, part.lam) for part in batch.micro(4)]
    assert torch.equal(whole, torch.cat(parts))

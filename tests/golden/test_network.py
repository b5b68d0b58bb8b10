"""Logits, loss and gradients equal the released definition to 1e-9 in float64."""

import pytest
import torch
from golden import official
from torch.nn import functional as F

import bitfast
from bitfast.weights.official import to_name


@pytest.mark.parametrize("depths, width", [((1, 2, 1, 1), 1), ((2, 1), 3)])
@pytest.mark.parametrize("size", [(32, 32), (45, 27)])
def test_equals_released_definition(depths, width, size, tmp_path):
    arrays = official.seeded_weights(depths, width, num_classes=11, seed=width)
    model = bitfast.ResNetV2(depths, width, num_classes=11).double()
    bitfast.load_weights(model, official.write(arrays, tmp_path / "seeded.npz"))
    truth = official.to_tensors(arrays)

    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 10])
    logits, expected = model(images), official.forward(truth, depths, images)
    loss, expected_loss = F.cross_entropy(logits, labels), F.cross_entropy(expected, labels)
    loss.backward()
    expected_loss.backward()

    assert_close(logits, expected)
    assert_close(loss, expected_loss)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert len(gradients) == len(truth)
    for key, tensor in truth.items():
        grad = tensor.grad.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.grad
        assert_close(gradients[to_name(key)], grad, key)
    assert_close(bitfast.fold(model)(images), expected)


def test_full_depth_of_the_official_r50(tmp_path):
    depths = (3, 4, 6, 3)
    arrays = official.seeded_weights(depths, 1, num_classes=5)
    model = bitfast.resnet50x1(num_classes=5).double()
    bitfast.load_weights(model, official.write(arrays, tmp_path / "r50.npz"))
    images = torch.randn(1, 3, 33, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(model(images), official.forward(official.to_tensors(arrays), depths, images))


def test_stem_pads_with_zeros_that_can_win():
    """Where the stem's output is negative at the border, the zero padding is the maximum."""
    stem = bitfast.ResNetV2((1,), 0.5).stem
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pooled = stem(images)
    padded_with_minus_infinity = F.max_pool2d(stem.conv(images), 3, 2, padding=1)
    assert (pooled[..., 0, :] >= 0).all()
    assert (padded_with_minus_infinity[..., 0, :] < 0).any()
    assert torch.equal(pooled[..., 1:, 1:], padded_with_minus_infinity[..., 1:, 1:])


def assert_close(got, expected, name="value"):
    scale = expected.detach().abs().max()
    error = (got.detach() - expected.detach()).abs().max()
    assert error <= 1e-9 * scale, f"{name}: {error:.3g} off at scale {scale:.3g}"

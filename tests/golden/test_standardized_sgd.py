"""StandardizedSGD on the folded network equals torch.optim.SGD on the unfolded one, to 1e-10 relative in float64."""

import pytest
import torch
from golden import official
from torch.nn import functional as F

import bitfast
from bitfast.weights.official import to_name

DEPTHS, STEPS, BATCH = (1, 2), 20, 8


@pytest.mark.parametrize(
    "momentum, weight_decay, micro_batches", [(0, 0, 1), (0.9, 0, 1), (0.9, 1e-2, 1), (0.9, 1e-2, 4)]
)
def test_equals_sgd_on_the_unfolded_network(momentum, weight_decay, micro_batches, tmp_path):
    arrays = official.seeded_weights(DEPTHS, 0.5, num_classes=5)
    model = bitfast.ResNetV2(DEPTHS, 0.5, num_classes=5).double()
    bitfast.load_weights(model, official.write(arrays, tmp_path / "seeded.npz"))
    truth = official.to_tensors(arrays)
    ours = bitfast.StandardizedSGD(model, lr=0.1, momentum=momentum, weight_decay=weight_decay)
    plain = torch.optim.SGD(truth.values(), lr=0.1, momentum=momentum, weight_decay=weight_decay)

    generator = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        images = torch.randn(BATCH, 3, 20, 20, dtype=torch.float64, generator=generator)
        labels = torch.randint(5, (BATCH,), generator=generator)
        lr = 0.05 if step < 10 else 0.005
        for optimizer in (ours, plain):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
        for x, y in zip(images.chunk(micro_batches), labels.chunk(micro_batches), strict=True):
            (F.cross_entropy(ours.network(x), y, reduction="sum") / BATCH).backward()
        loss = F.cross_entropy(official.forward(truth, DEPTHS, images), labels)
        loss.backward()
        ours.step()
        plain.step()
        assert_equal(model, truth, step)
    # The raw model is current: standardizing on the fly gives the network's own output.
    torch.testing.assert_close(model(images), ours.network(images), rtol=1e-10, atol=1e-10)


def assert_equal(model, truth, step):
    parameters = dict(model.named_parameters())
    for key, tensor in truth.items():
        expected = tensor.detach()
        expected = expected.permute(3, 2, 0, 1) if expected.dim() == 4 else expected
        error = (parameters[to_name(key)].detach() - expected).norm() / expected.norm()
        assert error <= 1e-10, f"step {step}, {key}: relative error {error:.3g}"


def test_state_dict_round_trip_continues_exactly():
    def run(interrupt):
        torch.manual_seed(0)
        model = bitfast.ResNetV2((1,), 0.5, num_classes=3)
        optimizer = bitfast.StandardizedSGD(model, lr=0.1, weight_decay=1e-3)
        generator = torch.Generator().manual_seed(1)
        for step in range(6):
            if step == 3 and interrupt:
                weights, state = model.state_dict(), optimizer.state_dict()
                model = bitfast.ResNetV2((1,), 0.5, num_classes=3)
                model.load_state_dict(weights)
                optimizer = bitfast.StandardizedSGD(model, lr=0.7)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            images = torch.randn(4, 3, 32, 32, generator=generator)
            F.cross_entropy(optimizer.network(images), torch.tensor([0, 1, 2, 1])).backward()
            optimizer.step()
        return model.state_dict()

    whole, resumed = run(False), run(True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_frozen_parameters_stay():
    model = bitfast.ResNetV2((1,), 0.5, num_classes=3)
    for parameter in model.stem.parameters():
        parameter.requires_grad_(False)
    before = model.stem.conv.weight.clone()
    optimizer = bitfast.StandardizedSGD(model, lr=0.1, weight_decay=0.1)
    F.cross_entropy(optimizer.network(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert torch.equal(model.stem.conv.weight, before)
    assert model.head.fc.weight.abs().sum() > 0


@pytest.mark.parametrize("name, value", [("lr", -1), ("momentum", -0.1), ("weight_decay", -1e-9)])
def test_negative_values_are_refused(name, value):
    arguments = {"lr": 0.1, name: value}
    with pytest.raises(ValueError, match=name):
        bitfast.StandardizedSGD(bitfast.ResNetV2((1,), 0.5), **arguments)

"""StandardizedSGD on the folded network equals torch.optim.SGD on the unfolded one, to 1e-10 relative in float64."""

import pytest
import torch
from golden import official
from torch.nn import functional as F

import bitfast
from bitfast.folding import std_convs
from bitfast.ops import weight_standardize
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


def assert_equal(model, truth, step, bound=1e-10):
    parameters = dict(model.named_parameters())
    for key, tensor in truth.items():
        expected = tensor.detach()
        expected = expected.permute(3, 2, 0, 1) if expected.dim() == 4 else expected
        error = (parameters[to_name(key)].detach() - expected).norm() / expected.norm()
        assert error <= bound, f"step {step}, {key}: relative error {error:.3g}"


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


def test_groups_and_epsilons_of_their_own():
    """Two param groups, two epsilons, a model in either layout: against SGD on the model itself."""

    def trained(make, network_of, layout=torch.contiguous_format):
        torch.manual_seed(0)
        model = bitfast.ResNetV2((1, 1), 0.5, num_classes=3).double().to(memory_format=layout)
        model.stem.conv.ws_eps = 1e-2
        torch.nn.init.normal_(model.head.fc.weight, std=0.1)
        optimizer = make(model)
        group = optimizer.param_groups[0]
        head = [group["params"].pop() for _ in range(2)]
        optimizer.add_param_group({"params": head, "lr": 0.3, "momentum": 0.0, "weight_decay": 0.0})
        for _ in range(5):
            optimizer.zero_grad()
            images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
            F.cross_entropy(network_of(model, optimizer)(images), torch.tensor([0, 1, 2, 1])).backward()
            optimizer.step()
        return model.state_dict()

    rule = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    truth = trained(lambda model: torch.optim.SGD(model.parameters(), **rule), lambda model, _: model)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = trained(
            lambda model: bitfast.StandardizedSGD(model, **rule), lambda _, optimizer: optimizer.network, layout
        )
        for name, expected in truth.items():
            error = (got[name] - expected).norm() / expected.norm()
            assert error <= 1e-10, f"{name}: relative error {error:.3g}"


def test_momentum_of_another_layout_continues_exactly():
    def run(layout):
        torch.manual_seed(0)
        model = bitfast.ResNetV2((1,), 0.5, num_classes=3)
        optimizer = bitfast.StandardizedSGD(model, lr=0.1)
        for step in range(4):
            if step == 2:
                state = optimizer.state_dict()
                for each in state["state"].values():
                    if each["momentum_buffer"].dim() == 4:
                        each["momentum_buffer"] = each["momentum_buffer"].contiguous(memory_format=layout)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            F.cross_entropy(optimizer.network(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
            optimizer.step()
        return model.state_dict()

    one, other = run(torch.contiguous_format), run(torch.channels_last)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_network_is_current_and_its_versions_count_up(dtype):
    model = bitfast.ResNetV2((1,), 0.5, num_classes=3)
    optimizer = bitfast.StandardizedSGD(model, lr=0.1, dtype=dtype)
    folded = {name: optimizer.network.get_submodule(name).weight for name in std_convs(model)}
    for _ in range(2):
        images = torch.randn(2, 3, 32, 32, dtype=dtype or torch.float32)
        F.cross_entropy(optimizer.network(images).float(), torch.tensor([0, 1])).backward()
        parameters = [*model.parameters(), *folded.values()]
        versions = [p._version for p in parameters]
        optimizer.step()
        assert all(p._version > version for p, version in zip(parameters, versions, strict=True))
        for name, w_hat in folded.items():
            w = model.get_submodule(name).weight
            assert torch.equal(w_hat, weight_standardize([w], model.ws_eps, w_hat.dtype)[0]), name
            assert w_hat.is_contiguous(memory_format=torch.channels_last)


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


@pytest.mark.parametrize("decoupled, decay_on", [(False, "all"), (False, "kernels"), (True, "kernels")])
def test_clipping_decay_and_averages(decoupled, decay_on, tmp_path):
    """Against clip_grad_norm_, SGD with parameter groups and averages by their definition, on the unfolded network.

    The clipped norm is that of the raw weights' gradients: it is reached, and it is another than that of the folded.
    """
    arrays = official.seeded_weights(DEPTHS, 0.5, num_classes=5)
    model = bitfast.ResNetV2(DEPTHS, 0.5, num_classes=5).double()
    bitfast.load_weights(model, official.write(arrays, tmp_path / "seeded.npz"))
    truth = official.to_tensors(arrays)
    rule = dict(weight_decay=0.1, decoupled=decoupled, decay_on=decay_on, clip_norm=1.0, ema_decay=0.7)
    ours = bitfast.StandardizedSGD(model, lr=0.1, **rule)
    kernels = [p for key, p in truth.items() if key.endswith("kernel")]
    others = [p for key, p in truth.items() if not key.endswith("kernel")]
    decays = (0.0 if decoupled else 0.1, 0.1 if decay_on == "all" else 0.0)
    groups = [{"params": p, "weight_decay": d} for p, d in zip((kernels, others), decays, strict=True)]
    plain = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    averages = {key: p.detach().clone() for key, p in truth.items()}

    generator = torch.Generator().manual_seed(2)
    for step in range(6):
        images = torch.randn(BATCH, 3, 20, 20, dtype=torch.float64, generator=generator)
        labels = torch.randint(5, (BATCH,), generator=generator)
        ours.zero_grad()
        plain.zero_grad()
        F.cross_entropy(ours.network(images), labels).backward()
        F.cross_entropy(official.forward(truth, DEPTHS, images), labels).backward()
        if step == 3:  # a norm below the limit is left alone
            for p in [*ours.network.parameters(), *truth.values()]:
                p.grad *= 1e-3
        before = [p.detach().clone() for p in kernels]
        norm = torch.nn.utils.clip_grad_norm_(truth.values(), 1.0, error_if_nonfinite=True)
        folded = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in ours.network.parameters()]))
        assert (norm > 1) == (step != 3) and abs(folded / norm - 1) > 0.1
        plain.step()
        ours.step()
        if decoupled:
            for p, old in zip(kernels, before, strict=True):
                p.data -= 0.1 * 0.1 * old
        for key, p in truth.items():
            averages[key] = 0.7 * averages[key] + 0.3 * p.detach()
        assert_equal(model, truth, step, 1e-5)
    networks = {"raw": model, "folded": ours.network}
    held = {(of, name): p.detach().clone() for of, net in networks.items() for name, p in net.named_parameters()}
    with ours.averages():
        assert_equal(model, averages, "average", 1e-5)
        for name, conv in std_convs(model).items():
            w_hat = weight_standardize([conv.weight], conv.ws_eps)[0]
            assert torch.equal(ours.network.get_parameter(f"{name}.weight"), w_hat)
    after = {(of, name): p for of, net in networks.items() for name, p in net.named_parameters()}
    assert all(torch.equal(held[key], p) for key, p in after.items())


def test_clip_grad_norm_returns_the_norm_of_the_raw_gradients():
    model = bitfast.ResNetV2(DEPTHS, 0.5, num_classes=5).double()
    torch.nn.init.normal_(model.head.fc.weight)
    images, labels = torch.randn(4, 3, 20, 20, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(model(images), labels).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    optimizer = bitfast.StandardizedSGD(model, lr=0.1)
    optimizer.zero_grad()
    F.cross_entropy(optimizer.network(images), labels).backward()
    assert optimizer.clip_grad_norm_(0.5).item() == pytest.approx(expected.item(), rel=1e-9)
    assert optimizer.clip_grad_norm_(0.5).item() == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("rule", [dict(decay_on="biases"), dict(clip_norm=0.0), dict(ema_decay=1.5)], ids=str)
def test_bad_rule(rule):
    with pytest.raises(ValueError, match=f"{next(iter(rule))} must be"):
        bitfast.StandardizedSGD(bitfast.ResNetV2((1,), 0.5, num_classes=2), lr=0.1, **rule)

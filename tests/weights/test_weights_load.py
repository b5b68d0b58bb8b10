"""load_weights: every layout ends up in the right tensors, with the right epsilon and head."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitfast.errors import UsageError
from bitfast.folding import fold
from bitfast.weights import load_weights


def assert_holds(model, arrays):
    """Every parameter of the model is the array of its place in the official definition, kernels transposed."""
    checked = set()

    def same(parameter, key):
        array = arrays[key]
        expected = np.transpose(array, (3, 2, 0, 1)) if array.ndim == 4 else array
        np.testing.assert_array_equal(parameter.detach().numpy(), expected, err_msg=key)
        checked.add(key)

    def same_norm(norm, key):
        same(norm.weight, f"{key}/gamma")
        same(norm.bias, f"{key}/beta")

    same(model.stem.conv.weight, "resnet/root_block/standardized_conv2d/kernel")
    for s, stage in enumerate(model.stages):
        for b, block in enumerate(stage.blocks):
            unit = f"resnet/block{s + 1}/unit{b + 1:02d}"
            for part, norm, conv in (("a", "norm1", "conv1"), ("b", "norm2", "conv2"), ("c", "norm3", "conv3")):
                same_norm(getattr(block, norm), f"{unit}/{part}/group_norm")
                same(getattr(block, conv).weight, f"{unit}/{part}/standardized_conv2d/kernel")
            if block.downsample is not None:
                same(block.downsample.conv.weight, f"{unit}/a/proj/standardized_conv2d/kernel")
    same_norm(model.norm, "resnet/group_norm")
    same(model.head.fc.weight, "resnet/head/conv2d/kernel")
    same(model.head.fc.bias, "resnet/head/conv2d/bias")
    assert checked == set(arrays)


def assert_same_state(model, state):
    own = model.state_dict()
    assert own.keys() == state.keys()
    for name, value in own.items():
        assert torch.equal(value, state[name]), name


def test_official_npz_tensor_by_tensor(network, arrays, npz, lines):
    model = network(eps=1e-3)
    report = load_weights(model, npz)
    assert_holds(model, arrays)
    assert (report.path, report.format, report.head, report.classes_in_file) == (npz, "official", "loaded", 5)
    assert report.ws_eps == model.ws_eps == model.stages[0].blocks[0].conv2.ws_eps == 1e-10
    assert lines() == []


def test_npz_with_numbered_layers_and_without_prefix(network, arrays, tmp_path):
    renamed = {}
    for number, (key, value) in enumerate(arrays.items()):
        key = key.replace(
            "/standardized_conv2d/", f"/standardized_conv2d_{number}/" if number % 2 else "/standardized_conv2d/"
        )
        renamed[key.removeprefix("resnet/")] = value
    np.savez(tmp_path / "w.npz", **renamed)
    model = network()
    load_weights(model, str(tmp_path / "w.npz"))
    assert_holds(model, arrays)


def test_a_kernel_is_not_its_mirror_image(network, arrays, npz):
    """HWIO: the first axis is the height."""
    load_weights(model := network(), npz)
    stored = arrays["resnet/root_block/standardized_conv2d/kernel"]
    assert model.stem.conv.weight[4, 2, 6, 1].item() == stored[6, 1, 2, 4]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar", ".safetensors"])
def test_timm_layout(network, tmp_path, suffix):
    source, model, path = network(seed=1), network(seed=2), tmp_path / f"w{suffix}"
    state = source.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(dict(state), path)
    report = load_weights(model, path)
    assert_same_state(model, state)
    assert (report.format, report.ws_eps, model.ws_eps) == ("timm", 1e-8, 1e-8)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_wrapper_prefixes(network, tmp_path, prefix):
    state = network(seed=1).state_dict()
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "w.pth")
    load_weights(model := network(), tmp_path / "w.pth")
    assert_same_state(model, state)


def test_wrappers_inside_a_name(network, tmp_path):
    state = network(seed=1).state_dict()
    inner = {}
    for name, value in state.items():
        name = name.replace(".blocks.0.", ".blocks.0._fsdp_wrapped_module.")
        inner[name.replace(".blocks.1.", "._orig_mod.blocks.1._checkpoint_wrapped_module.")] = value
    torch.save(inner, tmp_path / "w.pth")
    load_weights(model := network(), tmp_path / "w.pth")
    assert_same_state(model, state)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema"])
def test_nested_state_dict(network, tmp_path, key):
    state = network(seed=1).state_dict()
    torch.save({"epoch": 3, "optimizer": {"state": {}, "lr": 0.1}, key: state}, tmp_path / "w.pth")
    load_weights(model := network(), tmp_path / "w.pth")
    assert_same_state(model, state)


def test_two_dimensional_head(network, tmp_path):
    state = network(seed=1).state_dict()
    save_file({**state, "head.fc.weight": state["head.fc.weight"][:, :, 0, 0].contiguous()}, tmp_path / "w.safetensors")
    load_weights(model := network(), tmp_path / "w.safetensors")
    assert_same_state(model, state)


def test_transformers_layout(network, tmp_path):
    state, renamed = network(seed=1).state_dict(), {}
    for name, value in state.items():
        if name.startswith("head.fc"):
            name, value = name.replace("head.fc", "classifier.1"), value.flatten(1) if value.ndim == 4 else value
        elif name.startswith("stem.conv"):
            name = name.replace("stem.conv", "bit.embedder.convolution")
        else:
            name = ("bit." if name.startswith("norm") else "bit.encoder.") + name.replace("blocks", "layers")
        renamed[name] = value.contiguous()
    save_file(renamed, tmp_path / "w.safetensors")
    report = load_weights(model := network(), tmp_path / "w.safetensors")
    assert_same_state(model, state)
    assert (report.format, report.ws_eps) == ("transformers", 1e-8)


def test_checkpoint_of_the_released_training_code(network, tmp_path):
    """bit.pth.tar: {step, model, optim}, DataParallel's prefix, bit_pytorch's names."""
    state, renamed = network(seed=1).state_dict(), {}
    for name, value in state.items():
        if name.startswith("stages."):
            _, stage, _, block, leaf = name.split(".", 4)
            leaf = leaf.replace("norm", "gn").replace("downsample.conv", "downsample")
            name = f"body.block{int(stage) + 1}.unit{int(block) + 1:02d}.{leaf}"
        else:
            for ours, theirs in (("stem.", "root."), ("norm.", "head.gn."), ("head.fc.", "head.conv.")):
                if name.startswith(ours):
                    name = theirs + name.removeprefix(ours)
                    break
        renamed["module." + name] = value
    torch.save(
        {"step": 7, "model": renamed, "optim": {"state": {0: {"momentum_buffer": None}}}}, tmp_path / "b.pth.tar"
    )
    report = load_weights(model := network(), tmp_path / "b.pth.tar")
    assert_same_state(model, state)
    assert (report.format, report.ws_eps) == ("big_transfer", 1e-10)


def test_another_number_of_classes_zeroes_the_head_in_one_line(network, npz, lines):
    model = network(num_classes=14)
    report = load_weights(model, npz)
    assert lines() == ["head: 5 classes in BiT-tiny.npz, 14 here: new head, zero-initialized"]
    assert (report.head, report.classes_in_file) == ("zeroed", 5)
    assert not model.head.fc.weight.any() and not model.head.fc.bias.any()
    assert model.norm.weight.any()


def test_no_head_in_the_file(network, tmp_path, lines):
    torch.save(network(num_classes=0).state_dict(), tmp_path / "features.pth")
    model = network(seed=4)
    report = load_weights(model, tmp_path / "features.pth")
    assert lines() == ["head: none in features.pth, 5 here: new head, zero-initialized"]
    assert (report.head, report.classes_in_file) == ("zeroed", None)
    assert not model.head.fc.weight.any() and not model.head.fc.bias.any()


def test_model_without_head(network, npz, lines):
    report = load_weights(network(num_classes=0), npz)
    assert (report.head, report.classes_in_file, lines()) == ("none", 5, [])


def test_values_are_cast_to_the_parameters_dtype(network, npz, arrays):
    model = network().double()
    load_weights(model, npz)
    assert model.stem.conv.weight.dtype == torch.float64
    np.testing.assert_array_equal(model.norm.bias.detach().numpy(), arrays["resnet/group_norm/beta"].astype(np.float64))


def test_stated_epsilon_wins(network, tmp_path):
    state = network().state_dict()
    save_file(state, tmp_path / "w.safetensors", metadata={"ws_eps": "3e-09"})
    assert load_weights(network(), tmp_path / "w.safetensors").ws_eps == 3e-9


@pytest.mark.parametrize(("config", "eps"), [({}, 1e-8), ({"bitfast": {"ws_eps": 1e-10}}, 1e-10), (None, 1e-8)])
def test_model_and_run_folders(network, tmp_path, config, eps):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    state = network(seed=1).state_dict()
    save_file(state, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for path in (folder, folder.parent):
        model = network()
        assert load_weights(model, path).ws_eps == model.ws_eps == eps
        assert_same_state(model, state)


def test_a_folded_or_meta_model_is_refused(network, npz):
    with pytest.raises(UsageError, match="folded.*raw model"):
        load_weights(fold(network()), npz)
    with pytest.raises(UsageError, match="meta"):
        load_weights(network().to("meta"), npz)


def test_the_optimizers_view_stays_valid(network, npz):
    """Loading writes into the parameters; it does not replace them."""
    model = network()
    before = copy.copy(list(model.parameters()))
    load_weights(model, npz)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))

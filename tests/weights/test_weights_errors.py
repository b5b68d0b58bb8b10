"""A file that does not fit or cannot be read: one line that names file and reason, and a model left as it was."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitfast.errors import WeightsError
from bitfast.weights import load_weights


@pytest.fixture
def refused(network):
    """refused(path, model=None) -> the message of the WeightsError, after checking that nothing changed."""

    def attempt(path, model=None):
        model = model or network()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        eps = model.ws_eps
        with pytest.raises(WeightsError) as caught:
            load_weights(model, path)
        assert model.ws_eps == eps
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        message = str(caught.value)
        assert "\n" not in message and str(path) in message, message
        return message

    return attempt


def test_another_depth(refused, network, npz):
    message = refused(npz, network(depths=(2, 2, 2)))
    assert "18 missing (stages.0.blocks.1.norm1.weight, stages.0.blocks.1.norm1.bias, " in message
    assert ", ...)" in message
    assert "network of depths (1, 2, 1) and width 0.5: ResNetV2((1, 2, 1), 0.5)" in message


def test_another_width_lists_shapes_and_names_the_model(refused, network, tmp_path):
    torch.save(network(depths=(2, 2, 2, 2)).state_dict(), tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth", network(depths=(2, 2, 2, 2), width=1))
    assert "of another shape (stem.conv.weight (32, 3, 7, 7) in the file, (64, 3, 7, 7) here" in message
    assert 'it holds a resnet26x0_5: create_model("resnet26x0_5"), or --model resnet26x0_5' in message


def test_missing_and_unexpected_keys(refused, arrays, tmp_path):
    changed = dict(arrays)
    del changed["resnet/group_norm/beta"]
    changed["resnet/block1/unit01/d/other"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "w.npz", **changed)
    message = refused(tmp_path / "w.npz")
    assert "1 missing (norm.bias), 1 unexpected (resnet/block1/unit01/d/other); it is of the same depths" in message


def test_not_a_bit_network(refused, tmp_path):
    save_file({"conv1.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "w.safetensors")
    assert "1 unexpected (conv1.weight); it is not a BiT network" in refused(tmp_path / "w.safetensors")


def test_integers_are_not_weights(refused, network, tmp_path):
    state = network().state_dict()
    state["norm.weight"] = state["norm.weight"].int()
    torch.save(state, tmp_path / "w.pth")
    assert "norm.weight (512,) torch.int32 in the file, (512,) here" in refused(tmp_path / "w.pth")


def test_head_without_bias(refused, network, tmp_path):
    state = network().state_dict()
    del state["head.fc.bias"]
    torch.save(state, tmp_path / "w.pth")
    assert "1 missing (head.fc.bias)" in refused(tmp_path / "w.pth")


def test_input_channels(refused, network, npz):
    message = refused(npz, network(in_chans=1))
    assert "takes 3 input channels (in_chans), this model 1; build the model with in_chans=3" in message


def test_two_keys_for_one_tensor(refused, arrays, tmp_path):
    np.savez(tmp_path / "w.npz", **arrays, **{"group_norm/beta": arrays["resnet/group_norm/beta"]})
    assert "resnet/group_norm/beta and group_norm/beta are both norm.bias" in refused(tmp_path / "w.npz")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("content", [b"", b"just some text\n" * 40], ids=["empty", "text"])
def test_not_a_weights_file(refused, tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    message = refused(path)
    assert ("is empty" in message) if not content else any(word in message for word in ("damaged", "not a whole"))
    assert "copy or download it again" in message


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_truncated(refused, network, npz, tmp_path, suffix, keep):
    path, state = tmp_path / f"w{suffix}", network().state_dict()
    if suffix == ".npz":
        path.write_bytes(npz.read_bytes())
    else:
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert "copy or download it again" in refused(path)


def test_flipped_byte_in_an_npz(refused, npz):
    data = bytearray(npz.read_bytes())
    data[len(data) // 2] ^= 0xFF
    npz.write_bytes(data)
    assert "damaged" in refused(npz)


class Payload:
    """Stands for any class that a pickle would import and build."""


def test_pickles_are_not_run(refused, tmp_path):
    torch.save({"state_dict": Payload()}, tmp_path / "object.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload()))
    np.savez(tmp_path / "object.npz", x=np.array([Payload()], dtype=object))
    assert "not tensors alone" in refused(tmp_path / "object.pth")
    assert "not tensors alone" in refused(tmp_path / "plain.pth")
    assert "damaged or not an array archive" in refused(tmp_path / "object.npz")


@pytest.mark.parametrize("payload", [{"a": 1}, [1, 2], 3, {}])
def test_pickle_without_tensors(refused, tmp_path, payload):
    torch.save(payload, tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth")
    assert "not a state dict" in message or "not a BiT network" in message


def test_npz_of_other_things(refused, tmp_path, network):
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    assert "x is not an array of floats" in refused(tmp_path / "text.npz")
    torch.save(network().state_dict(), tmp_path / "torch.npz")
    assert "is not an array of floats" in refused(tmp_path / "torch.npz")


def test_paths(refused, tmp_path):
    assert "cannot be opened (No such file or directory)" in refused(tmp_path / "absent.npz")
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert "expected .npz, .safetensors" in refused(tmp_path / "weights.h5")
    assert "model.safetensors: cannot be opened" in refused(tmp_path)


@pytest.mark.parametrize("eps", ["none", "0", "-1e-8", "nan", "2"])
def test_bad_epsilon(refused, network, tmp_path, eps):
    save_file(network().state_dict(), tmp_path / "w.safetensors", metadata={"ws_eps": eps})
    assert f"ws_eps is '{eps}', expected a small positive number" in refused(tmp_path / "w.safetensors")


def test_bad_folder_config(network, tmp_path):
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="config.json: not a model's config.json"):
        load_weights(network(), tmp_path)

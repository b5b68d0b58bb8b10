"""save_weights: bit-exact round trips in the layouts of the ecosystem, written atomically, raw weights only."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bitfast.errors import UsageError, WeightsError
from bitfast.folding import fold
from bitfast.weights import load_weights, save, save_weights


def test_npz_round_trip_is_bit_exact(network, arrays, npz, tmp_path):
    model = network()
    load_weights(model, npz)
    save_weights(model, tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz", allow_pickle=False) as again:
        assert set(again.files) == set(arrays)
        for key, array in arrays.items():
            assert again[key].dtype == np.float32
            np.testing.assert_array_equal(again[key], array, err_msg=key)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_of_a_model(network, tmp_path, suffix, dtype, lines):
    source, model, path = network(seed=1).to(dtype), network(seed=2).to(dtype), tmp_path / f"w{suffix}"
    source.to(memory_format=torch.channels_last)
    save_weights(source, str(path))
    report = load_weights(model, path)
    assert (report.head, report.ws_eps, lines()) == ("loaded", 1e-10, [])
    for name, value in source.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_half_precision_and_no_head(network, tmp_path, suffix):
    source, model = network(num_classes=0, seed=1).bfloat16(), network(num_classes=0).bfloat16()
    save_weights(source, tmp_path / f"w{suffix}")
    load_weights(model, tmp_path / f"w{suffix}")
    for name, value in source.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_epsilon_travels(network, tmp_path, suffix):
    save_weights(network(eps=1e-8), tmp_path / f"w{suffix}")
    assert load_weights(network(eps=1e-3), tmp_path / f"w{suffix}").ws_eps == 1e-8
    save_weights(network(eps=1e-10), tmp_path / f"w{suffix}")
    assert load_weights(network(eps=1e-3), tmp_path / f"w{suffix}").ws_eps == 1e-10


def test_an_npz_says_that_it_loses_the_epsilon(network, tmp_path, lines):
    save_weights(network(eps=1e-8), tmp_path / "w.npz")
    (line,) = lines()
    assert "no place for ws_eps=1e-08" in line and "read as 1e-10" in line


def test_files_are_plain_for_other_readers(network, tmp_path):
    model = network()
    save_weights(model, tmp_path / "w.pth")
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    assert list(state) == list(model.state_dict())
    network(seed=5).load_state_dict(state)
    save_weights(model, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "ws_eps": "1e-10"}
        assert set(file.keys()) == set(model.state_dict())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_a_failed_save_leaves_the_old_file(network, tmp_path, suffix, monkeypatch):
    path = tmp_path / f"w{suffix}"
    save_weights(network(seed=1), path)
    before = path.read_bytes()

    def half_then_full_disk(model, aside):
        aside.write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(save._WRITERS, suffix, half_then_full_disk)
    with pytest.raises(WeightsError, match="No space left on device.*check the folder and the free space"):
        save_weights(network(seed=2), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_errors(network, tmp_path):
    with pytest.raises(UsageError, match="folded.*raw model"):
        save_weights(fold(network()), tmp_path / "w.npz")
    with pytest.raises(UsageError, match="cannot save weights as '.h5'; expected .npz, .safetensors, .pth, .pt"):
        save_weights(network(), tmp_path / "w.h5")
    with pytest.raises(WeightsError, match="cannot be written.*No such file or directory"):
        save_weights(network(), tmp_path / "no" / "w.npz")
    assert list(tmp_path.iterdir()) == []

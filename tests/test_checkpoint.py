"""Checkpoints: whole or not there, found out when damaged, the newest two and the best, and any number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bitfast.checkpoint import CheckpointError, Checkpoints, newest
from bitfast.errors import DataError
from bitfast.model import ResNetV2
from bitfast.optim import StandardizedSGD

FACTS = {"micro_batch": 8, "threads": 2, "ws_eps": 1e-10}


def network(seed=0):
    torch.manual_seed(seed)
    model = ResNetV2((1,), 1, num_classes=3)
    optimizer = StandardizedSGD(model, lr=0.1)
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.randn_like(p)
    return model, optimizer


def state(model, optimizer):
    momentum = {f"m.{name}": optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    return {name: tensor.clone() for name, tensor in {**model.state_dict(), **momentum}.items()}


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def written(folder, steps=(2, 4), values=None):
    """Checkpoints after these steps, each of its own network; returns the state of each."""
    states = {}
    with Checkpoints(folder, {"lr": 0.1}) as checkpoints:
        for step in steps:
            model, optimizer = network(step)
            states[step] = state(model, optimizer)
            checkpoints.save(step, model, optimizer, FACTS)
            if values:
                checkpoints.rate(step, "top1", values[step])
    return states


def steps_in(folder):
    return sorted(int(path.name[5:]) for path in folder.iterdir())


def restored(found):
    model, optimizer = network(99)
    found.restore(model, optimizer)
    folded = {name: p.clone() for name, p in optimizer.network.named_parameters()}
    optimizer.refresh()
    assert_equal(folded, dict(optimizer.network.named_parameters()))
    return state(model, optimizer)


def test_what_was_saved_comes_back_though_training_went_on(tmp_path):
    model, optimizer = network()
    before = state(model, optimizer)
    with Checkpoints(tmp_path, {"lr": 0.1}) as checkpoints:
        checkpoints.save(3, model, optimizer, FACTS)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
    found = newest(tmp_path)
    assert (found.step, found.facts) == (3, FACTS)
    assert_equal(restored(found), before)
    manifest = json.loads((tmp_path / "step-00000003" / "manifest.json").read_text())
    assert manifest["config"] == {"lr": 0.1}
    assert {path.suffix for path in (tmp_path / "step-00000003").iterdir()} == {".safetensors", ".json"}


def cut(shard, manifest):
    shard.write_bytes(shard.read_bytes()[:-1])


def flip(shard, manifest):
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)


def lose(shard, manifest):
    shard.unlink()


def change(shard, manifest):
    manifest.write_text(manifest.read_text().replace('"micro_batch": 8', '"micro_batch": 9'))


def empty(shard, manifest):
    manifest.write_text("")


def lose_manifest(shard, manifest):
    manifest.unlink()


DAMAGES = [
    (cut, "bytes of"),
    (flip, "another SHA-256"),
    (lose, "No such file"),
    (change, "not as it was written"),
    (empty, "Expecting value"),
    (lose_manifest, "No such file"),
]


@pytest.mark.parametrize("damage, why", DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, damage, why, capsys):
    states = written(tmp_path)
    folder = tmp_path / "step-00000004"
    damage(next(folder.glob("*.safetensors")), folder / "manifest.json")
    found = newest(tmp_path)
    said = capsys.readouterr().err
    assert f"checkpoint {folder} is damaged" in said and why in said and said.count("\n") == 1
    assert found.step == 2
    assert_equal(restored(found), states[2])

    with Checkpoints(tmp_path, {}, start=2) as checkpoints:
        checkpoints.save(3, *network(), FACTS)
    assert steps_in(tmp_path) == [2, 3], "the damaged one is of work that was done again"


def test_all_damaged(tmp_path):
    written(tmp_path)
    for shard in tmp_path.rglob("*.safetensors"):
        shard.write_bytes(b"")
    with pytest.raises(DataError, match=r"no checkpoint in .* can be read \(2 damaged\)"):
        newest(tmp_path)
    assert newest(tmp_path / "nothing") is None


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    values = {1: 0.5, 2: 0.9, 3: float("nan"), 4: 0.7, 5: 0.9, 6: 0.1}
    written(tmp_path / "a", range(1, 5), values)
    assert steps_in(tmp_path / "a") == [2, 3, 4]
    written(tmp_path / "b", range(1, 7), values)
    assert steps_in(tmp_path / "b") == [5, 6], "of equally good ones the newer"
    written(tmp_path / "c", range(1, 7))
    assert steps_in(tmp_path / "c") == [5, 6]


def test_leftovers_of_a_kill_are_removed(tmp_path):
    written(tmp_path, [2])
    (tmp_path / ".step-00000003.tmp").mkdir()
    (tmp_path / ".step-00000003.tmp" / "shard").write_text("half")
    (tmp_path / ".step-00000001.safetensors.17.tmp").write_text("half")
    assert newest(tmp_path).step == 2
    Checkpoints(tmp_path, {}, start=2)
    assert steps_in(tmp_path) == [2]


def test_the_single_files_of_earlier_versions_are_continued(tmp_path):
    model, optimizer = network()
    expected = state(model, optimizer)
    names = {name: f"momentum.{name[2:]}" if name.startswith("m.") else f"model.{name}" for name in expected}
    tensors = {names[name]: tensor.contiguous() for name, tensor in expected.items()}
    save_file(tensors, tmp_path / "step-00000007.safetensors", {"step": "7", "facts": json.dumps(FACTS)})
    found = newest(tmp_path)
    assert (found.step, found.facts) == (7, FACTS)
    assert_equal(restored(found), expected)
    with Checkpoints(tmp_path, {}, start=7) as checkpoints:
        for step in (8, 9):
            checkpoints.save(step, model, optimizer, FACTS)
    assert steps_in(tmp_path) == [8, 9]


def test_a_failed_write_is_an_error_and_harms_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(2, *network(), FACTS)
    checkpoints.wait()
    (tmp_path / ".step-00000004.tmp").write_text("in the way")
    checkpoints.save(4, *network(), FACTS)
    with pytest.raises(
        CheckpointError, match=r"after step 4 could not be written .*FileExistsError.*--resume"
    ) as caught:
        checkpoints.save(6, *network(), FACTS)
    assert "\n" not in str(caught.value) and checkpoints.failed
    assert steps_in(tmp_path) == [2] and newest(tmp_path).step == 2


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model, optimizer = network()
    with torch.no_grad():
        model.norm.weight[3] = torch.inf
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(2, model, optimizer, FACTS)
    with pytest.raises(CheckpointError, match="model.norm.weight is not finite"):
        checkpoints.wait()
    assert steps_in(tmp_path) == []


SHARDED = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from test_checkpoint import FACTS, network, state
from bitfast import checkpoint, sharding
from bitfast.optim import StandardizedSGD

torch.set_num_threads(1)
dist.init_process_group("gloo")
folder, what = Path(sys.argv[1]), sys.argv[2]
model, _ = network(0 if what == "save" else 99)
optimizer = StandardizedSGD(model, lr=0.1, mesh=sharding.mesh(torch.device("cpu")))
for p in model.parameters():
    optimizer.state[p]["momentum_buffer"] = p.detach() * 2
if what == "save":
    with checkpoint.Checkpoints(folder, {}) as checkpoints:
        checkpoints.save(5, model, optimizer, FACTS)
else:
    checkpoint.newest(folder).restore(model, optimizer)
    got = {name: sharding.whole(tensor) for name, tensor in state(model, optimizer).items()}
    raw = network(0)[0].state_dict()
    for name, tensor in raw.items():
        assert torch.equal(got[name], tensor), name
        assert torch.equal(got["m." + name], tensor * 2), name
dist.destroy_process_group()
"""


def in_processes(script, count, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), script]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": ".:tests"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_four_processes_write_and_one_two_or_eight_go_on(tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    folder = tmp_path / "checkpoints"
    in_processes(script, 4, folder, "save")
    assert len(list((folder / "step-00000005").glob("*.safetensors"))) == 4
    for count in (2, 8):
        in_processes(script, count, folder, "restore")
    got, expected = restored(newest(folder)), network(0)[0].state_dict()
    assert_equal({name: got[name] for name in expected}, expected)
    assert_equal({name: got[f"m.{name}"] for name in expected}, {name: t * 2 for name, t in expected.items()})

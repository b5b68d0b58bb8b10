"""Any number of processes is one run: same losses and weights, exact evaluation, one message for what goes wrong."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from photos import write_class_folders
from safetensors.torch import load_file

import bitfast
from bitfast.checkpoint import newest
from bitfast.run import RunFolder

ROOT = Path(__file__).parents[1]
# A learning rate at which rounding does not grow. From scratch on images this small it does at 0.003, threefold in each
# step, and at 0.0003 from the twelfth step on, whatever is done: micro-batches of one process part as far.
RUN = dict(model="resnet26x0_5", steps=40, batch_size=16, resize=36, crop=32, lr=0.00005, eval_every=0, loader="pillow")
# Parts of 4 and 5 images (2 and 3 MixUp pairs), micro-batches of 2, a validation split that two do not divide.
UNEVEN = {**RUN, "steps": 4, "batch_size": 10, "micro_batch": 2, "mixup": 0.3, "val_split": 0.2, "eval_every": 2}
# Clipping that acts, decoupled decay, sigmoids, and an average of the weights, which is what is evaluated and saved.
UPSTREAM = dict(
    model="resnet26x0_5", recipe="big-vision", steps=6, batch_size=8, crop=32, lr=0.01, warmup_steps=2, clip_norm=0.5,
    weight_decay=0.1, ema=True, ema_decay=0.7, val_split=0.2, loader="pillow",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=15)


@pytest.fixture(scope="module")
def one(photos, tmp_path_factory):
    """The runs in one process: function of a name, which makes each once."""
    folder, made = tmp_path_factory.mktemp("one"), {}

    def run(name, call=bitfast.finetune, **options):
        if name not in made:
            made[name] = call(photos, out=folder / name, **options)
        return folder / name

    return run


def run_jobs(folder, processes, jobs, *options, limit=240):
    """{name: [what each process returned]} of jobs in one group of that many processes, and what they all said.

    A job's run is in folder / name.
    """
    for name, job in jobs.items():
        job["options"]["out"] = folder / name
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(ROOT / "tests" / "ranks.py"), str(folder / "jobs.json"), *options],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=limit,
    )
    assert done.returncode == 0, done.stderr
    outcomes = {
        name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(processes)] for name in jobs
    }
    return outcomes, done.stderr


def as_after_a_kill(folder, copy):
    """A copy of a finished run as it was before its last checkpoint."""
    shutil.copytree(folder, copy)
    (copy / "result.json").unlink()
    shutil.rmtree(max((copy / "checkpoints").glob("step-*")))
    return copy


@pytest.fixture(scope="module")
def two(photos, one, tmp_path_factory):
    """(folder, outcomes, stderr) of the runs of two processes; one group for all of them."""
    folder = tmp_path_factory.mktemp("two")
    torn = write_class_folders(tmp_path_factory.mktemp("data") / "torn", per_class=15)
    name = torn / "plum" / "3.png"
    quick = {**RUN, "steps": 24, "batch_size": 4, "val_split": 0.0, "cache": "off"}
    jobs = {
        "ddp": {"options": {**RUN, "data": photos}},
        "fsdp": {"options": {**RUN, "data": photos, "parallel": "fsdp"}},
        "uneven-fsdp": {"options": {**UNEVEN, "data": photos, "parallel": "fsdp", "memory": "save"}},
        "full": {"options": {**RUN, "data": photos, "steps": 4}, "full": 2},
        "upstream-fsdp": {"options": {**UPSTREAM, "data": photos, "parallel": "fsdp"}, "call": "pretrain"},
        "resumed": {"options": {"resume": True, "parallel": "fsdp"}},
        "broken": {"options": {**RUN, "data": photos, "steps": 4}, "broken": 2},
        "stopped": {"options": {**quick, "data": torn}, "damage": [1, name]},
        "missing": {"options": {**quick, "data": torn / "nowhere"}},
        "too-many": {"options": {**quick, "data": photos, "batch_size": 1}},
    }
    as_after_a_kill(one("uneven", **UNEVEN), folder / "resumed")
    outcomes, said = run_jobs(folder, 2, jobs)
    return folder, outcomes, said


@pytest.fixture(scope="module")
def more(photos, tmp_path_factory):
    """As two."""
    folder = tmp_path_factory.mktemp("more")
    jobs = {
        "fp32": {"options": {**UNEVEN, "data": photos, "reduce_dtype": "fp32"}},
        "uneven": {"options": {**UNEVEN, "data": photos}},
        "upstream": {"options": {**UPSTREAM, "data": photos}, "call": "pretrain"},
    }
    outcomes, said = run_jobs(folder, 2, jobs)
    return folder, outcomes, said


def in_lanes(default, *slow):
    """Parametrizes a test by (fixture, job): one of `two`, and those of `more` in the slow lane."""
    jobs = [("two", default), *(pytest.param("more", name, marks=pytest.mark.slow) for name in slow)]
    return pytest.mark.parametrize("launch, name", jobs)


def losses(folder):
    return torch.tensor([r["loss"] for r in RunFolder(folder).records() if r["kind"] == "train"], dtype=torch.float64)


def evaluations(folder):
    return [r for r in RunFolder(folder).records() if r["kind"] == "eval"]


def assert_same_run(got, expected):
    """Losses to 1e-5 of themselves, weights to 1e-5."""
    assert len(losses(got)) == len(losses(expected))
    torch.testing.assert_close(losses(got), losses(expected), rtol=1e-5, atol=0)
    weights, truth = (load_file(RunFolder(run).model / "model.safetensors") for run in (got, expected))
    assert weights.keys() == truth.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(
            weight, truth[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_two_processes_are_one_run(two, one):
    folder, outcomes, _ = two
    alone = one("run", **RUN)
    assert_same_run(folder / "ddp", alone)
    first, second = outcomes["ddp"]
    assert first == second, "every process returns the Result of the run, and keeps as much"
    assert len(first["peak_memory_bytes"]) == 2 and all(peak > 2**27 for peak in first["peak_memory_bytes"])
    head = load_file(RunFolder(alone).model / "model.safetensors")["head.fc.weight"]
    assert head.abs().max() > 5e-4, "it begins with zeros, and has to move for the comparison to mean anything"


def test_fsdp_is_the_same_run(two, one):
    folder, _, said = two
    assert_same_run(folder / "fsdp", one("run", **RUN))
    assert_same_run(folder / "fsdp", folder / "ddp")
    assert "each with a share of the network" in said and "each with the whole network" in said


@in_lanes("uneven-fsdp", "uneven", "fp32")
def test_uneven_parts_and_mixup(request, one, launch, name):
    folder, outcomes, _ = request.getfixturevalue(launch)
    alone = one("uneven", **UNEVEN)
    assert_same_run(folder / name, alone)
    got, expected = evaluations(folder / name)[0], evaluations(alone)[0]
    assert got["images"] == expected["images"] == outcomes[name][0]["metrics"]["images"] == 9
    assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5) and got["top1"] == expected["top1"]
    rows = [list(csv.DictReader((run / "predictions_val.csv").open())) for run in (folder / name, alone)]
    assert [row["path"] for row in rows[0]] == [row["path"] for row in rows[1]]
    assert [row["predicted"] for row in rows[0]] == [row["predicted"] for row in rows[1]]


def test_only_the_first_process_writes_and_speaks(two):
    folder, _, said = two
    records = RunFolder(folder / "ddp").records()
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(40))
    assert json.loads((folder / "ddp" / "env.json").read_text())["processes"] == 2
    assert said.count(f"report {folder / 'ddp' / 'report.html'}") == 1
    assert not list(folder.rglob("*.tmp"))


def test_out_of_memory_in_one_halves_all(two, one):
    folder, _, said = two
    assert said.count("out of memory: micro-batch 8 -> 4") == 1 and said.count("micro-batch 4 -> 2") == 1
    assert_same_run(folder / "full", one("four", **{**RUN, "steps": 4}))


def test_a_bad_image_in_one_stops_all(two):
    folder, outcomes, _ = two
    first, second = outcomes["stopped"]
    assert first == second and first["exit_code"] == 3
    assert "plum/3.png went bad during the run" in first["error"] and "--bad-images skip" in first["error"]
    assert 1 < len(losses(folder / "stopped")) < 24
    assert list((folder / "stopped" / "checkpoints").iterdir())


def test_an_error_in_one_is_told_to_all(two):
    _, outcomes, _ = two
    first, second = outcomes["broken"]
    assert first == {"error": "BitfastError: process 1 failed: RuntimeError: a mistake", "exit_code": 1}
    assert second == {"error": "RuntimeError: a mistake", "exit_code": None}


@in_lanes("upstream-fsdp", "upstream")
def test_clipping_decay_and_averages(request, one, launch, name):
    folder, _, _ = request.getfixturevalue(launch)
    alone = one("upstream", bitfast.pretrain, **UPSTREAM)
    assert_same_run(folder / name, alone)
    got, expected = evaluations(folder / name)[-1], evaluations(alone)[-1]
    assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5) and got["images"] == expected["images"] == 9
    last = load_file(next(newest(alone / "checkpoints").path.glob("*.safetensors")))
    saved = load_file(RunFolder(alone).model / "model.safetensors")["head.fc.weight"]
    assert torch.equal(saved, last["average.head.fc.weight"])
    assert (saved - last["model.head.fc.weight"]).abs().max() > 1e-4, "the average is saved, not the last weights"


def test_checkpoints_of_one_and_of_shares(two, one, tmp_path):
    """One process goes on from FSDP's checkpoint, and FSDP from one process's."""
    folder, outcomes, said = two
    alone = one("uneven", **UNEVEN)
    assert f"resuming {folder / 'resumed'} at step 3" in said
    assert_same_run(folder / "resumed", alone)
    metrics = json.loads((alone / "result.json").read_text())["metrics"]
    assert outcomes["resumed"][0]["metrics"] == pytest.approx(metrics, rel=1e-5)
    copy = as_after_a_kill(folder / "uneven-fsdp", tmp_path / "run")
    bitfast.finetune(out=copy, resume=True)
    assert_same_run(copy, alone)


def test_fsdp_keeps_half(two):
    _, outcomes, _ = two
    for whole, share in zip(outcomes["ddp"], outcomes["fsdp"], strict=True):
        assert share["kept_bytes"] < 0.52 * whole["kept_bytes"], "norms are whole, all else is half"


def test_four_processes_in_a_few_steps(photos, one, tmp_path):
    """Two runs after one another, each in a process group of its own. With three classes one share has no filter of
    the head."""
    jobs = {name: {"options": {**UNEVEN, "data": photos, "parallel": name}} for name in ("ddp", "fsdp")}
    outcomes, _ = run_jobs(tmp_path, 4, jobs, "apart", limit=120)
    for name in jobs:
        assert_same_run(tmp_path / name, one("uneven", **UNEVEN))
        assert len(outcomes[name][3]["peak_memory_bytes"]) == 4


@pytest.mark.slow
def test_four_processes_are_one_run(photos, one, tmp_path):
    run_jobs(tmp_path, 4, {"run": {"options": {**RUN, "data": photos}}}, "apart", limit=120)
    assert_same_run(tmp_path / "run", one("run", **RUN))


@pytest.mark.slow
def test_out_of_memory_in_a_share_of_the_network_ends_all(photos, tmp_path):
    """The forwards of the others wait for this one's: it can only say so and go."""
    options = {**RUN, "data": photos, "steps": 4, "parallel": "fsdp"}
    outcomes, said = run_jobs(tmp_path, 2, {"run": {"options": options, "full": 2}}, "apart", limit=60)
    first, second = outcomes["run"]
    assert second["exit_code"] == 4 and "a micro-batch of 8 at 32 px does not fit" in second["error"]
    assert first["error"].startswith("ProcessLost: another process of this run ended")
    assert said.count("bitfast: error in process 1: a micro-batch of 8") == 1


@pytest.mark.slow
def test_any_micro_batch_is_the_same_run(photos, tmp_path):
    options = {**RUN, "batch_size": 64}
    for size in (4, 16, 64):
        bitfast.finetune(photos, out=tmp_path / str(size), micro_batch=size, **options)
    for size in (4, 16):
        assert_same_run(tmp_path / str(size), tmp_path / "64")


@pytest.mark.slow
def test_peak_memory_is_lower_with_fsdp(photos, tmp_path):
    """Of a large network on tiny images, whose weights, gradients and momentum are most of the memory.

    With memory="save": an allocator that keeps what is freed keeps gathered weights too, and the peak is no lower.
    """
    peaks = {}
    for parallel in ("ddp", "fsdp"):
        folder = tmp_path / parallel
        folder.mkdir()
        options = dict(
            model="resnet50x1", steps=2, batch_size=4, resize=36, crop=32, val_split=0.0, loader="pillow", memory="save"
        )
        options |= dict(data=photos, parallel=parallel, save_every=2)
        outcomes, said = run_jobs(folder, 2, {"run": {"options": options}}, "apart")
        peaks[parallel] = outcomes["run"][0]["peak_memory_bytes"]
        assert "peak memory: " + ", ".join(f"{peak / 2**30:.2f}" for peak in peaks[parallel]) + " GB" in said
    assert all(b < a - 100 * 2**20 for a, b in zip(peaks["ddp"], peaks["fsdp"], strict=True)), peaks


def test_mistakes_are_mistakes_of_all(two):
    _, outcomes, _ = two
    assert {job["exit_code"] for job in outcomes["missing"]} == {3}
    assert all("nowhere" in job["error"] for job in outcomes["missing"])
    assert all(
        "a batch of 1 images is too small for 2 processes" in job["error"] and job["exit_code"] == 2
        for job in outcomes["too-many"]
    )

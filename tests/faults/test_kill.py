"""Runs that are killed and stopped, and continued, are the runs that nobody touched."""

import random
import signal
import time

import pytest
import torch
from faults.processes import OPTIONS, Run, flags, images, leftovers, losses
from safetensors.torch import load_file

from bitfast.checkpoint import newest

STEPS = 60
LONG = {**OPTIONS, "steps": STEPS, "lr": 0.003, "eval_every": 15, "save_every": 5}
SHORT = {**OPTIONS, "steps": 24, "lr": 0.02, "eval_every": 8, "save_every": 2}


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def whole_run(photos, folder, options):
    run = Run(folder, [photos, "--out", folder, *flags(**options)])
    run.finish()
    return folder


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    return whole_run(photos, tmp_path_factory.mktemp("runs") / "whole", LONG)


@pytest.fixture(scope="module")
def short(photos, tmp_path_factory):
    return whole_run(photos, tmp_path_factory.mktemp("runs") / "short", SHORT)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_stopped_and_resumed_on_another_number_of_processes(whole, photos, tmp_path, ranks):
    """60 steps = 20, kill -9, 20 more, SIGTERM, the rest: to the bit in one process, else up to rounding."""
    out = tmp_path / "run"
    run = Run(out, [photos, "--out", out, *flags(**LONG)])
    run.wait_for(20)
    assert run.kill() == [-signal.SIGKILL]
    run = Run(out, ["--resume", "--out", out])
    run.wait_for(40)
    run.send(signal.SIGTERM)
    assert run.end() == [75], run.log.read_text()
    stopped = len(losses(out))
    assert 40 <= stopped < STEPS and newest(out / "checkpoints").step == stopped
    Run(out, ["--resume", "--out", out], ranks=ranks).finish()

    expected, got = losses(whole), losses(out)
    assert got[:stopped] == expected[:stopped]
    if ranks == 1:
        assert got == expected and images(out) == images(whole)
    else:
        assert [step for step, _ in got] == list(range(STEPS))
        torch.testing.assert_close(
            torch.tensor([loss for _, loss in got]), torch.tensor([loss for _, loss in expected]), rtol=1e-5, atol=0
        )
        joined = {step: sum(parts, []) for step, parts in images(out).items() if step >= stopped}
        assert joined == {step: parts[0] for step, parts in images(whole).items() if step >= stopped}
    final, same = weights(whole), weights(out)
    for name, tensor in final.items():
        torch.testing.assert_close(same[name], tensor, rtol=0, atol=0 if ranks == 1 else 1e-6)
    assert not leftovers(out)


def kill_and_resume(whole, photos, out, options, kills, seed):
    """Killed `kills` times at random instants, then finished: no step before a checkpoint is done again."""
    chance = random.Random(seed)
    arguments, behind = [photos, "--out", out, *flags(**options)], 0
    for _ in range(kills):
        run = Run(out, arguments)
        if chance.random() < 0.8 or not behind:
            run.wait_for(min(behind + chance.randint(1, 4), options["steps"] - 1))
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0, 0.5))
        run.kill()
        assert len(leftovers(out)) <= 3, "of the last kill, not of all"
        folders = [int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")]
        found = newest(out / "checkpoints")
        assert (found.step if found else 0) == max(folders, default=0) >= behind
        assert losses(out) == losses(whole)[: len(losses(out))]
        behind = found.step if found else 0
        arguments = ["--resume", "--out", out]
    Run(out, arguments).finish()
    assert losses(out) == losses(whole)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(out).items())
    assert not leftovers(out) and len(list((out / "checkpoints").iterdir())) <= 3


def test_killed_at_six_random_instants(short, photos, tmp_path):
    kill_and_resume(short, photos, tmp_path / "run", SHORT, 6, seed=6)


@pytest.mark.slow
def test_killed_at_thirty_random_instants(whole, photos, tmp_path):
    kill_and_resume(whole, photos, tmp_path / "run", {**LONG, "save_every": 2}, 30, seed=30)


# A write is: fsync of shard, manifest, folder; replace of manifest, folder; fsync. The third one removes the first.
# With each: the step of the newest whole checkpoint that it leaves.
INSTANTS = {
    ("fsync", 1): 0,
    ("fsync", 6): 2,
    ("replace", 3): 2,
    ("replace", 4): 2,
    ("replace", 7): 6,
    ("unlink", 4): 6,
    ("rmdir", 1): 6,
}


@pytest.mark.parametrize("fatal, last", INSTANTS.items(), ids=str)
def test_killed_inside_the_writing_of_a_checkpoint(short, photos, tmp_path, fatal, last):
    out = tmp_path / "run"
    run = Run(out, [photos, "--out", out, *flags(**SHORT)], fatal=fatal)
    assert run.end() == [-signal.SIGKILL], run.log.read_text()
    assert len(losses(out)) < SHORT["steps"]
    assert bool(leftovers(out)) == (fatal != ("replace", 7)), "that one is after a write and before the first removal"
    found = newest(out / "checkpoints")
    assert (found.step if found else 0) == last
    Run(out, ["--resume", "--out", out]).finish()
    assert losses(out) == losses(short) and not leftovers(out)


def test_a_signal_to_one_process_stops_all_at_the_same_step(photos, tmp_path):
    out = tmp_path / "run"
    run = Run(out, [photos, "--out", out, *flags(**{**LONG, "save_every": 1000, "eval_every": 0})], ranks=2)
    run.wait_for(3)
    run.send(signal.SIGUSR1, rank=1)
    assert run.end() == [75, 75], run.log.read_text()
    done = len(losses(out))
    assert newest(out / "checkpoints").step == done < STEPS
    assert f"stopped at step {done} of {STEPS} and saved" in run.log.read_text()


def test_a_second_signal_stops_at_once(photos, tmp_path):
    out = tmp_path / "run"
    run = Run(out, [photos, "--out", out, *flags(**{**LONG, "batch_size": 512, "micro_batch": 512})])
    while not run.folder.config.is_file() or "op " not in run.log.read_text():
        assert run.processes[0].is_alive(), run.log.read_text()
        time.sleep(0.01)
    time.sleep(0.5)
    run.send(signal.SIGTERM)
    time.sleep(0.2)
    run.send(signal.SIGTERM)
    assert run.end() == [-signal.SIGTERM], run.log.read_text()

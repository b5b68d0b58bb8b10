"""The benchmarks of whole networks run, and write what they say they write. Speed is not tested."""

import json
from dataclasses import replace

import pytest
from peers import import_timm

from benchmarks import harness
from benchmarks.models import bench_infer, bench_train, rounds
from benchmarks.models.command_line import EAGER
from benchmarks.models.peers import FLOOR, INSIDE, OURS, PROVIDERS

TINY = ["--model", "resnet26x0_5", "--px", "32", "--batch", "2", "--rounds", "1", "--seconds", "0", "--threads", "1"]


@pytest.fixture(autouse=True)
def temporary_results(tmp_path, monkeypatch, threads):
    import_timm()
    monkeypatch.setattr(harness, "RESULTS", tmp_path)


@pytest.mark.parametrize("bench, name", [(bench_train, "train_cpu"), (bench_infer, "infer_cpu")])
def test_times_every_eager_provider(bench, name, tmp_path, capsys):
    bench.main(TINY)
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["threads"] == 1 and record["torch"]
    rows = {row["provider"]: row for row in record["rows"]}
    assert list(rows) == EAGER
    for row in rows.values():
        assert row["rounds"] == 1 and row["case"].endswith("resnet26x0_5 32 px b2 float32")
        assert row["lowest_ms"] == row["median_ms"] > 0 and row["images_per_s"] > 0
    assert rows[OURS]["ours_faster"] == rows[FLOOR]["of_convolutions"] == 1
    assert "best peer" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["training", "inference"])
def test_a_wrong_provider_is_not_timed(task, monkeypatch, capsys):
    """A network that is right at first, and wrong once it has been trained: its optimizer does nothing."""
    right = getattr(PROVIDERS[OURS], task)

    class Wrong:
        def training(self, setting):
            call = right(setting)
            first = call()
            return lambda: first

        def inference(self, setting):
            call = right(setting)
            return lambda: call() * 1.01

    monkeypatch.setitem(PROVIDERS, OURS, Wrong())
    bench = bench_train if task == "training" else bench_infer
    with pytest.raises(AssertionError, match=f"{task} .*, bitfast: logits of call {2 if task == 'training' else 1}"):
        bench.main([*TINY, "--providers", OURS])
    assert capsys.readouterr().out == ""


def test_low_precision_is_held_to_the_definition_in_it():
    bench_infer.main([*TINY, "--dtype", "bfloat16", "--providers", OURS, "timm channels_last"])


@pytest.mark.parametrize("bench", [bench_train, bench_infer])
def test_accelerated_timm_is_held_to_the_definition(bench, capsys):
    bench.main([*TINY, "--providers", INSIDE])
    assert INSIDE in capsys.readouterr().out


def test_memory_of_a_step(tmp_path):
    bench_train.main([*TINY, "--memory", "--providers", "timm", OURS])
    timm, ours = json.loads((tmp_path / "train_cpu_memory.json").read_text())["rows"]
    assert timm["of_timm"] == 1 and ours["of_timm_channels_last"] is None
    assert ours["step_mib"] > 3 * 4 and ours["of_timm"] > 0  # gradients and momentum alone are more


def test_ratios_are_within_a_round():
    times = {"timm": [2.0, 30.0, 4.0], OURS: [1.0, 10.0, 4.0]}
    row = rounds._row("case", 8, "timm", times, 0.0)
    assert (row.median_ms, row.ours_faster, row.of_convolutions, row.images_per_s) == (4.0, 2.0, None, 2000.0)


def test_pieces_of_one_commit_share_a_file(tmp_path):
    a, b = (harness.Row(case, "ours", 1.0, 1.0, (1.0, 1.0), 3, 8, 1.0, 100.0) for case in "ab")
    path = harness.save("pieces", [a, b])

    def kept():
        return [(row["case"], row["median_ms"]) for row in json.loads(path.read_text())["rows"]]

    harness.save("pieces", [replace(b, median_ms=2.0)], keep=True)
    assert kept() == [("a", 1.0), ("b", 2.0)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "another"}))
    harness.save("pieces", [b], keep=True)
    assert kept() == [("b", 1.0)]


def test_input_providers_are_checked_and_timed_in_turn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nvidia.dali")
    from benchmarks.data import bench_input

    monkeypatch.setattr(bench_input, "RESULTS", tmp_path)
    for only in ("20:16", "inception:16"):
        bench_input.main(["--only", only, "--images", "32", "--rounds", "1", "--name", "input"])
    record = json.loads((tmp_path / "input.json").read_text())
    rows = {(row["transform"], row["provider"]): row for row in record["rows"]}
    assert len(rows) == 2 * len(bench_input.PROVIDERS) and record["images"] == 32
    assert all(row["images_per_second"] > 0 for row in rows.values())
    assert rows["20:16", "bare DALI"]["against"]["bare DALI"] == 1

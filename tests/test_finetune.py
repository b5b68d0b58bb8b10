"""The whole way of a fine-tune: learns, saves, resumes bit-equal, does not depend on the micro-batch."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from photos import write_class_folders
from safetensors.torch import load_file

import bitfast
from bitfast.errors import UsageError
from bitfast.run import RunFolder

MODEL = "resnet26x0_5"
SMALL = dict(model=MODEL, steps=12, batch_size=8, resize=36, crop=32, lr=0.02, eval_every=4, save_every=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return bitfast.finetune(photos, out=out, **SMALL)


def losses(folder):
    return [(r["step"], r["loss"]) for r in RunFolder(folder).records() if r["kind"] == "train"]


def weights(folder):
    return load_file(RunFolder(folder).model / "model.safetensors")


def test_learns_and_leaves_everything_behind(finished, photos):
    assert finished.metrics["top1"] == 1.0 and finished.metrics["images"] == 3
    assert [step for step, _ in losses(finished.out)] == list(range(12))
    first, last = losses(finished.out)[0][1], losses(finished.out)[-1][1]
    assert first == pytest.approx(torch.log(torch.tensor(3.0)).item(), rel=1e-6), "a zero head gives log(classes)"
    assert last < first
    out = RunFolder(finished.out)
    config = json.loads((out.model / "config.json").read_text())
    assert config["label_names"] == ["apple", "lime", "plum"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32] and config["pretrained_cfg"]["crop_mode"] == "squash"
    report = (out.path / "report.md").read_text()
    assert "plots/curves.png" in report and "| steps |" in report and "you" in report
    for name in ("config.yaml", "plan.json", "env.json", "splits.csv", "results.csv", "per_class.csv", "result.json"):
        assert (out.path / name).stat().st_size > 0, name
    rows = list(csv.DictReader((out.path / "predictions_val.csv").open()))
    assert len(rows) == 3 and all(row["label"] == row["predicted"] for row in rows)
    assert all(os.path.isfile(row["path"]) for row in rows)


def test_same_seed_is_bit_equal_and_another_is_not(finished, photos, tmp_path):
    again = bitfast.finetune(photos, out=tmp_path / "again", **SMALL)
    other = bitfast.finetune(photos, out=tmp_path / "other", **SMALL, seed=1)
    assert losses(again.out) == losses(finished.out)
    assert losses(other.out) != losses(finished.out)


@pytest.mark.parametrize("mixup, sizes", [(0.0, (3, 8)), (0.3, (2, 8))])
def test_micro_batch_changes_only_rounding(photos, tmp_path, mixup, sizes):
    """Uneven micro-batches too. Rounding may flip a ReLU, which is worth a per mille of the loss here."""
    options = {**SMALL, "steps": 6, "lr": 0.003, "mixup": mixup}
    runs = [bitfast.finetune(photos, out=tmp_path / str(size), micro_batch=size, **options) for size in sizes]
    got, expected = (torch.tensor([loss for _, loss in losses(run.out)]) for run in runs)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)


def command(*arguments):
    return [sys.executable, "-m", "bitfast", "finetune", *map(str, arguments)]


def flags(**options):
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def wait_for_step(process, out, step):
    deadline = time.monotonic() + 120
    while len(losses(out)) <= step:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kill_9_and_resume_is_bit_equal(finished, photos, tmp_path):
    out = tmp_path / "killed"
    process = subprocess.Popen(command(photos, "--out", out, *flags(**SMALL)), stderr=subprocess.PIPE, text=True)
    wait_for_step(process, out, 4)
    process.kill()
    process.wait()
    done = len(losses(out))
    assert done < SMALL["steps"] and not (out / "result.json").exists()

    resumed = subprocess.run(command("--resume", out), capture_output=True, text=True, check=True)
    assert "resuming" in resumed.stderr and json.loads(resumed.stdout)["metrics"] == finished.metrics
    assert losses(out) == losses(finished.out)
    expected = weights(finished.out)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out).items())
    assert not list(out.rglob("*.tmp"))

    again = subprocess.run(command("--resume", out), capture_output=True, text=True, check=True)
    assert "finished" in again.stderr and again.stdout == resumed.stdout


def test_sigterm_saves_and_exits_75(finished, photos, tmp_path):
    out = tmp_path / "stopped"
    arguments = command(photos, "--out", out, *flags(**{**SMALL, "save_every": 1000}))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for_step(process, out, 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert f"bitfast finetune --resume --out {out}" in errors
    resumed = bitfast.finetune(out=out, resume=True)
    assert losses(out) == losses(finished.out) and resumed.metrics == finished.metrics


def test_killed_before_the_first_checkpoint(finished, photos, tmp_path):
    out = tmp_path / "early"
    process = subprocess.Popen(
        command(photos, "--out", out, *flags(**{**SMALL, "save_every": 1000})), stderr=subprocess.PIPE, text=True
    )
    wait_for_step(process, out, 1)
    process.kill()
    process.wait()
    bitfast.finetune(out=out, resume=True)
    assert losses(out) == losses(finished.out)


def test_damaged_newest_checkpoint_falls_back(finished, photos, tmp_path, capsys):
    out = tmp_path / "damaged"
    process = subprocess.Popen(command(photos, "--out", out, *flags(**SMALL)), stderr=subprocess.PIPE, text=True)
    wait_for_step(process, out, 7)
    process.kill()
    process.wait()
    newest = max((out / "checkpoints").glob("step-*"))
    (shard,) = newest.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:1000])
    bitfast.finetune(out=out, resume=True)
    assert f"{newest} is damaged" in capsys.readouterr().err
    assert losses(out) == losses(finished.out)


def test_resume_refuses_a_changed_value(finished, photos):
    with pytest.raises(UsageError, match="started with lr = 0.02, this call says 0.5"):
        bitfast.finetune(out=finished.out, resume=True, lr=0.5)


def test_pretrained_weights_start_with_a_zero_head(finished, photos, tmp_path, capsys):
    options = {**SMALL, "steps": 3, "lr": 0.0}
    run = bitfast.finetune(photos, weights=finished.out, out=tmp_path / "transfer", **options)
    assert all(loss == pytest.approx(losses(run.out)[0][1]) for _, loss in losses(run.out))
    assert losses(run.out)[0][1] == pytest.approx(torch.log(torch.tensor(3.0)).item(), rel=1e-6)
    source, copy = weights(finished.out), weights(run.out)
    assert torch.equal(source["stem.conv.weight"], copy["stem.conv.weight"])
    assert "zero-initialized" in capsys.readouterr().err


def test_timm_epsilon_survives_a_resume(photos, tmp_path):
    model = bitfast.create_model(MODEL, num_classes=3, eps=1e-8)
    bitfast.save_weights(model, tmp_path / "timm.safetensors")
    options = {**SMALL, "steps": 4, "save_every": 2}
    whole = bitfast.finetune(photos, weights=tmp_path / "timm.safetensors", out=tmp_path / "whole", **options)
    config = json.loads((RunFolder(whole.out).model / "config.json").read_text())
    assert config["bitfast"]["ws_eps"] == 1e-8
    (tmp_path / "whole" / "result.json").unlink()
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-00000004")
    expected = losses(whole.out)
    bitfast.finetune(out=whole.out, resume=True)
    assert losses(whole.out) == expected
    assert json.loads((RunFolder(whole.out).model / "config.json").read_text())["bitfast"]["ws_eps"] == 1e-8


def test_lists_few_shot_and_no_validation(photos, tmp_path):
    paths = sorted(str(path) for path in photos.rglob("*.png"))
    labels = [path.split("/")[-2] for path in paths]
    options = {**SMALL, "steps": 2, "examples_per_class": 4, "val_split": 0.0}
    result = bitfast.finetune((paths, labels), out=tmp_path / "lists", **options)
    assert result.train_images == 12 and result.metrics is None
    assert "No validation split" in (tmp_path / "lists" / "report.md").read_text()


def test_unknown_option_has_a_suggestion(photos):
    with pytest.raises(UsageError, match="did you mean 'batch_size'"):
        bitfast.finetune(photos, batchsize=3)


def test_start_killed_before_its_config_is_started_anew(finished, photos, tmp_path):
    out = tmp_path / "half"
    out.mkdir()
    for name in (".lock", "splits.csv", "plan.json", ".config.yaml.123.tmp"):
        (out / name).write_text("half")
    run = bitfast.finetune(photos, out=out, resume=True, **SMALL)
    assert losses(run.out) == losses(finished.out)


def test_memory_save_runs_and_resumes(photos, tmp_path, capsys):
    options = {**SMALL, "steps": 4, "save_every": 2, "memory": "save"}
    whole = bitfast.finetune(photos, out=tmp_path / "whole", **options)
    banner = capsys.readouterr().err
    assert "memory save, micro-batch 8" in banner and "allocator: glibc" in banner
    rows = json.loads((tmp_path / "whole" / "plan.json").read_text())["settings"]
    assert {"name": "memory", "value": "save", "origin": "you"} in rows
    (tmp_path / "whole" / "result.json").unlink()
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-00000004")
    expected, expected_weights = losses(whole.out), weights(whole.out)
    with pytest.raises(UsageError, match="started with memory = 'save', this call says 'fast'"):
        bitfast.finetune(out=whole.out, resume=True, memory="fast")
    resumed = subprocess.run(command("--resume", whole.out), capture_output=True, text=True, check=True)
    assert "memory save" in resumed.stderr and losses(whole.out) == expected
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in weights(whole.out).items())


def test_unknown_memory_mode(photos):
    with pytest.raises(UsageError, match="'slow'.*fast, save"):
        bitfast.finetune(photos, memory="slow")

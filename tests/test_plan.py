"""The plan of a run: every value with its origin, memory and time of this machine, for people and for programs."""

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import torch
from photos import write_class_folders
from torch.utils.flop_counter import FlopCounterMode

import bitfast
from bitfast import cost
from bitfast.cli import main
from bitfast.config import FinetuneConfig, named
from bitfast.errors import UsageError, WeightsError
from bitfast.recipes import plan as plans
from bitfast.variants import VARIANTS

SMALL = dict(model="resnet26x0_5", steps=4, batch_size=6, crop=32)
pytestmark = pytest.mark.usefixtures("quick_estimates")
QUICK = ["--model", "resnet26x0_5", "--steps", "4", "--batch-size", "6", "--crop", "32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=6)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", "http://127.0.0.1:9/never")


def rows_of(plan):
    return {name: (value, origin) for name, value, origin in plan.rows}


@pytest.mark.parametrize("name", VARIANTS)
def test_multiply_adds_and_parameters(name):
    """Against torch's own counter, which counts two operations per multiply-add, without our operators."""
    with torch.device("meta"):
        model = bitfast.create_model(name, num_classes=1000)
        image = torch.empty(1, 3, 96, 96)
    for module in model.modules():  # a hook makes the network call its modules one by one
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: output)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    counts = cost.macs(model, 96)
    assert 2 * counts.total() == counter.get_total_flops()
    assert set(counts) == {"stem", "head", *(f"stages.{i}" for i in range(4))}
    assert cost.parameters(model) == sum(p.numel() for p in model.state_dict().values())


@pytest.mark.parametrize("name", ["resnet26x0_5", "resnet50x1"])
def test_time_is_scaled_by_multiply_adds_and_parameters(name, monkeypatch):
    """On a machine of so many multiply-adds per second and parameters per optimizer step; the clock is not asked."""
    rate, updates = 1e11, 1e9

    def timed(block, shape, device, dtype):
        convs = [module for module in block.modules() if isinstance(module, torch.nn.Conv2d)]
        macs = shape[0] * shape[2] * shape[3] * sum(conv.weight.numel() for conv in convs)
        return macs / rate, sum(p.numel() for p in block.parameters()) / updates

    monkeypatch.setattr(cost, "_time", timed)
    model, cpu = bitfast.create_model(name, num_classes=10), torch.device("cpu")
    speed = cost.speed(model, 160, 8, cpu, torch.float32)
    macs = cost.macs(model, 160)
    assert speed.image_seconds == pytest.approx((macs.total() - macs["head"]) / rate)
    stages = sum(p.numel() for name, p in model.named_parameters() if name.startswith("stages"))
    assert speed.step_seconds == pytest.approx(stages / updates)


def test_timing_leaves_the_model_alone():
    model, cpu = bitfast.resnet26x0_5(num_classes=3), torch.device("cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    speed = cost.speed(model, 32, 4, cpu, torch.float32)
    measured = cost.measure(model, 32, 8, 4, cpu, torch.float32, seconds=0)
    assert speed.image_seconds > 0 and speed.step_seconds > 0
    assert 0 < measured.fastest <= measured.median <= measured.slowest and measured.micro_batches == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_value_has_an_origin(photos):
    plan = bitfast.plan(photos, **SMALL, mixup=0.2)
    rows = rows_of(plan)
    assert {rows[name][1] for name in ("steps", "batch size", "crop", "mixup alpha", "model")} == {"you"}
    assert rows["base lr"] == ("0.003", 'rule ("code")')
    assert rows["micro-batch"] == ("6, 1 per step", "auto, from memory")
    assert rows["training images"][1] == rows["classes"][1] == "data"
    assert rows["steps"][0] == "4 (1.6 epochs)" and "zero-initialized" in rows["classes"][0]
    assert all(origin for _, origin in rows.values())
    operators = " ".join(value for name, (value, _) in rows.items() if name.startswith("operators"))
    assert {choice.op for choice in bitfast.ops.report()} == set(re.split(r"[, ]+", operators))


def test_numbers_add_up(photos):
    plan = bitfast.plan(photos, **SMALL, eval_every=2)
    facts, seconds = plan.facts, plan.facts["seconds"]
    model = bitfast.resnet26x0_5(num_classes=3)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["disk_bytes"] == {"model": 4 * facts["parameters"], "checkpoints": 24 * facts["parameters"]}
    assert facts["memory_bytes"]["weights"] == 16 * facts["parameters"]
    step = max(seconds["step"], 6 / facts["input_images_per_second"])
    assert seconds["total"] == pytest.approx(4 * step + seconds["evaluation"])
    each = max(1 / facts["network_images_per_second"] / 3, 1 / facts["input_images_per_second"])
    assert seconds["evaluation"] == pytest.approx(2 * facts["validation_images"] * each)


def test_measured_steps(photos, monkeypatch):
    monkeypatch.setattr(cost.measure, "__kwdefaults__", {"seconds": 0.1})
    plan = bitfast.plan(photos, **SMALL, measure=True)
    seconds = plan.facts["seconds"]
    assert 0 < seconds["step_fastest"] <= seconds["step"] <= seconds["step_slowest"]
    value, origin = rows_of(plan)["time"]
    assert origin.startswith("measured, ") and " to " in value


def test_epochs_become_steps(photos):
    assert bitfast.plan(photos, model="resnet26x0_5", epochs=3, batch_size=6, crop=32).settings.plan.steps == 8
    with pytest.raises(UsageError, match="--steps and --epochs exclude each other"):
        bitfast.plan(photos, epochs=3, steps=3)
    with pytest.raises(UsageError, match="--epochs must be a finite number above 0, got 0"):
        bitfast.plan(photos, epochs=0)


def test_batch_split_is_the_number_of_parts(photos):
    assert bitfast.plan(photos, **SMALL, batch_split=3).facts["micro_batch"] == 2
    assert bitfast.plan(photos, **SMALL, batch_split=4).facts["micro_batch"] == 2
    with pytest.raises(UsageError, match="--micro-batch and --batch-split exclude each other"):
        bitfast.plan(photos, **SMALL, batch_split=2, micro_batch=3)


def test_a_long_run_names_shorter_ones(photos, monkeypatch):
    speed = cost.Speed(image_seconds=0.4, step_seconds=0.1)
    monkeypatch.setattr(cost, "speed", lambda *args: speed)
    large = write_class_folders(photos.parent / "large", per_class=2, size=(100, 120))
    plan = bitfast.plan(large, model="resnet50x1")
    assert rows_of(plan)["time"][0] == "about 28 h: 500 steps of 3.4 min"
    (note,) = (note for note in plan.notes if note.startswith("shorter"))
    choices = [
        choice.split(": about ") for choice in note.removeprefix("shorter, at some cost in accuracy: ").split("; ")
    ]
    assert [flags for flags, _ in choices] == ["--crop 128", "--crop 128 --steps 100 --batch-size 64"]
    shorter = [bitfast.plan(large, crop=128), bitfast.plan(large, crop=128, steps=100, batch_size=64)]
    share = shorter[0].facts["macs_per_image"] / plan.facts["macs_per_image"]
    assert choices[0][1] == f"{plan.facts['seconds']['total'] * share / 3600:.1f} h" and 0.05 < share < 0.1


def test_slow_input_is_said(photos, monkeypatch):
    monkeypatch.setattr(plans, "_input_rate", lambda *args: 0.01)
    plan = bitfast.plan(photos, **SMALL)
    assert any("slower than the network" in note and "bench --input-only" in note for note in plan.notes)
    assert plan.facts["seconds"]["total"] >= 4 * 6 / 0.01


def test_too_little_disk_is_said(photos, monkeypatch):
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda path: plans.shutil._ntuple_diskusage(10, 9, 1))
    assert any("give --out on another disk" in note for note in bitfast.plan(photos, **SMALL).notes)


def test_weights_are_not_downloaded_but_told(photos, capsys):
    plan = bitfast.plan(photos, model="BiT-M-R50x1", steps=2, batch_size=2, crop=32)
    assert any("BiT-M-R50x1 is not on this machine yet" in note for note in plan.notes)
    assert rows_of(plan)["weights"] == ("BiT-M-R50x1", "you")
    assert rows_of(plan)["model"] == ("resnet50x1 (BiT-M-R50x1)", "you")
    assert "BiT-M-R50x1 is resnet50x1 with the weights BiT-M-R50x1" in capsys.readouterr().err
    plan = bitfast.plan(photos, model="hf-hub:timm/resnetv2_50x1_bit", steps=2, batch_size=2, crop=32)
    assert any("unless it is in the cache of huggingface_hub" in note for note in plan.notes)
    with pytest.raises(WeightsError, match="BiT-M-R50x1 is not on this machine"):
        bitfast.finetune(photos, model="BiT-M-R50x1", steps=2, batch_size=2, crop=32, out=photos.parent / "none")
    assert not (photos.parent / "none").exists()


@pytest.mark.parametrize(
    ("given", "network", "weights"),
    [
        ("R50x1", "resnet50x1", None),
        ("resnetv2_50x1_bit", "resnet50x1", None),
        ("bit-m-r101x1", "resnet101x1", "BiT-M-R101x1"),
        ("resnetv2_50x1_bit.goog_in21k", "resnet50x1", "BiT-M-R50x1"),
        ("hf-hub:timm/resnetv2_50x1_bit.goog_in21k", "resnet50x1", "hf-hub:timm/resnetv2_50x1_bit.goog_in21k"),
    ],
)
def test_every_name_of_a_model(given, network, weights):
    config = named(FinetuneConfig(model=given))
    assert (config.model, config.weights) == (network, weights)
    assert named(FinetuneConfig(model=given, weights="mine.npz")).weights == "mine.npz"


def test_weights_of_another_network_are_refused_before_they_are_fetched():
    with pytest.raises(UsageError, match="--weights BiT-M-R50x1 are of resnet50x1, --model says resnet101x1"):
        FinetuneConfig(model="resnet101x1", weights="BiT-M-R50x1").validate()


def test_weights_that_are_here_are_looked_at(photos, tmp_path):
    bitfast.save_weights(bitfast.resnet26x0_5(num_classes=5), tmp_path / "w.npz")
    bitfast.plan(photos, **SMALL, weights=tmp_path / "w.npz")
    with pytest.raises(WeightsError, match="it holds a resnet26x0_5"):
        bitfast.plan(photos, **{**SMALL, "model": "resnet50x1"}, weights=tmp_path / "w.npz")


def test_json_is_one_object_on_stdout(photos, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(photos), *QUICK, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    plan = json.loads(line)
    assert plan["steps"] == 4 and plan["command"] == "finetune" and plan["classes"] == 3
    assert {"name": "steps", "value": "4 (1.6 epochs)", "origin": "you"} in plan["settings"]
    assert plan["lr"][0] == [0, 0.0] and plan["lr"][-1][0] == 3 and len(plan["lr"]) == 4
    assert {"n_examples", "image_size", "batch_size", "base_lr", "micro_batch", "ops", "seconds", "notes"} < set(plan)
    assert not list(tmp_path.iterdir())


def test_plan_is_the_dry_run(photos, capsys):
    assert main(["plan", str(photos), *QUICK]) == 0
    planned = capsys.readouterr().out
    assert main(["finetune", str(photos), *QUICK, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    ours = [
        [line for line in text.splitlines() if not re.match("  (time|input|memory needed) ", line)]
        for text in (planned, dry)
    ]
    assert ours[0] == ours[1] and len(ours[0]) > 25


class Parser(HTMLParser):
    """Texts and tags of a page; every opened tag but void ones must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_html_is_escaped_and_self_contained(tmp_path):
    root = write_class_folders(tmp_path / "<b>fruit&co", per_class=2)
    bitfast.save_weights(bitfast.resnet26x0_5(num_classes=3), root.parent / "<script>.npz")
    page = bitfast.plan(root, **SMALL, weights=root.parent / "<script>.npz")._repr_html_()
    parsed = Parser(page)
    assert {tag for tag, _ in parsed.tags} <= {
        "table",
        "caption",
        "tr",
        "th",
        "td",
        "p",
        "figure",
        "svg",
        "polyline",
        "figcaption",
    }
    assert any("<script>.npz" in text for text in parsed.texts) and "http" not in page and "url(" not in page


def test_a_mistake_stops_before_torch_is_there():
    began = time.monotonic()
    for arguments, words in (
        (["plan", "x", "--model", "resnet50"], "did you mean resnet50x1?"),
        (["plan", "x", "--stepz", "3"], "did you mean --steps?"),
        (["finetune", "x", "--steps", "3", "--epochs", "2"], "exclude each other"),
        (["finetune", "x", "--model", "R101x1", "--weights", "BiT-M-R50x1"], "give --model resnet50x1"),
        (["plna", "x"], "did you mean plan?"),
    ):
        code = f"import sys; from bitfast.cli import main\nassert main({arguments}) == 2 and 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert words in done.stderr
    assert time.monotonic() - began < 15

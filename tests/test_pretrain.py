"""Pretraining from end to end: plan and origins, initialization, averages, resume, and the way into finetune."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from photos import write_class_folders
from safetensors.torch import load_file

import bitfast
from bitfast.averaging import decay
from bitfast.cli import main
from bitfast.config import PretrainConfig
from bitfast.data.transform import Transform
from bitfast.errors import UsageError
from bitfast.folder import load_model
from bitfast.nn import GroupNormAct, StdConv2d
from bitfast.pretrain_settings import settle
from bitfast.recipes.pretrain import PRETRAIN
from bitfast.run import RunFolder

MODEL = "resnet26x0_5"
SMALL = dict(model=MODEL, steps=8, batch_size=8, crop=32, lr=0.01, warmup_steps=2, val_split=0.1, save_every=4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return bitfast.pretrain(photos, out=out, ema=True, ema_decay=0.7, recipe="big-vision", **SMALL)


def losses(run):
    return [record["loss"] for record in RunFolder(run.out).records() if record["kind"] == "train"]


def weights(run):
    return load_file(RunFolder(run.out).model / "model.safetensors")


def settled(**options):
    """The settings of a pretraining on 33 photos."""
    config = PretrainConfig(model=MODEL, **options)
    config.validate()
    return settle(config, 33, (40, 48))


def rows(settings):
    return {name: (value, origin) for name, value, origin in settings.rows}


def test_plan_of_the_paper():
    plan = rows(settled())
    recipe = 'recipe ("bit-s")'
    assert plan["batch size"] == ("4,096", recipe) and plan["peak lr"] == ("0.48", recipe)
    assert plan["weight decay"] == ("0.0001, coupled (L2)", recipe) and plan["decays"] == ("all parameters", recipe)
    assert plan["gradient clipping"] == ("none", recipe) and plan["mixup, dropout"] == ("off", recipe)
    assert plan["loss"] == ("softmax cross-entropy", recipe) and plan["head bias"] == ("0", recipe)
    assert plan["crop"] == ("224 px", recipe) and plan["resize"] == ("256 px", recipe)
    assert plan["train crop"] == ("inception", recipe) and plan["initialization"][0].startswith("kaiming-normal")
    assert plan["test transform"][0].startswith("short side to 256")


def test_every_value_can_be_given_and_says_so():
    options = dict(batch_size=512, epochs=9.0, warmup_share=0.25, weight_decay=3e-5, decay_on="kernels", clip_norm=2.0)
    options |= dict(loss="sigmoid", head_bias=-10.0, crop=112, min_area=0.2, no_flip=True, ema=True)
    settings = settled(**options)
    plan = rows(settings)
    assert {name for name, (_, origin) in plan.items() if origin == "you"} >= {
        "steps", "warm-up", "batch size", "weight decay", "decays", "gradient clipping", "loss", "head bias",
        "smallest area", "horizontal flip", "crop", "weight average",
    }  # fmt: skip
    assert plan["peak lr"] == ("0.06", "auto, 0.03 x your batch / 256")
    assert plan["resize"][0] == "128 px" and plan["resize"][1].startswith("auto")
    assert settings.train == Transform.pretrain(112, area=(0.2, 1.0), no_flip=True)
    assert settings.update == {
        "weight_decay": 3e-5, "decoupled": False, "decay_on": "kernels", "clip_norm": 2.0, "ema_decay": 0.9999
    }  # fmt: skip


def test_warm_up_of_a_short_run_is_auto_and_few_steps_are_noted():
    assert rows(settled(steps=50, batch_size=8))["warm-up"] == ("10 steps", "auto, a fifth of the steps")
    assert "a smaller --batch-size gives more" in str(settled())


def test_dry_run_writes_nothing(photos, tmp_path):
    plan = bitfast.pretrain(photos, out=tmp_path / "run", dry_run=True, **SMALL)
    assert plan.settings.plan.steps == 8 and plan.facts["command"] == "pretrain"
    assert "recipe" in str(plan) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=5, epochs=1.0), "--steps and --epochs exclude each other"),
        (dict(warmup_steps=5, warmup_share=0.1), "--warmup-steps and --warmup-share exclude each other"),
        (dict(steps=5, batch_size=4, warmup_steps=5), "warm-up must end before the 5 steps"),
        (dict(warmup_share=1.0), "--warmup-share must be from 0 to below 1, got 1.0"),
        (dict(epochs=0.0), "--epochs must be a finite number above 0"),
        (dict(recipe="bit-x"), "--recipe 'bit-x': it must be one of bit-s, bit-m, bit-l, big-vision"),
        (dict(loss="hinge"), "--loss 'hinge': it must be one of softmax, sigmoid"),
        (dict(decay_on="biases"), "--decay-on 'biases': it must be one of all, kernels"),
        (dict(clip_norm=-1.0), "--clip-norm must be a finite number from 0 on"),
        (dict(head_bias=float("nan")), "--head-bias must be a finite number"),
        (dict(ema_decay=1.0), "--ema-decay must be from 0 to below 1"),
        (dict(crop=64, resize=32), "--crop 64 does not fit into --resize 32"),
        (dict(batchsize=3), "did you mean 'batch_size'"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(options, message, photos):
    with pytest.raises(UsageError, match=message) as caught:
        bitfast.pretrain(photos, **{"model": MODEL, "dry_run": True, **options})
    assert "\n" not in str(caught.value)


def test_initialization():
    """Convolutions normal with variance 2 / fan-out, norms the identity, head zero under its bias, the seed decides."""
    torch.manual_seed(0)
    model = bitfast.ResNetV2((1, 1), 1, num_classes=7)
    convs = [module for module in model.modules() if isinstance(module, StdConv2d)]
    for conv in convs:
        fan_out = conv.weight[:, 0].numel()
        n = conv.weight.numel()
        assert abs(conv.weight.mean()) < 5 * (2 / fan_out / n) ** 0.5
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=5 / (2 * n) ** 0.5)
    for norm in (module for module in model.modules() if isinstance(module, GroupNormAct)):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
    for recipe, bias in (("bit-s", 0.0), ("big-vision", -10.0)):
        PRETRAIN.initialize(model, PretrainConfig(recipe=recipe), None)
        assert (model.head.fc.weight == 0).all() and (model.head.fc.bias == bias).all()
    before = [conv.weight.clone() for conv in convs]
    torch.manual_seed(0)
    again = bitfast.ResNetV2((1, 1), 1, num_classes=7)
    mine = [module.weight for module in again.modules() if isinstance(module, StdConv2d)]
    assert all(torch.equal(a, b) for a, b in zip(before, mine, strict=True))


def test_first_loss_is_that_of_the_head_bias(finished):
    expected = 2 * np.log1p(np.exp(-10.0)) + np.log1p(np.exp(10.0))
    assert losses(finished)[0] == pytest.approx(expected, rel=1e-5), "sigmoid of every class, one of which is true"


def test_averages_are_what_is_evaluated_and_saved(finished, photos, tmp_path):
    """Runs of 1 to 8 steps end in the weights after each step; their average by hand is what the run saved."""
    options = SMALL | dict(recipe="big-vision", save_every=1)
    plain = bitfast.pretrain(photos, out=tmp_path / "plain", **options)
    assert losses(plain) == losses(finished), "averaging does not touch the training"
    assert plain.metrics["loss"] != finished.metrics["loss"]
    bitfast.pretrain(photos, out=tmp_path / "average", ema=True, ema_decay=0.7, **options)
    folder = RunFolder(tmp_path / "average").checkpoints
    before, after = (load_file(next((folder / f"step-0000000{step}").glob("*.safetensors"))) for step in (7, 8))
    keep = decay(7, 0.7)
    for name, saved in weights(finished).items():
        expected = keep * before[f"average.{name}"] + (1 - keep) * after[f"model.{name}"]
        torch.testing.assert_close(after[f"average.{name}"], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(saved, after[f"average.{name}"])
    evaluated = bitfast.load(finished.out).evaluate(bitfast.data.splits.read_splits(RunFolder(finished.out).splits).val)
    assert evaluated.metrics()["loss"] == pytest.approx(finished.metrics["loss"], rel=1e-3)


def test_resume_is_bit_equal_with_averages(finished, photos, tmp_path):
    run = bitfast.pretrain(photos, out=tmp_path / "run", ema=True, ema_decay=0.7, recipe="big-vision", **SMALL)
    expected = weights(run)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000008")
    with pytest.raises(UsageError, match="started with recipe = 'big-vision', this call says 'bit-m'"):
        bitfast.pretrain(out=run.out, resume=True, recipe="bit-m")
    resumed = bitfast.pretrain(out=run.out, resume=True)
    assert losses(resumed) == losses(finished)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


def test_model_folder_is_what_finetune_takes(finished, photos, tmp_path, capsys):
    config = json.loads((RunFolder(finished.out).model / "config.json").read_text())
    assert config["label_names"] == ["apple", "lime", "plum"]
    assert config["pretrained_cfg"]["crop_mode"] == "center"
    for kind, source in {"run": finished.out, "model folder": finished.model_folder}.items():
        options = dict(steps=1, batch_size=4, resize=36, crop=32, lr=0.0, out=tmp_path / kind)
        run = bitfast.finetune(photos, MODEL, source, **options)
        assert losses(run)[0] == pytest.approx(np.log(3), rel=1e-6)
        before, after = (load_model(folder).network.state_dict() for folder in (source, run.out))
        assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("head"))
    assert "zero-initialized" in capsys.readouterr().err


def test_continues_from_weights_under_a_new_head(finished, photos, tmp_path):
    options = SMALL | dict(steps=1, warmup_steps=0, lr=0.0)
    run = bitfast.pretrain(photos, out=tmp_path / "more", weights=finished.out, recipe="bit-s", **options)
    assert losses(run)[0] == pytest.approx(np.log(3), rel=1e-6), "softmax of a zero head with bias 0"
    assert torch.equal(weights(run)["stem.conv.weight"], weights(finished)["stem.conv.weight"])


def test_several_labels_per_image(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, (12, 4))
    options = SMALL | dict(steps=2, warmup_steps=0, val_split=0.0, head_bias=-1.0)
    run = bitfast.pretrain((pixels, labels), out=tmp_path / "several", **options)
    z = -1.0
    first = np.log1p(np.exp(-z)) * labels + np.log1p(np.exp(z)) * (1 - labels)
    settings = json.loads((tmp_path / "several" / "plan.json").read_text())["settings"]
    assert {"name": "loss", "value": "sigmoid cross-entropy, sum over classes", "origin": "data"} in settings
    low, high = np.sort(first.sum(1))[:8].mean(), np.sort(first.sum(1))[-8:].mean()
    assert low - 1e-6 <= losses(run)[0] <= high + 1e-6
    with pytest.raises(UsageError, match="--loss softmax is for one label per image"):
        bitfast.pretrain((pixels, labels), MODEL, loss="softmax", dry_run=True)


def test_command_line(photos, tmp_path, capsys):
    out = tmp_path / "cli"
    flags = "-m resnet26x0_5 --steps 2 -b 8 --crop 32 --recipe bit-m --warmup-share 0.5".split()
    assert main(["pretrain", str(photos), "--out", str(out), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    with open(out / "splits.csv") as file:
        assert sum(row["split"] == "val" for row in csv.DictReader(file)) == 3, "one image of each class"
    assert main(["pretrain", "--resume", str(out)]) == 0
    assert "finished" in capsys.readouterr().err
    assert main(["finetune", "--resume", str(out)]) == 2
    assert f"bitfast pretrain --resume {out}" in capsys.readouterr().err
    assert main(["eval", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3

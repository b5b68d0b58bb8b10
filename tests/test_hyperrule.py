"""HyperRule against the released rule and the paper's text."""

import subprocess
import sys

import pytest

from bitfast.hyperrule import plan


def released_lr(step, examples, base_lr=0.003):
    """The schedule of the release, as described: supports per size class, strict comparison, None at the end."""
    if examples < 20_000:
        supports = (100, 200, 300, 400, 500)
    elif examples < 500_000:
        supports = (500, 3000, 6000, 9000, 10_000)
    else:
        supports = (500, 6000, 12_000, 18_000, 20_000)
    if step < supports[0]:
        return base_lr * step / supports[0]
    if step >= supports[-1]:
        return None
    return base_lr / 10 ** sum(support < step for support in supports[1:-1])


@pytest.mark.parametrize("examples", [1, 19_999, 20_000, 499_999, 500_000, 1_281_167])
def test_code_preset_at_every_step(examples):
    rule = plan(examples)
    for step in range(rule.steps + 2):
        expected = released_lr(step, examples)
        assert rule.lr(step) == (None if expected is None else pytest.approx(expected, rel=1e-12)), step


@pytest.mark.parametrize("examples, steps", [(19_999, 500), (20_000, 10_000), (499_999, 10_000), (500_000, 20_000)])
def test_paper_preset_decays_once_the_share_is_reached(examples, steps):
    rule = plan(examples, preset="paper")
    assert (rule.steps, rule.warmup) == (steps, 0)
    assert rule.lr(0) == 0.003
    for power, share in enumerate((3, 6, 9)):
        boundary = steps * share // 10
        assert rule.lr(boundary - 1) == pytest.approx(0.003 / 10**power)
        assert rule.lr(boundary) == pytest.approx(0.003 / 10 ** (power + 1))
    assert rule.lr(steps) is None


def test_decay_of_the_code_preset_starts_after_the_boundary():
    rule = plan(1000)
    assert rule.boundaries == (200, 300, 400)
    assert rule.lr(200) == 0.003
    assert rule.lr(201) == pytest.approx(0.0003)
    assert rule.lr(0) == 0


@pytest.mark.parametrize(
    "size, preset, model, expected",
    [
        ((95, 96), "code", None, (160, 128)),
        ((96, 96), "code", None, (512, 480)),
        ((32, 32), "paper", "resnet152x4", (160, 128)),
        ((96, 96), "paper", None, (448, 384)),
        ((500, 375), "paper", "resnet50x1", (448, 384)),
        ((500, 375), "paper", "resnet152x4", (512, 480)),
        ((500, 375), "paper", "BiT-M-R152x4", (512, 480)),
        ((500, 375), "code", "resnet50x1", (512, 480)),
    ],
)
def test_resolution(size, preset, model, expected):
    rule = plan(1000, size, preset, model)
    assert (rule.resize, rule.crop) == expected


@pytest.mark.parametrize("examples, alpha", [(19_999, 0.0), (20_000, 0.1)])
def test_mixup_and_constants(examples, alpha):
    rule = plan(examples)
    assert (rule.mixup_alpha, rule.batch_size, rule.base_lr) == (alpha, 512, 0.003)


def test_scaled_keeps_shares():
    rule = plan(1000).scaled(50)
    assert (rule.steps, rule.warmup, rule.boundaries) == (50, 10, (20, 30, 40))
    assert plan(1000).scaled(500) == plan(1000)


def test_differences_say_what_the_paper_would_change():
    text = " ".join(plan(1000).differences(plan(1000, preset="paper")))
    assert "warmup: 100 -> 0" in text and "resize: 512 -> 448" in text and "batch_size" not in text


@pytest.mark.parametrize(
    "arguments", [dict(n_examples=0), dict(n_examples=5, preset="papers"), dict(n_examples=5, image_size=(0, 5))]
)
def test_bad_input(arguments):
    with pytest.raises(ValueError):
        plan(**arguments)


def test_needs_no_torch():
    code = "import sys, bitfast; bitfast.hyperrule.plan(100); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

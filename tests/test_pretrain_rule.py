"""The upstream recipes against the paper's text: golden learning rates on ILSVRC-2012."""

import math
import subprocess
import sys

import pytest

from bitfast.averaging import decay
from bitfast.pretrain_rule import RECIPES, plan

ILSVRC = 1_281_167


def first_step_of(epoch, n, batch):
    """The first step whose first image belongs to the epoch or a later one, counted out."""
    step = epoch * n // batch - 2
    while step * batch < epoch * n:
        step += 1
    return step


@pytest.mark.parametrize("batch, peak, steps", [(4096, 0.48, 28_151), (256, 0.03, 450_411)])
@pytest.mark.parametrize("recipe", ["bit-s", "bit-m"])
def test_golden_learning_rates(batch, peak, steps, recipe):
    rule = plan(ILSVRC, recipe, batch_size=batch)
    assert rule.steps == steps
    golden = {0: 0.0, 1: peak / 5000, 4999: peak * 4999 / 5000, 5000: peak}
    for power, epoch in enumerate((30, 60, 80)):
        first = first_step_of(epoch, ILSVRC, batch)
        golden |= {first - 1: peak / 10**power, first: peak / 10 ** (power + 1)}
    for step, lr in golden.items():
        assert rule.lr(step) == pytest.approx(lr, rel=1e-12), step
    assert rule.lr(steps - 1) == pytest.approx(peak / 1000) and rule.lr(steps) is None


def test_golden_learning_rates_of_bit_l():
    images = 300_000_000
    rule = plan(images, "bit-l")
    assert rule.steps == math.ceil(40 * images / 4096) and rule.warmup == 5000
    for power, epoch in enumerate((10, 23, 30, 37)):
        first = first_step_of(epoch, images, 4096)
        assert rule.lr(first - 1) == pytest.approx(0.48 / 10**power)
        assert rule.lr(first) == pytest.approx(0.48 / 10 ** (power + 1))


def test_cosine_of_big_vision():
    rule = plan(ILSVRC, "big-vision")
    middle = (28_151 - 5000) / 2 + 5000
    assert [rule.lr(step) for step in (0, 1, 2500, 5000)] == pytest.approx([0, 0.48 / 5000, 0.24, 0.48])
    assert (rule.lr(math.floor(middle)) + rule.lr(math.ceil(middle))) / 2 == pytest.approx(0.24, rel=1e-9)
    assert 0 < rule.lr(28_150) < 1e-8 and rule.lr(28_151) is None
    after = [rule.lr(step) for step in range(5000, 28_151)]
    assert after == sorted(after, reverse=True)


def test_weight_decay_and_the_rest_of_the_table():
    for name in ("bit-s", "bit-m", "bit-l"):
        upstream = RECIPES[name]
        assert (upstream.weight_decay, upstream.decoupled, upstream.decay_on) == (1e-4, False, "all")
        assert (upstream.clip_norm, upstream.head_bias) == (0, 0)
    big_vision = RECIPES["big-vision"]
    assert (big_vision.decoupled, big_vision.decay_on, big_vision.clip_norm) == (True, "kernels", 1)
    for batch in (256, 4096):  # what the release subtracts at the peak: 3e-5 * batch / 256 of the kernel
        assert big_vision.weight_decay * plan(ILSVRC, batch_size=batch).base_lr == pytest.approx(3e-5 * batch / 256)
    assert [RECIPES[name].loss for name in RECIPES] == ["softmax", "sigmoid", "sigmoid", "sigmoid"]
    assert (plan(1).resize, plan(1).crop, plan(1).mixup_alpha) == (256, 224, 0)


def test_short_runs_warm_up_for_a_fifth():
    assert plan(ILSVRC, steps=25_000).warmup == 5000
    assert plan(ILSVRC, steps=24_999).warmup == 4999
    assert plan(10_000, steps=400).warmup == 80
    assert plan(10_000, steps=400, warmup_steps=7).warmup == 7
    assert plan(10_000, steps=400, warmup_share=0.5).warmup == 200
    assert plan(10_000, steps=400, warmup_steps=0).lr(0) == 0.48


def test_decay_keeps_its_shares():
    assert plan(10_000, steps=900).boundaries == (300, 600, 800)
    assert plan(1000, batch_size=10, epochs=9).boundaries == (300, 600, 800)
    assert plan(1000, batch_size=10, epochs=0.5).steps == 50
    assert plan(3, batch_size=7, epochs=1).steps == 1


@pytest.mark.parametrize(
    "options",
    [
        dict(recipe="bit-x"),
        dict(epochs=1, steps=5),
        dict(warmup_steps=1, warmup_share=0.1),
        dict(batch_size=0),
        dict(epochs=-1.0),
        dict(steps=10, warmup_steps=10),
        dict(steps=10, warmup_steps=-1),
        dict(steps=10, warmup_share=1.0),
    ],
    ids=str,
)
def test_bad_input(options):
    with pytest.raises(ValueError, match="must|not both"):
        plan(100, **options)
    with pytest.raises(ValueError, match="n_examples"):
        plan(0)


def test_decay_of_averages_rises_to_its_limit():
    assert [decay(step, 0.9) for step in (0, 1, 80, 81, 1000)] == pytest.approx([0.1, 2 / 11, 0.9, 0.9, 0.9])


def test_needs_no_torch():
    code = "import sys, bitfast; bitfast.pretrain_rule.plan(100); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""BiT's upstream recipes: every pretraining hyperparameter and the learning rate of each step. Pure, no torch.

| | "bit-s" (ILSVRC-2012) | "bit-m" (ImageNet-21k) | "bit-l" (JFT-300M) | "big-vision" |
|---|---|---|---|---|
| epochs | 90 | 90 | 40 | 90 |
| learning rate | /10 at epochs 30, 60, 80 | as bit-s | /10 at epochs 10, 23, 30, 37 | cosine to 0 |
| loss | softmax cross-entropy | sigmoid cross-entropy, sum over labels | as bit-m | as bit-m |
| weight decay | 1e-4, coupled, on all parameters | as bit-s | as bit-s | 1e-3, decoupled, on kernels |
| gradient clipping | none | none | none | global norm 1 |
| head bias | 0 | 0 | 0 | -10 |
| Inception crop | from 8 % of the area on | as bit-s | as bit-s | from 5 % on |

All: batch 4096; peak learning rate 0.03 * batch / 256; linear warm-up over 5000 steps; SGD with momentum 0.9; Inception
crop to 224 px and flip, no MixUp, no dropout; test images: short side to 256 px, central 224.

Where the paper is silent: the loss of bit-s is the usual one for an image with one label; coupled decay on every
parameter is what SGD with "weight decay 1e-4" does; an Inception crop takes from 8 % on in the paper it comes from.
"big-vision" is the released configuration for ImageNet-21k (its accumulator is bfloat16, ours float32). There 3e-5 *
batch / 256 times the schedule's value between 0 and 1 is subtracted: the learning rate times 1e-3.

Source: BiT paper 1912.11370 section 3.1 (upstream pre-training); big_vision configs/bit_i21k.py
"""

import math
from dataclasses import dataclass
from fractions import Fraction

BATCH_SIZE, WARMUP = 4096, 5000
# The default warm-up is at most this share of the steps: 5000 steps are 18 % of bit-s on ILSVRC-2012, but short runs
# would end within them.
WARMUP_SHARE = Fraction(1, 5)
RESIZE, CROP = 256, 224


@dataclass(frozen=True)
class Upstream:
    """What tells one recipe from another; see the module's table. Without decay_epochs the schedule is a cosine."""

    epochs: int = 90
    decay_epochs: tuple[int, ...] = (30, 60, 80)
    loss: str = "sigmoid"
    weight_decay: float = 1e-4
    decoupled: bool = False
    decay_on: str = "all"
    clip_norm: float = 0.0
    head_bias: float = 0.0
    min_area: float = 0.08


RECIPES = {
    "bit-s": Upstream(loss="softmax"),
    "bit-m": Upstream(),
    "bit-l": Upstream(epochs=40, decay_epochs=(10, 23, 30, 37)),
    "big-vision": Upstream(
        decay_epochs=(),
        weight_decay=1e-3,
        decoupled=True,
        decay_on="kernels",
        clip_norm=1.0,
        head_bias=-10.0,
        min_area=0.05,
    ),
}


@dataclass(frozen=True)
class Plan:
    """What a recipe prescribes for one dataset. Sizes in pixels, warmup, boundaries and steps in steps.

    boundaries  steps from which on the learning rate is a tenth; None: it follows a cosine to 0
    """

    steps: int
    warmup: int
    boundaries: tuple[int, ...] | None
    batch_size: int
    base_lr: float
    recipe: str = "bit-s"
    mixup_alpha: float = 0.0
    resize: int = RESIZE
    crop: int = CROP

    def lr(self, step):
        """Learning rate of optimizer step `step` (0-based); None once the schedule is over (step >= steps).

        base_lr * min(1, step / warmup), so that of step 0 is 0, times 1/10 for each boundary b <= step, or times
        (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2 after the warm-up.
        """
        if step >= self.steps:
            return None
        lr = self.base_lr
        if step < self.warmup:
            lr = lr * step / self.warmup
        if self.boundaries is None:
            done = max(0, step - self.warmup) / (self.steps - self.warmup)
            return lr * (1 + math.cos(math.pi * done)) / 2
        for boundary in self.boundaries:
            if boundary <= step:
                lr /= 10
        return lr


def plan(
    n_examples,
    recipe="bit-s",
    *,
    batch_size=BATCH_SIZE,
    epochs=None,
    steps=None,
    base_lr=None,
    warmup_steps=None,
    warmup_share=None,
):
    """The plan of a recipe for `n_examples` training images.

    epochs, steps               length of the run; default the recipe's epochs. The decay keeps its shares of it
    base_lr                     peak learning rate; default 0.03 * batch_size / 256
    warmup_steps, warmup_share  warm-up in steps, or as a share of the run's; default 5000 steps, at most a fifth of all

    Epoch e begins with step ceil(e * n_examples / batch_size), the first that shows nothing of an epoch before; a run
    has as many steps as show every image `epochs` times.

    Raises  ValueError on an unknown recipe, on numbers below 1, on both of two ways to say the same, and on a warm-up
            that does not end before the run
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    if epochs is not None and steps is not None:
        raise ValueError(f"give epochs or steps, not both, got {epochs} and {steps}")
    if warmup_steps is not None and warmup_share is not None:
        raise ValueError(f"give warmup_steps or warmup_share, not both, got {warmup_steps} and {warmup_share}")
    if n_examples < 1 or batch_size < 1:
        raise ValueError(f"n_examples and batch_size must be at least 1, got {n_examples} and {batch_size}")
    upstream = RECIPES[recipe]
    length = Fraction(steps) if steps else Fraction(epochs or upstream.epochs) * n_examples / batch_size
    if length <= 0:
        raise ValueError(f"the run must have at least 1 step, got {float(length):g}")
    total = math.ceil(length)
    warmup = min(WARMUP, int(total * WARMUP_SHARE))
    if warmup_share is not None:
        warmup = round(total * warmup_share)
    if warmup_steps is not None:
        warmup = warmup_steps
    if not 0 <= warmup < total:
        raise ValueError(f"the warm-up must end before the {total:,} steps of the run do, got {warmup:,} steps")
    decays = [Fraction(epoch, upstream.epochs) for epoch in upstream.decay_epochs]
    return Plan(
        steps=total,
        warmup=warmup,
        boundaries=tuple(math.ceil(length * share) for share in decays) or None,
        batch_size=batch_size,
        base_lr=0.03 * batch_size / 256 if base_lr is None else base_lr,
        recipe=recipe,
    )

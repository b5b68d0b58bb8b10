"""BiT-HyperRule: every fine-tuning hyperparameter from the number of images and their size. Pure functions, no torch.

Two presets, because the paper and the released code differ (BiT paper 1912.11370 section 3.3; bit_hyperrule.py of the
release):

| | "code" (what the released numbers were made with) | "paper" |
|---|---|---|
| warm-up | linear over 100 (small), else 500 steps | none |
| decay /10 | once step > 200, 300, 400 (small), else 30/60/90 % of the steps | once step >= 30, 60, 90 % of the steps |
| resize, crop | 512, 480 from 96 x 96 pixels on | 448, 384 (512, 480 for resnet152x4) |

Both: 160, 128 below 96 x 96 pixels; 500, 10,000 or 20,000 steps below 20,000, below 500,000, or from 500,000 images on;
batch 512; base learning rate 0.003; MixUp with alpha 0.1 from 20,000 images on; SGD with momentum 0.9, no weight decay.
"""

from dataclasses import dataclass, fields, replace

PRESETS = ("code", "paper")
SMALL, LARGE = 20_000, 500_000
SMALL_AREA = 96 * 96


@dataclass(frozen=True)
class Plan:
    """What BiT-HyperRule prescribes for one dataset. Sizes in pixels, warmup, boundaries and steps in steps."""

    steps: int
    warmup: int
    boundaries: tuple[int, ...]
    batch_size: int
    base_lr: float
    mixup_alpha: float
    resize: int
    crop: int
    preset: str = "code"

    def lr(self, step):
        """Learning rate of optimizer step `step` (0-based); None once the schedule is over (step >= steps).

        base_lr * step / warmup during the warm-up, so step 0 of preset "code" has learning rate 0; afterwards base_lr
        divided by 10 for each boundary b with b < step (preset "code") or b <= step (preset "paper").
        """
        if step >= self.steps:
            return None
        if step < self.warmup:
            return self.base_lr * step / self.warmup
        lr = self.base_lr
        for boundary in self.boundaries:
            if boundary < step or (self.preset == "paper" and boundary == step):
                lr /= 10
        return lr

    def scaled(self, steps):
        """The same schedule stretched to another number of steps: warm-up and boundaries keep their shares, rounded."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        return replace(
            self,
            steps=steps,
            warmup=round(self.warmup * steps / self.steps),
            boundaries=tuple(round(b * steps / self.steps) for b in self.boundaries),
        )

    def differences(self, other):
        """One "field: mine -> theirs" string for each value in which `other` differs from this plan."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "preset")
        return [f"{name}: {mine} -> {theirs}" for name, mine, theirs in pairs if mine != theirs]


def resolution(image_size, preset="code", model=None):
    """(resize, crop) in pixels for images of `image_size` = (height, width); the area test is strict, as released."""
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be (height, width) of at least 1 pixel each, got {tuple(image_size)}")
    if height * width < SMALL_AREA:
        return 160, 128
    if preset == "code" or "152x4" in (model or ""):
        return 512, 480
    return 448, 384


def plan(n_examples, image_size=(224, 224), preset="code", model=None):
    """The HyperRule plan for `n_examples` training images of typical `image_size` = (height, width) in pixels.

    preset  "code" (default) or "paper", see the module's table
    model   model name; only preset "paper" looks at it (resnet152x4 trains at 512/480)
    Raises  ValueError on an unknown preset, fewer than one example, or an empty image size
    Source  BiT paper 3.3; bit_hyperrule.py of the release
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if n_examples < 1:
        raise ValueError(f"n_examples must be at least 1, got {n_examples}")
    small = n_examples < SMALL
    steps = 500 if small else 10_000 if n_examples < LARGE else 20_000
    if preset == "code":
        warmup, shares = (100, (40, 60, 80)) if small else (500, (30, 60, 90))
    else:
        warmup, shares = 0, (30, 60, 90)
    resize, crop = resolution(image_size, preset, model)
    return Plan(
        steps=steps,
        warmup=warmup,
        boundaries=tuple(steps * share // 100 for share in shares),
        batch_size=512,
        base_lr=0.003,
        mixup_alpha=0.0 if small else 0.1,
        resize=resize,
        crop=crop,
        preset=preset,
    )

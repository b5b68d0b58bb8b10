"""What happens to an image between decoding and the network: one spec, read by every engine."""

import math
from dataclasses import asdict, dataclass

from bitfast.errors import UsageError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
GEOMETRIES = ("square", "inception", "short_side")

ATTEMPTS = 10  # boxes that the Inception crop tries before it takes the central one


@dataclass(frozen=True)
class Transform:
    """Resize, crop a square, flip, normalise with y = (v - mean) / std.

    geometry       what is resized to what:
                   "square"      the whole image to resize x resize, aspect not kept; then a crop x crop window, at a
                                 random offset if random_crop
                   "inception"   a random box, of a share `area` of the image and an aspect in `ratio`, to crop x crop
                   "short_side"  the whole image, aspect kept, the shorter side to `resize`; then the central window
    resize         in px; always antialiased
    crop           edge of the square the network sees, in px
    random_crop    of "square": True: a window at a random offset; False: resize must equal crop
    flip           True: each image is mirrored left-right with probability 1/2
    interpolation  the resize filter
    mean, std      of all three channels, on the 0..255 scale
    area, ratio    of "inception": bounds of the box's share of the image, and of its width / height

    Raises:  UsageError if crop > resize, or on values that cannot be
    Source:  Kolesnikov et al. 2020 (1912.11370), section 3.3 and appendix F for tasks without crop or flip; Szegedy et
             al. 2014 (1409.4842) for the Inception crop
    """

    resize: int
    crop: int
    random_crop: bool
    flip: bool
    interpolation: str = "bilinear"
    mean: float = 127.5
    std: float = 127.5
    geometry: str = "square"
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        if self.geometry not in GEOMETRIES:
            raise UsageError(f"unknown geometry {self.geometry!r}: use one of {', '.join(GEOMETRIES)}")
        if self.crop < 1:
            raise UsageError(f"crop {self.crop} is not a size: give at least 1 (px)")
        if self.crop > self.resize:
            raise UsageError(
                f"crop {self.crop} is larger than resize {self.resize}: use --crop {self.resize} or less, "
                f"or --resize {self.crop} or more"
            )
        if self.geometry == "square" and not self.random_crop and self.resize != self.crop:
            raise UsageError(
                f"resize {self.resize} differs from crop {self.crop}, but no crop is taken: make them equal"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"unknown interpolation {self.interpolation!r}: use one of {', '.join(INTERPOLATIONS)}")
        if not self.std > 0:
            raise UsageError(f"std {self.std} cannot divide: give a positive number (BiT uses 127.5)")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UsageError(f"area {self.area} is not a range of shares: give two numbers up to 1, such as 0.08 and 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise UsageError(f"ratio {self.ratio} is not a range of aspects: give two numbers, such as 0.75 and 1.333")

    @classmethod
    def train(cls, resize, crop, no_crop=False, no_flip=False, interpolation="bilinear"):
        """The fine-tuning spec; `no_crop` resizes straight to crop x crop, so that nothing of the image is cut off."""
        return cls(crop if no_crop else resize, crop, not no_crop, not no_flip, interpolation)

    @classmethod
    def test(cls, crop, interpolation="bilinear"):
        """The evaluation spec: the whole image, resized to crop x crop."""
        return cls(crop, crop, False, False, interpolation)

    @classmethod
    def pretrain(cls, crop, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), no_flip=False, interpolation="bilinear"):
        """The pretraining spec: Inception crop and flip."""
        return cls(crop, crop, True, not no_flip, interpolation, geometry="inception", area=area, ratio=ratio)

    @classmethod
    def short_side(cls, resize, crop, interpolation="bilinear"):
        """Evaluation as pretrained networks are often measured: short side to `resize`, then the central crop."""
        return cls(resize, crop, False, False, interpolation, geometry="short_side")

    @classmethod
    def from_dict(cls, values):
        pairs = {name: tuple(values[name]) for name in ("area", "ratio") if name in values}
        return cls(**{**values, **pairs})

    def to_dict(self):
        return asdict(self)

    @property
    def margin(self):
        """The largest offset of a random window: offsets are the integers 0..margin in both directions."""
        return self.resize - self.crop if self.geometry == "square" else 0

    def window(self, height, width, crop_y=0, crop_x=0, attempts=None):
        """Where the crop x crop pixels come from in an image of this size, in px.

        crop_y, crop_x  the sampler's offsets, of "square"
        attempts        (ATTEMPTS, 4) numbers in [0, 1), of "inception"

        Returns (top, left, box_height, box_width, resized_height, resized_width, y, x): that box of the image is
        resized, the window starts at (y, x) of the result. A pure function, so that all engines take the same box.
        """
        if self.geometry == "square":
            return 0, 0, height, width, self.resize, self.resize, int(crop_y), int(crop_x)
        if self.geometry == "inception":
            return *self._box(height, width, attempts), self.crop, self.crop, 0, 0
        short, long = sorted((height, width))
        other = max(self.resize, int(self.resize * long / short))
        resized = (other, self.resize) if height > width else (self.resize, other)
        return 0, 0, height, width, *resized, *(round((edge - self.crop) / 2) for edge in resized)

    def _box(self, height, width, attempts):
        """The first of the attempts that fits, as torchvision's RandomResizedCrop takes it; else the central box."""
        low, high = map(math.log, self.ratio)
        for u_area, u_ratio, u_top, u_left in attempts.tolist():
            area = height * width * (self.area[0] + u_area * (self.area[1] - self.area[0]))
            ratio = math.exp(low + u_ratio * (high - low))
            box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                top, left = int(u_top * (height - box_height + 1)), int(u_left * (width - box_width + 1))
                return top, left, box_height, box_width
        box_width = min(width, max(1, round(height * self.ratio[1])))
        box_height = min(height, max(1, round(width / self.ratio[0])))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width

    def __str__(self):
        how = f"({self.interpolation}, antialias)" if self.interpolation != "nearest" else "(nearest)"
        (smallest, largest), (low, high) = self.area, self.ratio
        steps = {
            "square": [f"resize {self.resize}x{self.resize} {how}"] + [f"random crop {self.crop}"] * bool(self.margin),
            "inception": [
                f"Inception crop (area {smallest:g}-{largest:g}, ratio {low:.3g}-{high:.3g})",
                f"resize {self.crop}x{self.crop} {how}",
            ],
            "short_side": [f"short side to {self.resize} {how}", f"central crop {self.crop}"],
        }[self.geometry]
        if self.flip:
            steps.append("horizontal flip")
        steps.append(f"(v - {self.mean:g}) / {self.std:g}")
        return " -> ".join(steps)

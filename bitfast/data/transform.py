"""What happens to an image between decoding and the network: one spec, read by every loader back end."""

from dataclasses import asdict, dataclass

from bitfast.errors import UsageError

INTERPOLATIONS = ("bilinear",)


@dataclass(frozen=True)
class Transform:
    """Resize to a square (aspect not kept), crop a square, flip, normalise with y = (v - mean) / std.

    resize         edge of the square after resizing, in px; always antialiased
    crop           edge of the square the network sees, in px
    random_crop    True: a window at a random offset; False: resize must equal crop
    flip           True: each image is mirrored left-right with probability 1/2
    interpolation  the resize filter
    mean, std      of all three channels, on the 0..255 scale

    Raises:  UsageError if crop > resize, or on values that cannot be
    Source:  Kolesnikov et al. 2020 (1912.11370), section 3.3 and appendix F for tasks without crop or flip
    """

    resize: int
    crop: int
    random_crop: bool
    flip: bool
    interpolation: str = "bilinear"
    mean: float = 127.5
    std: float = 127.5

    def __post_init__(self):
        if self.crop < 1:
            raise UsageError(f"crop {self.crop} is not a size: give at least 1 (px)")
        if self.crop > self.resize:
            raise UsageError(
                f"crop {self.crop} is larger than resize {self.resize}: use --crop {self.resize} or less, "
                f"or --resize {self.crop} or more"
            )
        if not self.random_crop and self.resize != self.crop:
            raise UsageError(
                f"resize {self.resize} differs from crop {self.crop}, but no crop is taken: make them equal"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"unknown interpolation {self.interpolation!r}: use one of {', '.join(INTERPOLATIONS)}")
        if not self.std > 0:
            raise UsageError(f"std {self.std} cannot divide: give a positive number (BiT uses 127.5)")

    @classmethod
    def train(cls, resize, crop, no_crop=False, no_flip=False):
        """The training spec; `no_crop` resizes straight to crop x crop, so that nothing of the image is cut off."""
        return cls(resize=crop if no_crop else resize, crop=crop, random_crop=not no_crop, flip=not no_flip)

    @classmethod
    def test(cls, crop):
        """The evaluation spec: the whole image, resized to crop x crop."""
        return cls(resize=crop, crop=crop, random_crop=False, flip=False)

    @classmethod
    def from_dict(cls, values):
        return cls(**values)

    def to_dict(self):
        return asdict(self)

    @property
    def margin(self):
        """The largest crop offset: offsets are the integers 0..margin in both directions."""
        return self.resize - self.crop

    def __str__(self):
        steps = [f"resize {self.resize}x{self.resize} ({self.interpolation}, antialias)"]
        if self.margin:
            steps.append(f"random crop {self.crop}")
        if self.flip:
            steps.append("horizontal flip")
        steps.append(f"(v - {self.mean:g}) / {self.std:g}")
        return " -> ".join(steps)

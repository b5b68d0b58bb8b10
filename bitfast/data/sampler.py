"""Which images, crops, flips and mixup partners a training step sees: a pure function of (seed, step)."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from bitfast.data import streams
from bitfast.data.transform import ATTEMPTS, Transform
from bitfast.errors import UsageError


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's samples, or a slice of them.

    step            the global step
    indices         (B,) int64, into the split
    crop_y, crop_x  (B,) int64 in [0, margin], in px of the resized image
    flip            (B,) bool
    attempts        (B, ATTEMPTS, 4) float64 in [0, 1), of which `Transform.window` makes an Inception crop's box once
                    it knows the image's size; None without Inception crop
    partner         (B,) int64, the position in this batch that is mixed in; itself where unmixed; an involution
    lam             weight of the sample itself, 1 - lam that of its partner; 1.0 without mixup
    """

    step: int
    indices: np.ndarray
    crop_y: np.ndarray
    crop_x: np.ndarray
    flip: np.ndarray
    attempts: np.ndarray | None
    partner: np.ndarray
    lam: float

    def __len__(self):
        return len(self.indices)

    def micro(self, size):
        """Slices of at most `size` samples, in order, the partners renumbered to positions in the slice.

        Raises:  UsageError if a slice would part a mixup pair: an odd size smaller than the batch, under mixup
        """
        mixed = self._mixed
        if size < 1 or (mixed and size % 2 and size < len(self)):
            raise UsageError(f"micro-batch {size} cannot split a batch of {len(self)}: use {_even_hint(size, mixed)}")
        for start in range(0, len(self), size):
            yield self.part(start, start + size)

    def shard(self, rank, ranks):
        """The part of one of `ranks` processes: neighbouring samples, mixup pairs kept whole, sizes as even as that
        allows. The parts of all ranks, in order, are the batch.

        Raises:  UsageError if there is no such rank, or fewer samples (or pairs) than ranks
        """
        if not 0 <= rank < ranks:
            raise UsageError(f"rank {rank} of {ranks} processes does not exist: ranks are 0 to {ranks - 1}")
        unit = 2 if self._mixed else 1
        units = -(-len(self) // unit)
        if units < ranks:
            what = "mixup pairs" if self._mixed else "images"
            raise UsageError(f"a batch of {units} {what} is too small for {ranks} processes: use a larger --batch-size")
        return self.part(units * rank // ranks * unit, units * (rank + 1) // ranks * unit)

    def part(self, start, stop):
        """Samples start to stop, the partners renumbered; they have to be in the part."""
        part = slice(start, stop)
        return replace(
            self,
            indices=self.indices[part],
            crop_y=self.crop_y[part],
            crop_x=self.crop_x[part],
            flip=self.flip[part],
            attempts=None if self.attempts is None else self.attempts[part],
            partner=self.partner[part] - start,
        )

    @property
    def _mixed(self):
        return bool((self.partner != np.arange(len(self))).any())

    def without(self, left_out):
        """The batch that remains when the images of these indices are gone; who loses its partner stays unmixed."""
        keep = ~np.isin(self.indices, np.fromiter(left_out, dtype=np.int64, count=len(left_out)))
        if keep.all():
            return self
        position = np.cumsum(keep) - 1
        partner = np.where(keep[self.partner], position[self.partner], position)
        return replace(
            self,
            indices=self.indices[keep],
            crop_y=self.crop_y[keep],
            crop_x=self.crop_x[keep],
            flip=self.flip[keep],
            attempts=None if self.attempts is None else self.attempts[keep],
            partner=partner[keep],
        )


def _even_hint(size, mixed):
    return f"{size + 1} (mixup pairs neighbours, so the size must be even)" if mixed and size > 0 else "at least 1"


@dataclass(frozen=True)
class Sampler:
    """Batches of a training run over n images.

    The run is one endless sequence of sample positions: sample i of step t is position p = t * batch_size + i, it
    belongs to epoch p // n and shows image order_epoch[p % n]. So each epoch shows every image exactly once, whether
    or not batch_size divides n or exceeds it.

    Where the numbers come from (streams.py explains the counters):
        order_e  of epoch e      the ranks of the first n words of sequence (EPOCH_ORDER, index e)
        crop_y, crop_x, flip     words 0, 1, 2 of position p of (AUGMENT): they depend on (seed, p) alone, so a sample
                                 keeps its crop whatever the batch size, micro-batch or rank that draws it
        attempts                 the words of positions p * ATTEMPTS + (0 .. ATTEMPTS - 1) of (BOX), likewise
        lam      of step t       Beta(alpha, alpha) from sequence (MIXUP, index t), one per step

    Raises:  UsageError on n or batch_size below 1, or a negative mixup_alpha
    """

    n: int
    batch_size: int
    transform: Transform
    mixup_alpha: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.n < 1 or self.batch_size < 1:
            raise UsageError(f"cannot draw batches of {self.batch_size} from {self.n} images: both must be at least 1")
        if self.mixup_alpha < 0:
            raise UsageError(f"mixup {self.mixup_alpha} is negative: use 0 (off) or a positive alpha such as 0.1")

    def batch(self, step, rank=0, ranks=1):
        """The global batch of one step, or the part of it that one of several processes works on."""
        return self._batch(step).shard(rank, ranks)

    def _batch(self, step):
        size, first = self.batch_size, step * self.batch_size
        draws = streams.words(self.seed, streams.AUGMENT, size, position=first)
        offsets = self.transform.margin + 1
        return Batch(
            step=step,
            indices=self._indices(first, first + size),
            crop_y=streams.below(draws[:, 0], offsets),
            crop_x=streams.below(draws[:, 1], offsets),
            flip=draws[:, 2] >> np.uint64(63) == 1 if self.transform.flip else np.zeros(size, dtype=bool),
            attempts=self._attempts(first),
            partner=_neighbours(size) if self.mixup_alpha else np.arange(size),
            lam=self._lam(step),
        )

    def _indices(self, start, stop):
        pieces = []
        while start < stop:
            epoch, at = divmod(start, self.n)
            pieces.append(_epoch_order(self.seed, epoch, self.n)[at : at + stop - start])
            start += len(pieces[-1])
        return np.concatenate(pieces)

    def _attempts(self, first):
        if self.transform.geometry != "inception":
            return None
        draws = streams.words(self.seed, streams.BOX, self.batch_size * ATTEMPTS, position=first * ATTEMPTS)
        return streams.unit(draws).reshape(self.batch_size, ATTEMPTS, 4)

    def _lam(self, step):
        if not self.mixup_alpha:
            return 1.0
        generator = np.random.Generator(streams.bits(self.seed, streams.MIXUP, index=step))
        return float(generator.beta(self.mixup_alpha, self.mixup_alpha))


def _neighbours(size):
    """Partners in pairs (2i, 2i + 1); a last odd one is its own."""
    partner = np.arange(size)
    paired = size - size % 2
    partner[:paired] ^= 1
    return partner


@lru_cache(maxsize=4)
def _epoch_order(seed, epoch, n):
    indices = streams.order(seed, streams.EPOCH_ORDER, n, index=epoch)
    indices.flags.writeable = False
    return indices

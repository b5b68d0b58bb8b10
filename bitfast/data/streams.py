"""Counter-based random numbers: every draw is a pure function of (seed, stream, index, position), with no state.

Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is a keyed bijection that maps a
256-bit counter to four 64-bit words. Here

    key     = (seed, stream)                 two 64-bit words: independent sequences per seed and per purpose
    counter = (position + 1, 0, 0, index)    four 64-bit words, least significant first; numpy adds the 1

so the four words of any position of any epoch, step or class are reached directly, without drawing those before
them. Raw words are specified by the algorithm and do not change between numpy versions.
"""

import numpy as np

EPOCH_ORDER, AUGMENT, MIXUP, HOLD_OUT, FEW_SHOT, BOX, FOLDS = range(7)

_WORD = 1 << 64


def bits(seed, stream, *, index=0, position=0):
    """The bit generator whose next four words belong to `position` of the sequence `index` of (seed, stream)."""
    key = np.array([seed % _WORD, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([position, 0, 0, index], dtype=np.uint64))


def words(seed, stream, count, *, index=0, position=0):
    """(count, 4) uint64: the four words of each of the positions [position, position + count)."""
    return bits(seed, stream, index=index, position=position).random_raw(4 * count).reshape(count, 4)


def order(seed, stream, n, *, index=0):
    """A uniform permutation of range(n), int64: the order of n random words (equal words keep their order)."""
    return np.argsort(bits(seed, stream, index=index).random_raw(n), kind="stable")


def below(draws, bound):
    """Integers in [0, bound) from uint64 draws, by the upper 32 bits u: floor(u * bound / 2**32).

    The chances of two values differ by at most bound / 2**32, relatively.
    """
    return (((draws >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def unit(draws):
    """float64 in [0, 1) from uint64 draws, by their upper 53 bits."""
    return (draws >> np.uint64(11)) * 2.0**-53

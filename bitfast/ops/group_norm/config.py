"""Which Triton kernel computes a norm, and with what tiles: data, with its reason.

Nothing here has been measured on a GPU yet. Sizes come from the registers, shared memory and spills of the compiled
kernels (`python -m benchmarks.ops.static_report`), choices from the bytes that each way moves to and from memory, per
element of x in bf16, where one pass is 4 B forward and 6 B backward:

    one pass     4, 6 B   a sample's groups are held in registers
    ticket       4, 6 B   the second read finds the L2 cache, for images of any size; programs wait for each other
    two launches 6, 10 B  but 4 and 6 B too, and no waiting, where all images together stay in the L2 cache
"""

from functools import cache
from typing import NamedTuple

# Channels that are read side by side: 128 bytes in bf16, the line of a cache. Runs of 32 bytes reach half of the
# bandwidth that runs of 128 bytes do, runs of 16 bytes a fifth (microbenchmarks of others on an H100).
LINE = 64

# Elements of one sample that a program holds: 32 registers of each of 512 threads in backward, where there are two
# images, 64 in forward. More is spilled.
ONE_PASS_ELEMENTS = {"forward": 2**15, "backward": 2**14}
# To which a program of tiny images is filled up: with groups, then with samples.
ONE_PASS_FILL = 2**12

# A tile of large images: 32 elements of each of 128 threads, and as many in each of two sums.
TILE_ELEMENTS = 2**12
MOST_LANES = 2**10
# Chunks a sample is cut into: each program of the second step reads the results of all of them.
MOST_PARTS = 64
# Tiles of a chunk, unless chunks become too many or too few.
CHUNK_TILES = 8
# Programs of 128 threads that run on a multiprocessor at once with up to 128 registers.
PROGRAMS_PER_MULTIPROCESSOR = 4
# Of the L2 cache, what the images of a norm may take if they are to be found there a moment later.
L2_SHARE = 0.5


class OnePass(NamedTuple):
    """Samples, pixels, groups and lanes of a group that a program holds."""

    samples: int
    pixels: int
    groups: int
    lanes: int
    num_warps: int


class Chunks(NamedTuple):
    """How a sample is cut: pixels of a chunk, chunks; pixels, groups and lanes of a group in a tile; `parts`: a power
    of two that holds the results of all chunks."""

    chunk_pixels: int
    chunks: int
    pixels: int
    groups: int
    lanes: int
    parts: int
    num_warps: int = 4

    def tiles(self, groups: int, channels: int) -> int:
        """Tiles that the channels are cut into."""
        return -(-groups // self.groups) * -(-channels // groups // self.lanes)


def power_of_two(n: int) -> int:
    """The least that is at least n."""
    return 1 << (n - 1).bit_length()


@cache
def one_pass(way: str, samples: int, pixels: int, channels: int, groups: int) -> OnePass | None:
    """The tile with which `way` ("forward", "backward") reads every image once; None if its groups are too large."""
    per_group = channels // groups
    lanes, rows = power_of_two(per_group), power_of_two(pixels)
    together = min(power_of_two(-(-LINE // per_group)), power_of_two(groups))
    if rows * together * lanes > ONE_PASS_ELEMENTS[way]:
        return None
    while rows * together * lanes < ONE_PASS_FILL and together < groups:
        together *= 2
    images = 1
    while images * rows * together * lanes < ONE_PASS_FILL and images < samples:
        images *= 2
    elements = images * rows * together * lanes
    per_thread = 64 if way == "forward" else 32
    return OnePass(images, rows, together, lanes, num_warps=max(1, min(16, elements // 32 // per_thread)))


@cache
def chunks(samples: int, pixels: int, channels: int, groups: int, multiprocessors: int) -> Chunks:
    """Chunks of about CHUNK_TILES tiles, more where that leaves multiprocessors without work."""
    per_group = channels // groups
    lanes = min(power_of_two(per_group), MOST_LANES)
    pieces = -(-per_group // lanes)
    together = min(power_of_two(-(-LINE // per_group)), power_of_two(groups))
    rows = min(power_of_two(pixels), TILE_ELEMENTS // (together * lanes))
    tiles = -(-pixels // rows)
    others = samples * -(-groups // together) * pieces
    busy = -(-multiprocessors * PROGRAMS_PER_MULTIPROCESSOR // others)
    wanted = min(tiles, max(1, MOST_PARTS // pieces), max(busy, -(-tiles // CHUNK_TILES)))
    chunk_pixels = -(-tiles // wanted) * rows
    count = -(-pixels // chunk_pixels)
    return Chunks(chunk_pixels, count, rows, together, lanes, power_of_two(count * pieces))


def stays_in_l2(image_bytes: int, l2_bytes: int) -> bool:
    """Whether what the first step reads is still there when the second, a launch of its own, reads it again."""
    return image_bytes <= L2_SHARE * l2_bytes

"""The order in which programs do the two steps of GroupNorm, and how the second waits for the first.

An item is one step on one chunk of one sample in one tile of lanes. In a single launch programs draw tickets, numbers
of items, from a counter. Waves of samples take turns: the first step of a wave comes before the second step of the wave
ahead of it, so that what the second step waits for has been drawn long ago, by a program that runs: nothing can
deadlock, however few programs run at once, and what the first step read is still in the L2 cache.

`counters`: the next ticket, then for each sample the items of its first step that are done; zeros at first.
"""

import triton
import triton.language as tl


@triton.jit
def place(item, chunks, TILES: tl.constexpr):
    """Sample, tile and chunk of an item of one step: neighbours in order are neighbours in memory."""
    return item // TILES // chunks, item % TILES, item // TILES % chunks


@triton.jit
def place_of_ticket(ticket, chunks, samples, wave, TILES: tl.constexpr):
    """Sample (none from `samples` on), tile and chunk, and whether it is the first step.

    Waves are `wave` samples. Their turns: first step of wave 0, of 1, second of 0, first of 2, second of 1, ...
    """
    of_wave = wave * chunks * TILES
    turn = ticket // of_wave
    is_first = (turn == 0) | (turn % 2 == 1)
    n, tile, chunk = place(ticket % of_wave, chunks, TILES)
    return tl.where(is_first, (turn + 1) // 2, turn // 2 - 1) * wave + n, tile, chunk, is_first


@triton.jit
def finish(counters, n):
    # Every thread's results are written before the one that counts.
    tl.debug_barrier()
    tl.atomic_add(counters + 1 + n, 1, sem="release")


@triton.jit
def wait(counters, n, items):
    while tl.atomic_add(counters + 1 + n, 0, sem="acquire") < items:
        pass
    tl.debug_barrier()

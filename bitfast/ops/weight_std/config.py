"""How many elements of weights a program of the Triton kernels holds, in how many threads: data, with its reason.

Chosen by what the compiler reports (`python -m benchmarks.ops.static_report`); no GPU was to be had.
"""

# Eight elements a thread: what one load of 16 bytes has in 16-bit types. Sixteen did not fit its registers. A row of
# 256 is then one warp's. Longer rows than a tile are met in parts, and read a second time from caches: two programs a
# multiprocessor have at most 29 MB of w and d under way on an H200 (rows of 18432, R152x4); its L2 holds 50 MB.
TILE = 4096
NUM_WARPS = 16

# At most, a thread: two programs fit a multiprocessor, so that one loads while the other sums. Nothing is spilled; left
# alone the compiler takes 88 for the optimizer step.
REGISTERS = 64

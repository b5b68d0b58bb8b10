"""Which algorithm of the native library computes a convolution: data, with the measurement behind it.

`python -m benchmarks.ops.bench_conv` -> benchmarks/results/conv_cpu_*.json.
"""

from torch import Tensor

# From 8 tiles of 4x4 outputs on Winograd's F(4x4, 3x3) is the faster; with fewer, reading the transformed weights, four
# times as many, is all the time there is.
WINOGRAD_TILES = 8
WINOGRAD_PRODUCTS = 36  # of a tile; the products by gemm are those of taps that see the image


def algorithm(x: Tensor, kernel: Tensor, stride: int) -> str:
    """ "winograd" or "gemm" for a convolution (O, I, KH, KW) of images like x (N, C, H, W); "" if neither can."""
    outputs, inputs, height, width = kernel.shape
    if height != width or height not in (1, 3) or outputs % 32 or inputs % 32 or inputs != x.shape[1]:
        return ""
    if height != 3 or stride != 1:
        return "gemm"
    n, _, rows, columns = x.shape
    tiles, direct = -(-rows // 4) * -(-columns // 4), (3 * rows - 2) * (3 * columns - 2)
    return "winograd" if n * tiles >= WINOGRAD_TILES and direct >= WINOGRAD_PRODUCTS * tiles else "gemm"

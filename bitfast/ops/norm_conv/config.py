"""Which algorithm of the native library computes a convolution: data, with the measurement behind it.

`python -m benchmarks.ops.bench_conv` -> benchmarks/results/conv_cpu_*.json.
"""

from torch import Tensor

# From 8 tiles of 4x4 outputs on Winograd's F(4x4, 3x3) is the faster; with fewer, reading the transformed weights, four
# times as many, is all the time there is.
WINOGRAD_TILES = 8


def algorithm(x: Tensor, kernel: Tensor, stride: int) -> str:
    """ "winograd" or "gemm" for a convolution (O, I, KH, KW) of images like x (N, C, H, W); "" if neither can."""
    outputs, inputs, height, width = kernel.shape
    if height != width or height not in (1, 3) or outputs % 32 or inputs % 32 or inputs != x.shape[1]:
        return ""
    tiles = x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    return "winograd" if height == 3 and stride == 1 and tiles >= WINOGRAD_TILES else "gemm"

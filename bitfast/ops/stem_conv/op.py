"""torch.ops.bitfast.{stem_conv, stem_conv_backward} and the function users call."""

import torch
from torch import Tensor

from bitfast.ops import _dispatch
from bitfast.ops._dtypes import require_dtype
from bitfast.ops._library import LIBRARY, below_autograd, native_missing, needs_graph, refuse_second_derivative
from bitfast.ops.stem_conv import reference

_OUTPUTS = 32  # the native kernels take multiples

LIBRARY.define("stem_conv(Tensor x, Tensor kernel) -> Tensor")
LIBRARY.define("stem_conv_backward(Tensor dy, Tensor x, Tensor kernel, bool[] wanted) -> Tensor[]")
_STEM_CONV = torch.ops.bitfast.stem_conv.default
_BACKWARD = torch.ops.bitfast.stem_conv_backward.default


def stem_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution of 7x7 and stride 2, padded by 3 zeros.

        y[o, i, j] = sum over c, r, s of kernel[o, c, r, s] * x0[c, 2i - 3 + r, 2j - 3 + s], x0 = x with 0 outside

    Shapes:  x (N, C, H, W), any strides; kernel (O, C, 7, 7); returns (N, O, ceil(H / 2), ceil(W / 2)), channels_last
    Dtypes:  fp32 | bf16 | fp16 | fp64, x and kernel alike; native on the CPU in fp32 with a multiple of 32 outputs
    Traffic: reads x once, writes y
    Raises:  ValueError on shapes or device; TypeError on dtypes
    Source:  bit_pytorch/models.py of the BiT release, `root`
    """
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be 4-D (N, C, H, W)")
    if 0 in x.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)}; only N may be 0")
    if kernel.dim() != 4 or kernel.shape[0] == 0 or kernel.shape[1:] != (x.shape[1], 7, 7):
        raise ValueError(
            f"kernel has shape {tuple(kernel.shape)}; it must be (O, {x.shape[1]}, 7, 7): x has {x.shape[1]} channels"
        )
    require_dtype("x", x.dtype)
    if kernel.dtype != x.dtype:
        raise TypeError(f"kernel is {kernel.dtype}; it must be {x.dtype}, the dtype of x")
    if kernel.device != x.device:
        raise ValueError(f"kernel is on {kernel.device}; it must be on {x.device}, where x is")
    return _STEM_CONV(x, kernel)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _forward(x, kernel):
    return _last(_dispatch.select("stem_conv", x)(_last(x), _last(kernel)))


def _backward(dy, x, kernel, wanted):
    run = _dispatch.select("stem_conv_backward", x)
    gradients = run(_last(dy), _last(x), _last(kernel), wanted)
    return [_last(gradient) for gradient, wants in zip(gradients, wanted, strict=True) if wants]


LIBRARY.impl("stem_conv", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("stem_conv_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("bitfast::stem_conv", lib=LIBRARY)
def _(x, kernel):
    n, _, height, width = x.shape
    return _last(x.new_empty((n, kernel.shape[0], (height + 1) // 2, (width + 1) // 2)))


@torch.library.register_fake("bitfast::stem_conv_backward", lib=LIBRARY)
def _(dy, x, kernel, wanted):
    return [_last(t.new_empty(t.shape)) for t, wants in zip((x, kernel), wanted, strict=True) if wants]


class _StemConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(x, kernel)
        return below_autograd(_STEM_CONV, x, kernel)

    @staticmethod
    def backward(ctx, dy):
        refuse_second_derivative("stem_conv")
        wanted = list(ctx.needs_input_grad)
        gradients = iter(_BACKWARD(dy, *ctx.saved_tensors, wanted))
        return tuple(next(gradients) if wants else None for wants in wanted)


def _autograd(x, kernel):
    return _StemConv.apply(x, kernel) if needs_graph(x, kernel) else below_autograd(_STEM_CONV, x, kernel)


LIBRARY.impl("stem_conv", _autograd, "Autograd")


def _native_forward(x, kernel):
    if kernel.shape[0] % _OUTPUTS:
        return reference.forward(x, kernel)
    return torch.ops.bitfast_native.stem_conv.default(x, kernel)


def _native_backward(dy, x, kernel, wanted):
    """Images seldom want a gradient: torch makes it."""
    ours = wanted[1] and kernel.shape[0] % _OUTPUTS == 0
    others = [wanted[0], wanted[1] and not ours]
    dx, dkernel = reference.backward(dy, x, kernel, others) if any(others) else (None, None)
    return dx, torch.ops.bitfast_native.stem_weight_gradient.default(x, dy) if ours else dkernel


def _native_supports(x: Tensor) -> str:
    if x.dtype != torch.float32:
        return f"it has no {x.dtype}"
    return native_missing()


_dispatch.register(
    "stem_conv",
    _dispatch.Impl("native", _native_forward, _native_supports, devices=("cpu",)),
    _dispatch.Impl("reference", reference.forward, _dispatch.anything),
)
_dispatch.register(
    "stem_conv_backward",
    _dispatch.Impl("native", _native_backward, _native_supports, devices=("cpu",)),
    _dispatch.Impl("reference", reference.backward, _dispatch.anything),
)

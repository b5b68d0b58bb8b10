"""torch.ops.bitfast.{stem_pool, stem_pool_with_index, stem_pool_backward} and the function users call."""

import torch
from torch import Tensor

from bitfast.ops import _dispatch, _triton
from bitfast.ops._dtypes import require_dtype
from bitfast.ops._library import LIBRARY, below_autograd, native_missing, needs_graph, refuse_second_derivative
from bitfast.ops.stem_pool import reference

_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)

LIBRARY.define("stem_pool(Tensor x) -> Tensor")
LIBRARY.define("stem_pool_with_index(Tensor x) -> (Tensor y, Tensor index)")
LIBRARY.define("stem_pool_backward(Tensor dy, Tensor index, SymInt height, SymInt width, bool channels_last) -> Tensor")
_STEM_POOL = torch.ops.bitfast.stem_pool.default
_WITH_INDEX = torch.ops.bitfast.stem_pool_with_index.default
_BACKWARD = torch.ops.bitfast.stem_pool_backward.default


def stem_pool(x: Tensor) -> Tensor:
    """Zero padding of 1, then a 3x3 max-pool of stride 2 without padding: zeros take part in the maximum.

        y[i, j] = max over r, s in {0, 1, 2} of x0[2i - 1 + r, 2j - 1 + s], x0 = x with 0 outside the image

    Of equal inputs the first in the order of (r, s) gets the gradient, nothing does where a padding zero wins; NaN
    wins over everything.

    Shapes:  x (N, C, H, W), channels_last or contiguous, kept; other strides are copied to the nearer of the two;
             returns (N, C, ceil(H / 2), ceil(W / 2))
    Dtypes:  fp32 | bf16 | fp16 | fp64; gradients summed in fp32 (fp64 for fp64)
    Traffic: reads x once, writes y; saves one byte per element of y for backward, not x
    Raises:  ValueError on shapes; TypeError on dtypes
    Source:  bit_pytorch/models.py of the BiT release, `root`
    """
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be 4-D (N, C, H, W)")
    if 0 in x.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)}; only N may be 0")
    require_dtype("x", x.dtype)
    return _STEM_POOL(x)


def _is_channels_last(x: Tensor) -> bool:
    """Whether the results are channels_last: as x is, or is nearer to where x is strided."""
    if x.is_contiguous():
        return False
    return x.stride(1) == 1 or x.is_contiguous(memory_format=torch.channels_last)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _pooled(x: Tensor, with_index: bool) -> tuple[Tensor, Tensor | None]:
    x = x.contiguous(memory_format=_format(_is_channels_last(x)))
    return _dispatch.select("stem_pool", x)(x, with_index)


def _forward(x):
    return _pooled(x, False)[0]


def _forward_with_index(x):
    return _pooled(x, True)


def _backward(dy, index, height, width, channels_last):
    if channels_last and dy.is_contiguous() and not dy.is_contiguous(memory_format=torch.channels_last):
        _dispatch.say_once("stem_pool_backward got a gradient that is not channels_last, as x is: it is copied")
    dy = dy.contiguous(memory_format=_format(channels_last))
    return _dispatch.select("stem_pool_backward", dy)(dy, index, height, width, channels_last)


LIBRARY.impl("stem_pool", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("stem_pool_with_index", _forward_with_index, "CompositeExplicitAutograd")
LIBRARY.impl("stem_pool_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("bitfast::stem_pool", lib=LIBRARY)
def _(x):
    n, channels, height, width = x.shape
    shape = (n, channels, (height + 1) // 2, (width + 1) // 2)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(_is_channels_last(x)))


@torch.library.register_fake("bitfast::stem_pool_with_index", lib=LIBRARY)
def _(x):
    y = _STEM_POOL(x)
    return y, torch.empty_like(y, dtype=torch.uint8)


@torch.library.register_fake("bitfast::stem_pool_backward", lib=LIBRARY)
def _(dy, index, height, width, channels_last):
    shape = (*dy.shape[:2], height, width)
    return torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=_format(channels_last))


class _StemPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y, index = below_autograd(_WITH_INDEX, x)
        ctx.save_for_backward(index)
        ctx.size, ctx.channels_last = x.shape[2:], _is_channels_last(x)
        return y

    @staticmethod
    def backward(ctx, dy):
        refuse_second_derivative("stem_pool")
        return _BACKWARD(dy, *ctx.saved_tensors, *ctx.size, ctx.channels_last)


def _autograd(x):
    return _StemPool.apply(x) if needs_graph(x) else below_autograd(_STEM_POOL, x)


LIBRARY.impl("stem_pool", _autograd, "Autograd")


def _native_forward(x, with_index):
    native, channels_last = torch.ops.bitfast_native, _is_channels_last(x)
    if with_index:
        return native.stem_pool_with_index.default(x, channels_last)
    return native.stem_pool.default(x, channels_last), None


def _native_backward(dy, index, height, width, channels_last):
    return torch.ops.bitfast_native.stem_pool_backward.default(dy, index, height, width, channels_last)


def _native_supports(x: Tensor) -> str:
    if x.dtype not in _NATIVE_DTYPES:
        return f"it has no {x.dtype}"
    return native_missing()


def _triton_forward(x, with_index):
    from bitfast.ops.stem_pool import triton_impl

    return triton_impl.forward(x, with_index)


def _triton_backward(dy, index, height, width, channels_last):
    from bitfast.ops.stem_pool import triton_impl

    return triton_impl.backward(dy, index, height, width, channels_last)


_dispatch.register(
    "stem_pool",
    _dispatch.Impl("native", _native_forward, _native_supports, devices=("cpu",)),
    _dispatch.Impl("triton", _triton_forward, _triton.supports, devices=("cuda",), on_request=_triton.ON_REQUEST),
    _dispatch.Impl("reference", reference.forward, _dispatch.anything),
)
_dispatch.register(
    "stem_pool_backward",
    _dispatch.Impl("native", _native_backward, _native_supports, devices=("cpu",)),
    _dispatch.Impl("triton", _triton_backward, _triton.supports, devices=("cuda",), on_request=_triton.ON_REQUEST),
    _dispatch.Impl("reference", reference.backward, _dispatch.anything),
)

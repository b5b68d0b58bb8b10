"""norm_conv on the CPU: the norm is applied as the convolutions gather their input and stands nowhere in memory.

Computed in float32; bfloat16 is widened for it where the machine cannot multiply it.
"""

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakTensorKeyDictionary

from bitfast.ops import _dispatch
from bitfast.ops._library import native_missing
from bitfast.ops.norm_conv import composed
from bitfast.ops.norm_conv.config import algorithm

_FILTERS = WeakTensorKeyDictionary()  # kernel -> (version, address, algorithm, filter)


def forward(x, residual, weight, bias, kernels, strides, groups, eps, keep_filters):
    if x.dtype == torch.bfloat16:
        s = x if residual is None else x + residual
        wide = [k.float() for k in kernels]
        ys, _, mean, rstd = forward(s.float(), None, weight, bias, wide, strides, groups, eps, False)
        return [y.bfloat16() for y in ys], s, mean, rstd
    algorithms = [algorithm(x, kernel, stride) for kernel, stride in zip(kernels, strides, strict=True)]
    if not all(algorithms):
        return composed.forward(x, residual, weight, bias, kernels, strides, groups, eps, keep_filters)
    native = torch.ops.bitfast_native
    if residual is None:
        s, (mean, rstd) = x, native.group_norm_statistics.default(x, groups, eps)
    else:
        s, mean, rstd = native.add_group_norm_statistics.default(x, residual, groups, eps)
    rows = native.norm_rows.default(mean, rstd, weight, bias)
    ys = []
    for kernel, stride, name in zip(kernels, strides, algorithms, strict=True):
        filtered = _kept(kernel, name) if keep_filters else _filter(kernel, name)
        if name == "winograd":
            ys.append(native.winograd_conv.default(s, rows, filtered))
        else:
            ys.append(native.gemm_conv.default(s, rows, filtered, stride))
    return ys, s, mean, rstd


def backward(dys, ds, s, weight, bias, mean, rstd, kernels, strides, groups, eps, wanted):
    if s.dtype == torch.bfloat16:
        dys, wide, ds = [dy.float() for dy in dys], [k.float() for k in kernels], ds if ds is None else ds.float()
        dx, dweight, dbias, dkernels = backward(
            dys, ds, s.float(), weight, bias, mean, rstd, wide, strides, groups, eps, wanted
        )
        return dx.bfloat16(), dweight, dbias, [dk.bfloat16() for dk in dkernels]
    algorithms = [algorithm(s, kernel, stride) for kernel, stride in zip(kernels, strides, strict=True)]
    if not all(algorithms):
        return composed.backward(dys, ds, s, weight, bias, mean, rstd, kernels, strides, groups, eps, wanted)
    native = torch.ops.bitfast_native
    rows = native.norm_rows.default(mean, rstd, weight, bias) if any(wanted) else None
    da, dkernels = None, []
    height, width = s.shape[2:]
    for dy, kernel, stride, name, wants in zip(dys, kernels, strides, algorithms, wanted, strict=True):
        if name == "winograd":
            part = native.winograd_conv.default(dy, None, native.winograd_filter.default(_channels_last(kernel), True))
            dkernels += [native.winograd_weight_gradient.default(s, rows, dy)] if wants else []
            da = part if da is None else da.add_(part)
        else:
            if da is None:
                da = native.gemm_input_gradient.default(dy, _channels_last(kernel), height, width, stride)
            else:
                native.add_gemm_input_gradient.default(da, dy, _channels_last(kernel), stride)
            dkernels += [native.gemm_weight_gradient.default(s, rows, dy, kernel.shape[2], stride)] if wants else []
    gradients = _dispatch.select("group_norm_backward", s)
    return *gradients(da, ds, s, weight, bias, mean, rstd, groups, "relu"), dkernels


def bfloat16_is_fast() -> bool:
    """Whether torch multiplies bfloat16 by instructions. Elsewhere it emulates them, many times slower than float32."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


def supports(x: Tensor) -> str:
    """Why this cannot take images or kernels like `x`, or ""."""
    if x.dtype == torch.bfloat16 and bfloat16_is_fast():
        return "torch's bfloat16 convolutions use this machine's bfloat16 instructions"
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"it has no {x.dtype}"
    if x.shape[1] % 32:
        return f"{x.shape[1]} channels are not a multiple of 32"
    return native_missing()


def _filter(kernel, name):
    native, kernel = torch.ops.bitfast_native, _channels_last(kernel)
    return native.winograd_filter.default(kernel, False) if name == "winograd" else native.gemm_filter.default(kernel)


def _kept(kernel, name):
    """The filter made once for a parameter that is used again unchanged. A change counts where autograd or the address
    shows it: not in tensors made inside inference_mode, nor in those that compiled code writes and uses again, so for
    these nothing is kept."""
    if kernel.is_inference() or not isinstance(kernel, Parameter):
        return _filter(kernel, name)
    made_of = kernel._version, kernel.data_ptr(), name
    kept = _FILTERS.get(kernel)
    if kept is None or kept[:3] != made_of:
        _FILTERS[kernel] = kept = (*made_of, _filter(kernel, name))
    return kept[3]


def _channels_last(kernel):
    return kernel.detach().contiguous(memory_format=torch.channels_last)

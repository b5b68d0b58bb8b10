"""Operators of BiT networks, each with a plain-torch reference and the kernels that replace it."""

from bitfast.ops._dispatch import report, use_impl
from bitfast.ops.group_norm.op import group_norm_act
from bitfast.ops.norm_conv.op import norm_conv
from bitfast.ops.resample.op import resample
from bitfast.ops.standardized_sgd.op import standardized_sgd_step
from bitfast.ops.stem_pool.op import stem_pool
from bitfast.ops.weight_std.op import weight_gradient_norms, weight_standardize, weight_standardize_backward

__all__ = [
    "group_norm_act",
    "norm_conv",
    "report",
    "resample",
    "standardized_sgd_step",
    "stem_pool",
    "use_impl",
    "weight_gradient_norms",
    "weight_standardize",
    "weight_standardize_backward",
]

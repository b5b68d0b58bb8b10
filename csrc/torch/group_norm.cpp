// torch.ops.bitfast_native.{group_norm_act, add_group_norm_act}: tensors to GroupNormForward.
// Callers are bitfast/ops; what is checked here is what memory safety needs.
#include "group_norm/group_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "torch/parallel.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bitfast::StorageType storage_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return bitfast::StorageType::kFloat32;
    case ScalarType::Double: return bitfast::StorageType::kFloat64;
    case ScalarType::BFloat16: return bitfast::StorageType::kBFloat16;
    default: STD_TORCH_CHECK(false, "group_norm: x must be float32, float64 or bfloat16");
  }
}

// Dense with channels fastest; strides of dims of size 1 do not matter.
bool is_channels_last(const Tensor& x) {
  const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  auto agrees = [&](int dim, int64_t stride) { return x.size(dim) == 1 || x.stride(dim) == stride; };
  return agrees(0, channels * height * width) && agrees(1, 1) && agrees(2, width * channels) && agrees(3, channels);
}

struct Results {
  Tensor y, sum, mean, rstd;
};

Results forward(const Tensor& x, const Tensor* residual, const Tensor& weight, const Tensor& bias, int64_t groups,
                double eps, int64_t act) {
  STD_TORCH_CHECK(x.dim() == 4, "group_norm: x must be 4-D");
  const auto type = storage_type(x);
  const auto parameter_type = type == bitfast::StorageType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  const int64_t n = x.size(0), channels = x.size(1);
  const bool channels_last = x.numel() > 0 && is_channels_last(x);
  STD_TORCH_CHECK(channels_last || x.is_contiguous(), "group_norm: x must be contiguous or channels_last");
  STD_TORCH_CHECK(groups > 0 && channels % groups == 0, "group_norm: groups must divide the channels");
  STD_TORCH_CHECK(act >= 0 && act <= 2, "group_norm: unknown activation");
  for (const Tensor* parameter : {&weight, &bias})
    STD_TORCH_CHECK(parameter->is_cpu() && parameter->scalar_type() == parameter_type && parameter->is_contiguous() &&
                        parameter->numel() == channels,
                    "group_norm: weight and bias must be contiguous, (C,), in the dtype of the statistics");
  if (residual) {
    bool alike = residual->is_cpu() && residual->dim() == 4 && residual->scalar_type() == x.scalar_type();
    for (int dim = 0; alike && dim < 4; ++dim) alike = residual->size(dim) == x.size(dim);
    STD_TORCH_CHECK(alike && (channels_last ? is_channels_last(*residual) : residual->is_contiguous()),
                    "group_norm: residual must have the shape, dtype and layout of x");
  }

  Results results;
  results.y = torch::stable::empty_like(x);
  if (residual) results.sum = torch::stable::empty_like(x);
  results.mean = torch::stable::new_empty(x, {n, groups}, parameter_type);
  results.rstd = torch::stable::new_empty(x, {n, groups}, parameter_type);

  bitfast::GroupNormForward p{};
  p.x = x.const_data_ptr();
  p.residual = residual ? residual->const_data_ptr() : nullptr;
  p.weight = weight.const_data_ptr();
  p.bias = bias.const_data_ptr();
  p.y = results.y.mutable_data_ptr();
  p.sum = residual ? results.sum.mutable_data_ptr() : nullptr;
  p.mean = results.mean.mutable_data_ptr();
  p.rstd = results.rstd.mutable_data_ptr();
  p.n = n;
  p.channels = channels;
  p.pixels = x.size(2) * x.size(3);
  p.groups = groups;
  p.eps = eps;
  p.type = type;
  p.activation = static_cast<bitfast::Activation>(act);
  p.channels_last = channels_last;
  if (x.numel() > 0) {
    BITFAST_KERNEL(group_norm_forward)(p, bitfast::torch_threads());
  }
  return results;
}

std::tuple<Tensor, Tensor, Tensor> group_norm_act(Tensor x, Tensor weight, Tensor bias, int64_t groups, double eps,
                                                  int64_t act) {
  Results r = forward(x, nullptr, weight, bias, groups, eps, act);
  return {r.y, r.mean, r.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_group_norm_act(Tensor x, Tensor residual, Tensor weight, Tensor bias,
                                                              int64_t groups, double eps, int64_t act) {
  Results r = forward(x, &residual, weight, bias, groups, eps, act);
  return {r.y, r.sum, r.mean, r.rstd};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_native, m) {
  m.def(
      "group_norm_act(Tensor x, Tensor weight, Tensor bias, int groups, float eps, int act)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "add_group_norm_act(Tensor x, Tensor residual, Tensor weight, Tensor bias, int groups, float eps, int act)"
      " -> (Tensor y, Tensor s, Tensor mean, Tensor rstd)");
}

STABLE_TORCH_LIBRARY_IMPL(bitfast_native, CPU, m) {
  m.impl("group_norm_act", TORCH_BOX(&group_norm_act));
  m.impl("add_group_norm_act", TORCH_BOX(&add_group_norm_act));
}

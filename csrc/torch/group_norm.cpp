// torch.ops.bitfast_native.{group_norm_act, add_group_norm_act, group_norm_act_backward}: tensors to the kernels' PODs.
// Callers are bitfast/ops; what is checked here is what memory safety needs.
#include "group_norm/group_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>

#include "torch/parallel.h"
#include "torch/tensors.h"

namespace {

using bitfast::is_channels_last;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// x as the kernels see it.
bitfast::GroupNormImages images(const Tensor& x, int64_t groups, int64_t act) {
  STD_TORCH_CHECK(x.dim() == 4, "group_norm: x must be 4-D");
  const bool channels_last = x.numel() > 0 && is_channels_last(x);
  STD_TORCH_CHECK(channels_last || x.is_contiguous(), "group_norm: x must be contiguous or channels_last");
  STD_TORCH_CHECK(groups > 0 && x.size(1) % groups == 0, "group_norm: groups must divide the channels");
  STD_TORCH_CHECK(act >= 0 && act <= 2, "group_norm: unknown activation");
  bitfast::GroupNormImages p{};
  p.n = x.size(0);
  p.channels = x.size(1);
  p.pixels = x.size(2) * x.size(3);
  p.groups = groups;
  p.type = bitfast::storage_type(x);
  p.activation = static_cast<bitfast::Activation>(act);
  p.channels_last = channels_last;
  return p;
}

ScalarType parameter_type(const bitfast::GroupNormImages& p) {
  return p.type == bitfast::StorageType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

void check_like(const char* name, const Tensor& other, const Tensor& x, const bitfast::GroupNormImages& p) {
  bool alike = other.is_cpu() && other.dim() == 4 && other.scalar_type() == x.scalar_type();
  for (int dim = 0; alike && dim < 4; ++dim) alike = other.size(dim) == x.size(dim);
  STD_TORCH_CHECK(alike && (p.channels_last ? is_channels_last(other) : other.is_contiguous()), "group_norm: ", name,
                  " must have the shape, dtype and layout of x");
}

void check_values(const char* name, const Tensor& values, int64_t count, const bitfast::GroupNormImages& p) {
  STD_TORCH_CHECK(values.is_cpu() && values.scalar_type() == parameter_type(p) && values.is_contiguous() &&
                      values.numel() == count,
                  "group_norm: ", name, " must be contiguous, of ", count, " values in the dtype of the statistics");
}

struct Results {
  Tensor y, sum, mean, rstd;
};

// The parts of a forward that do not depend on weight and bias.
bitfast::GroupNormForward prepare(const Tensor& x, const Tensor* residual, int64_t groups, double eps, int64_t act,
                                  Results& results) {
  bitfast::GroupNormForward p{};
  p.images = images(x, groups, act);
  if (residual) check_like("residual", *residual, x, p.images);
  if (residual) results.sum = torch::stable::empty_like(x);
  results.mean = torch::stable::new_empty(x, {p.images.n, groups}, parameter_type(p.images));
  results.rstd = torch::stable::new_empty(x, {p.images.n, groups}, parameter_type(p.images));
  p.x = x.const_data_ptr();
  p.residual = residual ? residual->const_data_ptr() : nullptr;
  p.sum = residual ? results.sum.mutable_data_ptr() : nullptr;
  p.mean = results.mean.mutable_data_ptr();
  p.rstd = results.rstd.mutable_data_ptr();
  p.eps = eps;
  return p;
}

Results forward(const Tensor& x, const Tensor* residual, const Tensor& weight, const Tensor& bias, int64_t groups,
                double eps, int64_t act) {
  Results results;
  bitfast::GroupNormForward p = prepare(x, residual, groups, eps, act, results);
  check_values("weight", weight, p.images.channels, p.images);
  check_values("bias", bias, p.images.channels, p.images);
  results.y = torch::stable::empty_like(x);
  p.weight = weight.const_data_ptr();
  p.bias = bias.const_data_ptr();
  p.y = results.y.mutable_data_ptr();
  BITFAST_KERNEL(group_norm_forward)(p, bitfast::torch_threads());
  return results;
}

Results statistics(const Tensor& x, const Tensor* residual, int64_t groups, double eps) {
  Results results;
  const bitfast::GroupNormForward p = prepare(x, residual, groups, eps, 0, results);
  STD_TORCH_CHECK(p.images.type == bitfast::StorageType::kFloat32 && (p.images.channels_last || x.numel() == 0),
                  "group_norm: statistics are of channels_last float32 images");
  BITFAST_KERNEL(group_norm_statistics)(p, bitfast::torch_threads());
  return results;
}

std::tuple<Tensor, Tensor> group_norm_statistics(Tensor x, int64_t groups, double eps) {
  Results r = statistics(x, nullptr, groups, eps);
  return {r.mean, r.rstd};
}

std::tuple<Tensor, Tensor, Tensor> add_group_norm_statistics(Tensor x, Tensor residual, int64_t groups, double eps) {
  Results r = statistics(x, &residual, groups, eps);
  return {r.sum, r.mean, r.rstd};
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

std::tuple<Tensor, Tensor, Tensor> group_norm_act_backward(Tensor dy, std::optional<Tensor> ds, Tensor x, Tensor weight,
                                                           Tensor bias, Tensor mean, Tensor rstd, int64_t groups,
                                                           int64_t act) {
  bitfast::GroupNormBackward p{};
  p.images = images(x, groups, act);
  check_like("dy", dy, x, p.images);
  if (ds) check_like("ds", *ds, x, p.images);
  check_values("weight", weight, p.images.channels, p.images);
  check_values("bias", bias, p.images.channels, p.images);
  check_values("mean", mean, p.images.n * groups, p.images);
  check_values("rstd", rstd, p.images.n * groups, p.images);

  Tensor dx = torch::stable::empty_like(x);
  Tensor dw = torch::stable::empty_like(weight), db = torch::stable::empty_like(bias);
  p.dy = dy.const_data_ptr();
  p.ds = ds ? ds->const_data_ptr() : nullptr;
  p.x = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  p.bias = bias.const_data_ptr();
  p.mean = mean.const_data_ptr();
  p.rstd = rstd.const_data_ptr();
  p.dx = dx.mutable_data_ptr();
  p.dw = dw.mutable_data_ptr();
  p.db = db.mutable_data_ptr();
  BITFAST_KERNEL(group_norm_backward)(p, bitfast::torch_threads());
  return {dx, dw, db};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_native, m) {
  m.def("group_norm_statistics(Tensor x, int groups, float eps) -> (Tensor mean, Tensor rstd)");
  m.def(
      "add_group_norm_statistics(Tensor x, Tensor residual, int groups, float eps)"
      " -> (Tensor s, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_act(Tensor x, Tensor weight, Tensor bias, int groups, float eps, int act)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "add_group_norm_act(Tensor x, Tensor residual, Tensor weight, Tensor bias, int groups, float eps, int act)"
      " -> (Tensor y, Tensor s, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_act_backward(Tensor dy, Tensor? ds, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd,"
      " int groups, int act) -> (Tensor dx, Tensor dw, Tensor db)");
}

STABLE_TORCH_LIBRARY_IMPL(bitfast_native, CPU, m) {
  m.impl("group_norm_statistics", TORCH_BOX(&group_norm_statistics));
  m.impl("add_group_norm_statistics", TORCH_BOX(&add_group_norm_statistics));
  m.impl("group_norm_act", TORCH_BOX(&group_norm_act));
  m.impl("add_group_norm_act", TORCH_BOX(&add_group_norm_act));
  m.impl("group_norm_act_backward", TORCH_BOX(&group_norm_act_backward));
}

// torch.ops.bitfast_cuda.{group_norm_act, add_group_norm_act, group_norm_act_backward}: tensors to the kernels' PODs, and
// group_norm_objection: why the kernels cannot take an image. Callers are bitfast/ops; what is checked here is what
// memory safety needs.
#include "group_norm/group_norm_gpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "torch/gpu_tensors.h"

namespace {

using bitfast::gpu::Images;
using bitfast::gpu::Slabs;
using bitfast::gpu::Way;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Images images(const Tensor& like, int64_t n, int64_t channels, int64_t pixels, int64_t groups) {
  STD_TORCH_CHECK(groups > 0 && channels % groups == 0, "group_norm: groups must divide the channels");
  STD_TORCH_CHECK(pixels * channels < int64_t(1) << 31, "group_norm: an image has too many elements");
  Images p{};
  p.n = n;
  p.channels = int(channels);
  p.pixels = int(pixels);
  p.groups = int(groups);
  p.type = bitfast::gpu::type(like);
  return p;
}

Images images(const Tensor& x, int64_t groups, int64_t act) {
  STD_TORCH_CHECK(bitfast::gpu::is_here(x) && bitfast::is_channels_last(x), "group_norm: x must be channels_last");
  STD_TORCH_CHECK(act >= 0 && act <= 2, "group_norm: unknown activation");
  Images p = images(x, x.size(0), x.size(1), x.size(2) * x.size(3), groups);
  p.activation = static_cast<bitfast::Activation>(act);
  return p;
}

std::string objection(const Images& p, Way way, Slabs* slabs) {
  std::string why;
  bitfast::gpu::check(bitfast::gpu::choose_slabs(p, way, slabs, &why));
  return why;
}

Slabs slabs_for(const Images& p, Way way) {
  Slabs slabs{};
  const std::string why = objection(p, way, &slabs);
  STD_TORCH_CHECK(why.empty(), "group_norm: ", why);
  return slabs;
}

// Images are read by whole vectors.
const void* image(const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(bitfast::gpu::is_here(t) && t.scalar_type() == x.scalar_type() && bitfast::same_shape(t, x) &&
                      bitfast::is_channels_last(t) && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0,
                  "group_norm: ", name, " must have the shape, dtype and layout of x, at an address divisible by 16");
  return t.const_data_ptr();
}

const float* values(const char* name, const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(bitfast::gpu::is_here(t) && t.scalar_type() == ScalarType::Float && t.is_contiguous() &&
                      t.numel() == count,
                  "group_norm: ", name, " must be contiguous, of ", count, " float32 values");
  return static_cast<const float*>(t.const_data_ptr());
}

struct Results {
  Tensor y, sum, mean, rstd;
};

Results forward(const Tensor& x, const Tensor* residual, const Tensor& weight, const Tensor& bias, int64_t groups,
                double eps, int64_t act) {
  bitfast::gpu::GroupNormForward p{};
  p.images = images(x, groups, act);
  Results results;
  results.y = torch::stable::empty_like(x);
  if (residual) results.sum = torch::stable::empty_like(x);
  results.mean = torch::stable::new_empty(x, {p.images.n, groups}, ScalarType::Float);
  results.rstd = torch::stable::new_empty(x, {p.images.n, groups}, ScalarType::Float);
  p.x = image("x", x, x);
  p.residual = residual ? image("residual", *residual, x) : nullptr;
  p.weight = values("weight", weight, p.images.channels);
  p.bias = values("bias", bias, p.images.channels);
  p.y = results.y.mutable_data_ptr();
  p.sum = residual ? results.sum.mutable_data_ptr() : nullptr;
  p.mean = static_cast<float*>(results.mean.mutable_data_ptr());
  p.rstd = static_cast<float*>(results.rstd.mutable_data_ptr());
  p.eps = float(eps);
  const bitfast::gpu::OnDeviceOf here(x);
  bitfast::gpu::check(bitfast::gpu::group_norm_forward(p, slabs_for(p.images, Way::kForward), here.stream));
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

std::tuple<Tensor, Tensor, Tensor> group_norm_act_backward(Tensor dy, std::optional<Tensor> ds, Tensor x, Tensor weight,
                                                           Tensor bias, Tensor mean, Tensor rstd, int64_t groups,
                                                           int64_t act) {
  bitfast::gpu::GroupNormBackward p{};
  p.images = images(x, groups, act);
  const bitfast::gpu::OnDeviceOf here(x);
  const Slabs slabs = slabs_for(p.images, Way::kBackward);
  p.dy = image("dy", dy, x);
  p.ds = ds ? image("ds", *ds, x) : nullptr;
  p.x = image("x", x, x);
  p.weight = values("weight", weight, p.images.channels);
  p.bias = values("bias", bias, p.images.channels);
  p.mean = values("mean", mean, p.images.n * groups);
  p.rstd = values("rstd", rstd, p.images.n * groups);

  const int64_t rows = slabs.down(p.images) * slabs.cluster;
  Tensor dx = torch::stable::empty_like(x);
  Tensor dw = torch::stable::new_empty(weight, {rows, p.images.channels});
  Tensor db = torch::stable::new_empty(weight, {rows, p.images.channels});
  p.dx = dx.mutable_data_ptr();
  p.dw = static_cast<float*>(dw.mutable_data_ptr());
  p.db = static_cast<float*>(db.mutable_data_ptr());
  bitfast::gpu::check(bitfast::gpu::group_norm_backward(p, slabs, here.stream));
  return {dx, dw, db};
}

std::string group_norm_objection(Tensor like, int64_t n, int64_t channels, int64_t pixels, int64_t groups,
                                 bool backward) {
  const bitfast::gpu::OnDeviceOf here(like);
  Slabs slabs{};
  return objection(images(like, n, channels, pixels, groups), backward ? Way::kBackward : Way::kForward, &slabs);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(BITFAST_GPU_LIBRARY, m) {
  m.def("group_norm_objection(Tensor like, int n, int channels, int pixels, int groups, bool backward) -> str");
  m.def(
      "group_norm_act(Tensor x, Tensor weight, Tensor bias, int groups, float eps, int act)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "add_group_norm_act(Tensor x, Tensor residual, Tensor weight, Tensor bias, int groups, float eps, int act)"
      " -> (Tensor y, Tensor s, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_act_backward(Tensor dy, Tensor? ds, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd,"
      " int groups, int act) -> (Tensor dx, Tensor dw_rows, Tensor db_rows)");
}

STABLE_TORCH_LIBRARY_IMPL(BITFAST_GPU_LIBRARY, BITFAST_GPU_KEY, m) {
  m.impl("group_norm_objection", TORCH_BOX(&group_norm_objection));
  m.impl("group_norm_act", TORCH_BOX(&group_norm_act));
  m.impl("add_group_norm_act", TORCH_BOX(&add_group_norm_act));
  m.impl("group_norm_act_backward", TORCH_BOX(&group_norm_act_backward));
}

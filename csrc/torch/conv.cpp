// torch.ops.bitfast_native.{winograd_conv, winograd_filter, winograd_weight_gradient}: tensors to PODs.
// Callers are bitfast/ops; what is checked here is what memory safety needs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "conv/implicit_gemm.h"
#include "conv/winograd.h"
#include "torch/parallel.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// (N, H, W, C) or (O, KH, KW, I), dense, with a multiple of 32 channels.
void check(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 4 && t.scalar_type() == ScalarType::Float && t.is_contiguous() &&
                      t.size(3) % 32 == 0,
                  what, " must be a contiguous 4-D float32 tensor with a multiple of 32 channels last");
}

// The rows mean, scale and bias (N, 3, C) of the norm before a convolution of x, or null.
const float* norm_data(const std::optional<Tensor>& norm, const Tensor& x) {
  if (!norm) return nullptr;
  STD_TORCH_CHECK(norm->is_cpu() && norm->dim() == 3 && norm->is_contiguous() &&
                      norm->scalar_type() == ScalarType::Float && norm->size(0) == x.size(0) && norm->size(1) == 3 &&
                      norm->size(2) == x.size(3),
                  "norm must be (N, 3, C) float32, contiguous");
  return static_cast<const float*>(norm->const_data_ptr());
}

const float* data(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* mutable_data(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

Tensor winograd_filter(Tensor weight, bool flipped) {
  check(weight, "winograd_filter: weight");
  STD_TORCH_CHECK(weight.size(1) == 3 && weight.size(2) == 3 && weight.size(0) % 32 == 0,
                  "winograd_filter: weight must be (O, 3, 3, I)");
  const int64_t out = weight.size(0), in = weight.size(3);
  Tensor filter = torch::stable::new_empty(weight, {flipped ? in : out, bitfast::winograd_filter_size(1, flipped ? out : in)});
  const bitfast::WinogradFilter p{in, out, flipped, data(weight), mutable_data(filter)};
  if (weight.numel() > 0) BITFAST_KERNEL(winograd_filter)(p, bitfast::torch_threads());
  return filter;
}

Tensor winograd_conv(Tensor x, std::optional<Tensor> norm, Tensor filter) {
  check(x, "winograd_conv: x");
  STD_TORCH_CHECK(filter.is_cpu() && filter.dim() == 2 && filter.is_contiguous() &&
                      filter.scalar_type() == ScalarType::Float && filter.size(0) % 32 == 0 &&
                      filter.size(1) == bitfast::winograd_filter_size(1, x.size(3)),
                  "winograd_conv: filter is not winograd_filter's for the channels of x");
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2), filter.size(0)});
  const bitfast::WinogradConv p{{x.size(0), x.size(1), x.size(2), x.size(3), filter.size(0)}, data(x), norm_data(norm, x), data(filter), mutable_data(y)};
  if (y.numel() > 0) BITFAST_KERNEL(winograd_conv)(p, bitfast::torch_threads());
  return y;
}

Tensor winograd_weight_gradient(Tensor x, std::optional<Tensor> norm, Tensor dy) {
  check(x, "winograd_weight_gradient: x");
  check(dy, "winograd_weight_gradient: dy");
  for (int dim = 0; dim < 3; ++dim)
    STD_TORCH_CHECK(x.size(dim) == dy.size(dim), "winograd_weight_gradient: x and dy must be images of one size");
  STD_TORCH_CHECK(x.size(0) * x.size(1) * x.size(2) > 0, "winograd_weight_gradient: x must not be empty");
  Tensor dw = torch::stable::new_empty(x, {dy.size(3), 3, 3, x.size(3)});
  const bitfast::WinogradWeightGradient p{
      {x.size(0), x.size(1), x.size(2), x.size(3), dy.size(3)}, data(x), norm_data(norm, x), data(dy), mutable_data(dw)};
  BITFAST_KERNEL(winograd_weight_gradient)(p, bitfast::torch_threads());
  return dw;
}

bitfast::ConvShape conv_shape(const Tensor& x, int64_t out_height, int64_t out_width, int64_t out, int64_t kernel,
                              int64_t stride, int64_t padding) {
  return {x.size(0), x.size(1), x.size(2), x.size(3), out_height, out_width, out, kernel, stride, padding};
}

int64_t reduced(int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  return (size + 2 * padding - kernel) / stride + 1;
}

Tensor gemm_filter(Tensor weight) {
  check(weight, "gemm_filter: weight");
  Tensor panels = torch::stable::empty_like(weight);
  const bitfast::ConvFilter p{{0, 0, 0, weight.size(3), 0, 0, weight.size(0), weight.size(1), 1, 0}, data(weight), mutable_data(panels)};
  BITFAST_KERNEL(gemm_filter)(p, bitfast::torch_threads());
  return panels;
}

Tensor gemm_conv(Tensor x, std::optional<Tensor> norm, Tensor panels, int64_t stride, int64_t padding) {
  check(x, "gemm_conv: x");
  const int64_t kernel = panels.size(1), h = reduced(x.size(1), kernel, stride, padding), w = reduced(x.size(2), kernel, stride, padding);
  Tensor y = torch::stable::new_empty(x, {x.size(0), h, w, panels.size(0)});
  const bitfast::ConvForward p{conv_shape(x, h, w, panels.size(0), kernel, stride, padding), data(x), norm_data(norm, x), data(panels), mutable_data(y)};
  BITFAST_KERNEL(gemm_forward)(p, bitfast::torch_threads());
  return y;
}

Tensor gemm_input_gradient(Tensor dy, Tensor weight, int64_t height, int64_t width, int64_t stride, int64_t padding) {
  Tensor dx = torch::stable::new_empty(dy, {dy.size(0), height, width, weight.size(3)});
  const bitfast::ConvInputGradient p{conv_shape(dx, dy.size(1), dy.size(2), dy.size(3), weight.size(1), stride, padding), data(dy), data(weight), mutable_data(dx)};
  BITFAST_KERNEL(gemm_input_gradient)(p, bitfast::torch_threads());
  return dx;
}

Tensor gemm_weight_gradient(Tensor x, std::optional<Tensor> norm, Tensor dy, int64_t kernel, int64_t stride, int64_t padding) {
  Tensor dw = torch::stable::new_empty(x, {dy.size(3), kernel, kernel, x.size(3)});
  const bitfast::ConvWeightGradient p{conv_shape(x, dy.size(1), dy.size(2), dy.size(3), kernel, stride, padding), data(x), norm_data(norm, x), data(dy), mutable_data(dw)};
  BITFAST_KERNEL(gemm_weight_gradient)(p, bitfast::torch_threads());
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_native, m) {
  m.def("gemm_filter(Tensor weight) -> Tensor");
  m.def("gemm_conv(Tensor x, Tensor? norm, Tensor panels, int stride, int padding) -> Tensor");
  m.def("gemm_input_gradient(Tensor dy, Tensor weight, int height, int width, int stride, int padding) -> Tensor");
  m.def("gemm_weight_gradient(Tensor x, Tensor? norm, Tensor dy, int kernel, int stride, int padding) -> Tensor");
  m.def("winograd_filter(Tensor weight, bool flipped) -> Tensor");
  m.def("winograd_conv(Tensor x, Tensor? norm, Tensor filter) -> Tensor");
  m.def("winograd_weight_gradient(Tensor x, Tensor? norm, Tensor dy) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bitfast_native, CPU, m) {
  m.impl("gemm_filter", TORCH_BOX(&gemm_filter));
  m.impl("gemm_conv", TORCH_BOX(&gemm_conv));
  m.impl("gemm_input_gradient", TORCH_BOX(&gemm_input_gradient));
  m.impl("gemm_weight_gradient", TORCH_BOX(&gemm_weight_gradient));
  m.impl("winograd_filter", TORCH_BOX(&winograd_filter));
  m.impl("winograd_conv", TORCH_BOX(&winograd_conv));
  m.impl("winograd_weight_gradient", TORCH_BOX(&winograd_weight_gradient));
}

// torch.ops.bitfast_native.{norm_rows, gemm_*, winograd_*}: tensors to the PODs of convolutions.
// Callers are bitfast/ops/norm_conv; what is checked here is what memory safety needs. Images (N, C, H, W) and weights
// (O, I, KH, KW) are channels_last, float32; kernels are padded by half of themselves.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "conv/implicit_gemm.h"
#include "conv/norm_rows.h"
#include "conv/winograd.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is_float(const Tensor& t) { return t.is_cpu() && t.scalar_type() == ScalarType::Float; }

void check_image(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(is_float(t) && t.dim() == 4 && t.size(1) > 0 && t.size(1) % 32 == 0 && bitfast::is_channels_last(t),
                  name, " must be a channels_last float32 image or weight with a multiple of 32 channels");
}

void check_weight(const Tensor& t) {
  check_image(t, "weight");
  STD_TORCH_CHECK(t.size(0) > 0 && t.size(0) % 32 == 0 && t.size(2) == t.size(3) && (t.size(2) == 1 || t.size(2) == 3),
                  "weight must be (O, I, 1, 1) or (O, I, 3, 3) with a multiple of 32 outputs");
}

const float* data(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* mutable_data(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

const float* norm_data(const std::optional<Tensor>& norm, const Tensor& x) {
  if (!norm) return nullptr;
  STD_TORCH_CHECK(is_float(*norm) && norm->dim() == 3 && norm->is_contiguous() && norm->size(0) == x.size(0) &&
                      norm->size(1) == 3 && norm->size(2) == x.size(1),
                  "norm must be norm_rows of x, (N, 3, C)");
  return data(*norm);
}

Tensor empty_image(const Tensor& like, int64_t n, int64_t channels, int64_t height, int64_t width) {
  return torch::stable::empty({n, channels, height, width}, ScalarType::Float, std::nullopt, like.device(),
                              std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
}

// The convolution of images of x's size with `out` filters; y, where it is known, is checked.
bitfast::ConvShape shape_of(const Tensor& x, int64_t out, int64_t kernel, int64_t stride, const Tensor* y = nullptr) {
  check_image(x, "x");
  STD_TORCH_CHECK((kernel == 1 || kernel == 3) && stride > 0, "kernel must be 1 or 3, stride at least 1");
  const int64_t height = (x.size(2) - 1) / stride + 1, width = (x.size(3) - 1) / stride + 1;
  if (y) {
    check_image(*y, "dy");
    STD_TORCH_CHECK(y->size(0) == x.size(0) && y->size(1) == out && y->size(2) == height && y->size(3) == width,
                    "dy must have the shape of the convolution's result");
  }
  return {x.size(0), x.size(2), x.size(3), x.size(1), height, width, out, kernel, stride, kernel / 2};
}

bitfast::WinogradShape winograd_shape(const bitfast::ConvShape& s) {
  return {s.n, s.in_height, s.in_width, s.in, s.out};
}

Tensor norm_rows(Tensor mean, Tensor rstd, Tensor weight, Tensor bias) {
  const int64_t channels = weight.numel();
  STD_TORCH_CHECK(is_float(mean) && is_float(rstd) && mean.dim() == 2 && rstd.dim() == 2 && mean.is_contiguous() &&
                      rstd.is_contiguous() && bitfast::same_shape(mean, rstd) && mean.size(1) > 0 &&
                      channels % mean.size(1) == 0,
                  "norm_rows: mean and rstd must be (N, G) float32");
  STD_TORCH_CHECK(is_float(weight) && is_float(bias) && weight.dim() == 1 && weight.is_contiguous() &&
                      bias.is_contiguous() && bitfast::same_shape(weight, bias),
                  "norm_rows: weight and bias must be (C,) float32");
  Tensor rows = torch::stable::new_empty(mean, {mean.size(0), 3, channels});
  const bitfast::NormRows p{mean.size(0), channels,    mean.size(1), data(mean),
                            data(rstd),   data(weight), data(bias),   mutable_data(rows)};
  BITFAST_KERNEL(norm_rows)(p, bitfast::torch_threads());
  return rows;
}

Tensor gemm_filter(Tensor weight) {
  check_weight(weight);
  const int64_t out = weight.size(0), in = weight.size(1), kernel = weight.size(2);
  Tensor panels = torch::stable::new_empty(weight, {out, kernel, kernel, in});
  const bitfast::ConvFilter p{out, kernel * kernel * in, data(weight), mutable_data(panels)};
  BITFAST_KERNEL(gemm_filter)(p, bitfast::torch_threads());
  return panels;
}

Tensor gemm_conv(Tensor x, std::optional<Tensor> norm, Tensor panels, int64_t stride) {
  STD_TORCH_CHECK(is_float(panels) && panels.dim() == 4 && panels.is_contiguous() && panels.size(0) % 32 == 0 &&
                      panels.size(1) == panels.size(2) && panels.size(3) == x.size(1),
                  "gemm_conv: panels must be gemm_filter's for the channels of x");
  const auto shape = shape_of(x, panels.size(0), panels.size(1), stride);
  Tensor y = empty_image(x, shape.n, shape.out, shape.out_height, shape.out_width);
  const bitfast::ConvForward p{shape, data(x), norm_data(norm, x), data(panels), mutable_data(y)};
  if (y.numel() > 0) BITFAST_KERNEL(gemm_forward)(p, bitfast::torch_threads());
  return y;
}

Tensor gemm_input_gradient(Tensor dy, Tensor weight, int64_t height, int64_t width, int64_t stride) {
  check_weight(weight);
  Tensor dx = empty_image(dy, dy.size(0), weight.size(1), height, width);
  const auto shape = shape_of(dx, weight.size(0), weight.size(2), stride, &dy);
  const bitfast::ConvInputGradient p{shape, data(dy), data(weight), mutable_data(dx), false};
  if (dx.numel() > 0) BITFAST_KERNEL(gemm_input_gradient)(p, bitfast::torch_threads());
  return dx;
}

void add_gemm_input_gradient(Tensor dx, Tensor dy, Tensor weight, int64_t stride) {
  check_weight(weight);
  const auto shape = shape_of(dx, weight.size(0), weight.size(2), stride, &dy);
  STD_TORCH_CHECK(weight.size(1) == shape.in, "dx must have the channels of weight");
  const bitfast::ConvInputGradient p{shape, data(dy), data(weight), mutable_data(dx), true};
  if (dx.numel() > 0) BITFAST_KERNEL(gemm_input_gradient)(p, bitfast::torch_threads());
}

Tensor gemm_weight_gradient(Tensor x, std::optional<Tensor> norm, Tensor dy, int64_t kernel, int64_t stride) {
  const auto shape = shape_of(x, dy.size(1), kernel, stride, &dy);
  Tensor dw = empty_image(x, shape.out, shape.in, kernel, kernel);
  if (shape.n == 0) return torch::stable::zero_(dw);
  const bitfast::ConvWeightGradient p{shape, data(x), norm_data(norm, x), data(dy), mutable_data(dw)};
  BITFAST_KERNEL(gemm_weight_gradient)(p, bitfast::torch_threads());
  return dw;
}

Tensor winograd_filter(Tensor weight, bool flipped) {
  check_weight(weight);
  STD_TORCH_CHECK(weight.size(2) == 3, "winograd_filter: weight must be (O, I, 3, 3)");
  const int64_t out = weight.size(0), in = weight.size(1);
  Tensor filter =
      torch::stable::new_empty(weight, {flipped ? in : out, bitfast::winograd_filter_size(1, flipped ? out : in)});
  const bitfast::WinogradFilter p{in, out, flipped, data(weight), mutable_data(filter)};
  BITFAST_KERNEL(winograd_filter)(p, bitfast::torch_threads());
  return filter;
}

Tensor winograd_conv(Tensor x, std::optional<Tensor> norm, Tensor filter) {
  STD_TORCH_CHECK(is_float(filter) && filter.dim() == 2 && filter.is_contiguous() && filter.size(0) % 32 == 0 &&
                      filter.size(1) == bitfast::winograd_filter_size(1, x.size(1)),
                  "winograd_conv: filter must be winograd_filter's for the channels of x");
  const auto shape = shape_of(x, filter.size(0), 3, 1);
  Tensor y = empty_image(x, shape.n, shape.out, shape.out_height, shape.out_width);
  const bitfast::WinogradConv p{winograd_shape(shape), data(x), norm_data(norm, x), data(filter), mutable_data(y)};
  if (y.numel() > 0) BITFAST_KERNEL(winograd_conv)(p, bitfast::torch_threads());
  return y;
}

Tensor winograd_weight_gradient(Tensor x, std::optional<Tensor> norm, Tensor dy) {
  const auto shape = shape_of(x, dy.size(1), 3, 1, &dy);
  Tensor dw = empty_image(x, shape.out, shape.in, 3, 3);
  if (shape.n == 0) return torch::stable::zero_(dw);
  const bitfast::WinogradWeightGradient p{winograd_shape(shape), data(x), norm_data(norm, x), data(dy),
                                          mutable_data(dw)};
  BITFAST_KERNEL(winograd_weight_gradient)(p, bitfast::torch_threads());
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_native, m) {
  m.def("norm_rows(Tensor mean, Tensor rstd, Tensor weight, Tensor bias) -> Tensor");
  m.def("gemm_filter(Tensor weight) -> Tensor");
  m.def("gemm_conv(Tensor x, Tensor? norm, Tensor panels, int stride) -> Tensor");
  m.def("gemm_input_gradient(Tensor dy, Tensor weight, int height, int width, int stride) -> Tensor");
  m.def("add_gemm_input_gradient(Tensor(a!) dx, Tensor dy, Tensor weight, int stride) -> ()");
  m.def("gemm_weight_gradient(Tensor x, Tensor? norm, Tensor dy, int kernel, int stride) -> Tensor");
  m.def("winograd_filter(Tensor weight, bool flipped) -> Tensor");
  m.def("winograd_conv(Tensor x, Tensor? norm, Tensor filter) -> Tensor");
  m.def("winograd_weight_gradient(Tensor x, Tensor? norm, Tensor dy) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bitfast_native, CPU, m) {
  m.impl("norm_rows", TORCH_BOX(&norm_rows));
  m.impl("gemm_filter", TORCH_BOX(&gemm_filter));
  m.impl("gemm_conv", TORCH_BOX(&gemm_conv));
  m.impl("gemm_input_gradient", TORCH_BOX(&gemm_input_gradient));
  m.impl("add_gemm_input_gradient", TORCH_BOX(&add_gemm_input_gradient));
  m.impl("gemm_weight_gradient", TORCH_BOX(&gemm_weight_gradient));
  m.impl("winograd_filter", TORCH_BOX(&winograd_filter));
  m.impl("winograd_conv", TORCH_BOX(&winograd_conv));
  m.impl("winograd_weight_gradient", TORCH_BOX(&winograd_weight_gradient));
}

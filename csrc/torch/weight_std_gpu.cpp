// torch.ops.bitfast_cuda.{weight_standardize, weight_standardize_backward, weight_gradient_norms,
// standardized_sgd_step}: tensors to Weights.
// Callers are bitfast/ops; what is checked here is what memory safety needs.
#include "weight_std/weight_std_gpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "torch/gpu_tensors.h"

namespace {

using bitfast::gpu::Rows;
using bitfast::gpu::Type;
using bitfast::gpu::Weight;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Contiguous counts first where both fit.
bool in_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  STD_TORCH_CHECK(bitfast::is_channels_last(t), "weight_std: tensors must be contiguous or channels_last");
  return true;
}

// A float tensor of rows along dim 0, or a parameter of any shape.
Weight weight(const Tensor& w, double eps) {
  STD_TORCH_CHECK(bitfast::gpu::is_here(w) && w.scalar_type() == ScalarType::Float, "weight_std: weights must be float32");
  Weight weight{};
  weight.rows = w.dim() ? w.size(0) : 1;
  weight.width = weight.rows ? w.numel() / weight.rows : 1;
  weight.outer = w.dim() < 4 || w.numel() == 0 ? 1 : in_channels_last(w) ? w.size(1) : w.size(2) * w.size(3);
  weight.eps = float(eps);
  weight.w = const_cast<void*>(w.const_data_ptr());
  STD_TORCH_CHECK(weight.rows < int64_t(1) << 31 && weight.width < int64_t(1) << 31, "weight_std: too many elements");
  return weight;
}

Rows rows(const Tensor& t, const Tensor& w) {
  STD_TORCH_CHECK(bitfast::gpu::is_here(t) && bitfast::same_shape(t, w),
                  "weight_std: tensors must have the shape and device of their weight");
  return {const_cast<void*>(t.const_data_ptr()), in_channels_last(t) != in_channels_last(w), bitfast::gpu::type(t)};
}

Rows float_rows(const Tensor& t, const Tensor& w) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "weight_std: momenta and averages must be float32");
  return rows(t, w);
}

std::vector<Tensor> weight_standardize(std::vector<Tensor> weights, double eps, std::optional<ScalarType> dtype) {
  std::vector<Tensor> results;
  std::vector<Weight> all;
  for (const Tensor& w : weights) {
    results.push_back(bitfast::empty_like(w, dtype));
    all.push_back(weight(w, eps));
    all.back().result = rows(results.back(), w);
  }
  if (!weights.empty()) {
    const bitfast::gpu::OnDeviceOf here(weights[0]);
    bitfast::gpu::check(bitfast::gpu::weight_standardize(all.data(), int64_t(all.size()), here.stream));
  }
  return results;
}

std::vector<Tensor> weight_standardize_backward(std::vector<Tensor> dw_hat, std::vector<Tensor> weights, double eps) {
  STD_TORCH_CHECK(dw_hat.size() == weights.size(), "weight_std: lists must be of equal length");
  std::vector<Tensor> results;
  std::vector<Weight> all;
  for (size_t i = 0; i < weights.size(); ++i) {
    results.push_back(torch::stable::empty_like(weights[i]));
    all.push_back(weight(weights[i], eps));
    all.back().d = rows(dw_hat[i], weights[i]);
    all.back().result = rows(results.back(), weights[i]);
  }
  if (!weights.empty()) {
    const bitfast::gpu::OnDeviceOf here(weights[0]);
    const int64_t count = int64_t(all.size());
    bitfast::gpu::check(bitfast::gpu::weight_standardize_backward(all.data(), count, nullptr, here.stream));
  }
  return results;
}

// Of the rows of all weights, one after the other; the gradients themselves are not written.
Tensor weight_gradient_norms(std::vector<Tensor> dw_hat, std::vector<Tensor> weights, double eps) {
  STD_TORCH_CHECK(!weights.empty() && dw_hat.size() == weights.size(), "weight_std: lists must be of equal length");
  std::vector<Weight> all;
  int64_t total = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    all.push_back(weight(weights[i], eps));
    all.back().d = rows(dw_hat[i], weights[i]);
    total += all.back().rows;
  }
  Tensor norms = torch::stable::new_empty(weights[0], {total});
  const bitfast::gpu::OnDeviceOf here(weights[0]);
  float* const data = static_cast<float*>(norms.mutable_data_ptr());
  bitfast::gpu::check(bitfast::gpu::weight_standardize_backward(all.data(), int64_t(all.size()), data, here.stream));
  return norms;
}

void standardized_sgd_step(std::vector<Tensor> parameters, std::vector<Tensor> gradients, std::vector<Tensor> momenta,
                           std::vector<Tensor> w_hats, std::vector<double> eps, double lr, double momentum,
                           double weight_decay, std::vector<Tensor> averages, bool decoupled, double ema_decay) {
  STD_TORCH_CHECK(gradients.size() == parameters.size() && w_hats.size() <= parameters.size() &&
                      eps.size() == w_hats.size() && (momenta.empty() || momenta.size() == parameters.size()) &&
                      (averages.empty() || averages.size() == parameters.size()),
                  "standardized_sgd: lists must be of equal length");
  std::vector<Weight> all;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& w = parameters[i];
    all.push_back(weight(w, i < w_hats.size() ? eps[i] : 0));
    all.back().d = rows(gradients[i], w);
    if (!momenta.empty()) all.back().m = float_rows(momenta[i], w);
    if (!averages.empty()) all.back().average = float_rows(averages[i], w);
    if (i < w_hats.size()) all.back().result = rows(w_hats[i], w);
  }
  if (parameters.empty()) return;
  const bitfast::gpu::OnDeviceOf here(parameters[0]);
  const bitfast::gpu::SgdRule rule{float(lr), float(momentum), decoupled ? 0 : float(weight_decay),
                                   decoupled ? float(1 - lr * weight_decay) : 1, float(1 - ema_decay)};
  bitfast::gpu::check(bitfast::gpu::standardized_sgd_step(all.data(), int64_t(all.size()), rule, here.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(BITFAST_GPU_LIBRARY, m) {
  m.def("weight_standardize(Tensor[] weights, float eps, ScalarType? dtype) -> Tensor[]");
  m.def("weight_standardize_backward(Tensor[] dw_hat, Tensor[] weights, float eps) -> Tensor[]");
  m.def("weight_gradient_norms(Tensor[] dw_hat, Tensor[] weights, float eps) -> Tensor");
  m.def(
      "standardized_sgd_step(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] momenta, Tensor(c!)[] w_hats,"
      " float[] eps, float lr, float momentum, float weight_decay, Tensor(d!)[] averages, bool decoupled,"
      " float ema_decay) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(BITFAST_GPU_LIBRARY, BITFAST_GPU_KEY, m) {
  m.impl("weight_standardize", TORCH_BOX(&weight_standardize));
  m.impl("weight_standardize_backward", TORCH_BOX(&weight_standardize_backward));
  m.impl("weight_gradient_norms", TORCH_BOX(&weight_gradient_norms));
  m.impl("standardized_sgd_step", TORCH_BOX(&standardized_sgd_step));
}

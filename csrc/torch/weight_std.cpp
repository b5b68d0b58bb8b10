// torch.ops.bitfast_native.{weight_standardize, weight_standardize_backward, standardized_sgd_step}: tensors to
// WeightTensors. Callers are bitfast/ops; what is checked here is what memory safety needs.
#include "weight_std/weight_std.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "torch/parallel.h"
#include "torch/tensors.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kPlainWidth = 4096;  // a parameter that is not standardized is cut into rows of this many elements

// Contiguous counts first where both fit.
bool in_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  STD_TORCH_CHECK(bitfast::is_channels_last(t), "weight_std: tensors must be contiguous or channels_last");
  return true;
}

// The rows of `t`, a tensor that goes with `w`.
bitfast::Rows rows(const Tensor& t, const Tensor& w, void* data) {
  STD_TORCH_CHECK(t.is_cpu() && bitfast::same_shape(t, w), "weight_std: tensors must have the shape of their weight");
  const bool last = in_channels_last(t);
  int64_t outer = 1;
  if (last != in_channels_last(w)) outer = last ? w.size(2) * w.size(3) : w.size(1);
  return {data, outer, bitfast::storage_type(t)};
}

bitfast::Rows read(const Tensor& t, const Tensor& w) { return rows(t, w, const_cast<void*>(t.const_data_ptr())); }

bitfast::Rows written(const Tensor& t, const Tensor& w) { return rows(t, w, t.mutable_data_ptr()); }

// Every row of dim 0, or of a plain parameter `kPlainWidth` elements.
bitfast::WeightTensor weight_tensor(const Tensor& w, double eps) {
  STD_TORCH_CHECK(w.dim() >= 2, "weight_std: weights must be (O, ...)");
  bitfast::WeightTensor tensor{};
  tensor.elements = w.numel();
  tensor.width = w.size(0) ? tensor.elements / w.size(0) : 1;
  tensor.eps = eps;
  tensor.w = read(w, w);
  return tensor;
}

std::vector<Tensor> weight_standardize(std::vector<Tensor> weights, double eps, std::optional<ScalarType> dtype) {
  std::vector<Tensor> results;
  std::vector<bitfast::WeightTensor> tensors;
  for (const Tensor& w : weights) {
    results.push_back(bitfast::empty_like(w, dtype));
    tensors.push_back(weight_tensor(w, eps));
    tensors.back().w_hat = written(results.back(), w);
  }
  BITFAST_KERNEL(weight_standardize)(tensors.data(), int64_t(tensors.size()), bitfast::torch_threads());
  return results;
}

std::vector<Tensor> weight_standardize_backward(std::vector<Tensor> dw_hat, std::vector<Tensor> weights, double eps) {
  STD_TORCH_CHECK(dw_hat.size() == weights.size(), "weight_std: lists must be of equal length");
  std::vector<Tensor> results;
  std::vector<bitfast::WeightTensor> tensors;
  for (size_t i = 0; i < weights.size(); ++i) {
    results.push_back(torch::stable::empty_like(weights[i]));
    tensors.push_back(weight_tensor(weights[i], eps));
    tensors.back().d = read(dw_hat[i], weights[i]);
    tensors.back().g = written(results.back(), weights[i]);
  }
  BITFAST_KERNEL(weight_standardize_backward)(tensors.data(), int64_t(tensors.size()), bitfast::torch_threads());
  return results;
}

void standardized_sgd_step(std::vector<Tensor> parameters, std::vector<Tensor> gradients, std::vector<Tensor> momenta,
                           std::vector<Tensor> w_hats, std::vector<double> eps, double lr, double momentum,
                           double weight_decay, std::vector<Tensor> averages, bool decoupled, double ema_decay) {
  STD_TORCH_CHECK(gradients.size() == parameters.size() && w_hats.size() <= parameters.size() &&
                      eps.size() == w_hats.size() && (momenta.empty() || momenta.size() == parameters.size()) &&
                      (averages.empty() || averages.size() == parameters.size()),
                  "standardized_sgd: lists must be of equal length");
  std::vector<bitfast::WeightTensor> tensors;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& w = parameters[i];
    bitfast::WeightTensor tensor = i < w_hats.size() ? weight_tensor(w, eps[i]) : bitfast::WeightTensor{};
    tensor.w = written(w, w);
    tensor.d = read(gradients[i], w);
    if (!momenta.empty()) tensor.m = written(momenta[i], w);
    if (!averages.empty()) tensor.a = written(averages[i], w);
    if (i < w_hats.size()) {
      tensor.w_hat = written(w_hats[i], w);
    } else {
      tensor.elements = w.numel();
      const bool one_order = tensor.d.outer == 1 && (momenta.empty() || tensor.m.outer == 1) &&
                             (averages.empty() || tensor.a.outer == 1);
      tensor.width = one_order || tensor.elements == 0 ? kPlainWidth : tensor.elements / w.size(0);
    }
    tensors.push_back(tensor);
  }
  BITFAST_KERNEL(standardized_sgd_step)
  (tensors.data(), int64_t(tensors.size()), bitfast::SgdRule{lr, momentum, weight_decay, decoupled, ema_decay},
   bitfast::torch_threads());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_native, m) {
  m.def("weight_standardize(Tensor[] weights, float eps, ScalarType? dtype) -> Tensor[]");
  m.def("weight_standardize_backward(Tensor[] dw_hat, Tensor[] weights, float eps) -> Tensor[]");
  m.def(
      "standardized_sgd_step(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] momenta, Tensor(c!)[] w_hats,"
      " float[] eps, float lr, float momentum, float weight_decay, Tensor(d!)[] averages, bool decoupled,"
      " float ema_decay) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bitfast_native, CPU, m) {
  m.impl("weight_standardize", TORCH_BOX(&weight_standardize));
  m.impl("weight_standardize_backward", TORCH_BOX(&weight_standardize_backward));
  m.impl("standardized_sgd_step", TORCH_BOX(&standardized_sgd_step));
}

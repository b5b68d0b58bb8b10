// What kernels need to know of a tensor: its storage type and the order of its elements.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>

#include "common/storage.h"

namespace bitfast {

inline StorageType storage_type(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Float: return StorageType::kFloat32;
    case ScalarType::Double: return StorageType::kFloat64;
    case ScalarType::BFloat16: return StorageType::kBFloat16;
    default: STD_TORCH_CHECK(false, "tensors must be float32, float64 or bfloat16");
  }
}

// Dense with channels fastest; strides of dims of size 1 do not matter.
inline bool is_channels_last(const torch::stable::Tensor& t) {
  if (t.dim() != 4) return false;
  const int64_t channels = t.size(1), height = t.size(2), width = t.size(3);
  auto agrees = [&](int dim, int64_t stride) { return t.size(dim) == 1 || t.stride(dim) == stride; };
  return agrees(0, channels * height * width) && agrees(1, 1) && agrees(2, width * channels) && agrees(3, channels);
}

inline bool same_shape(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t dim = 0; same && dim < a.dim(); ++dim) same = a.size(dim) == b.size(dim);
  return same;
}

inline torch::stable::Tensor empty_like(const torch::stable::Tensor& t,
                                        std::optional<torch::headeronly::ScalarType> dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(t),            from(dtype),        from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace bitfast

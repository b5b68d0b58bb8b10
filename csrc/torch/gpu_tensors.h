// What kernels of a GPU need to know of a tensor, and what becomes of their errors.
#pragma once

#include "torch/gpu.h"
#include "torch/tensors.h"

namespace bitfast::gpu {

inline Type type(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Float: return Type::kFloat32;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Half: return Type::kFloat16;
    default: STD_TORCH_CHECK(false, "tensors must be float32, bfloat16 or float16");
  }
}

inline void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "bitfast: a CUDA kernel could not be launched: ", cudaGetErrorString(error));
}

}  // namespace bitfast::gpu

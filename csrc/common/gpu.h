// What callers of the CUDA kernels and the kernels themselves agree on.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace bitfast::gpu {

// The types that tensors are stored in; computed is in float.
enum class Type : uint8_t { kFloat32, kBFloat16, kFloat16 };

// The first error of several launches.
#define BITFAST_RETURN_IF_ERROR(expression)                       \
  do {                                                            \
    const cudaError_t error = (expression);                       \
    if (error != cudaSuccess) return error;                       \
  } while (false)

}  // namespace bitfast::gpu

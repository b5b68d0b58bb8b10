// csrc/torch/gpu.h for kernels that run on the host: tensors of the CPU, an operator library of their own.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "common/gpu.h"

#define BITFAST_GPU_LIBRARY bitfast_simt
#define BITFAST_GPU_KEY CPU

namespace bitfast::gpu {

inline bool is_here(const torch::stable::Tensor& t) { return t.is_cpu(); }

struct OnDeviceOf {
  explicit OnDeviceOf(const torch::stable::Tensor&) {}
  cudaStream_t stream = nullptr;
};

}  // namespace bitfast::gpu

// The operators of a GPU: their library and dispatch key, the stream they run on, tensors as the kernels see them.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "common/gpu.h"

#define BITFAST_GPU_LIBRARY bitfast_cuda
#define BITFAST_GPU_KEY CUDA

// Not in every torch that this library loads under: the first came with 2.13, the second is in its builds for CUDA.
extern "C" {
[[gnu::weak]] AOTITorchError torch_stream_native_handle(StreamHandle, void**);
[[gnu::weak]] AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
}

namespace bitfast::gpu {

inline bool is_here(const torch::stable::Tensor& t) { return t.is_cuda(); }

// Makes the device of a tensor the current one; `stream` is torch's current one there.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& t) : guard_(t.get_device_index()) {
    const int32_t device = t.get_device_index();
    void* handle = nullptr;
    if (torch_stream_native_handle) {
      StreamHandle current = nullptr;
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_stream(device, &current));
      const torch::stable::accelerator::Stream owner(current);
      TORCH_ERROR_CODE_CHECK(torch_stream_native_handle(current, &handle));
    } else {
      STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "bitfast: this torch is built without CUDA");
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &handle));
    }
    stream = static_cast<cudaStream_t>(handle);
  }

  cudaStream_t stream = nullptr;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace bitfast::gpu

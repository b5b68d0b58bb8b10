// torch.ops.bitfast_simt.fault: kernels with mistakes that the host must show.
#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/storage.cuh"
#include "torch/gpu_tensors.h"

namespace {

constexpr int kThreads = 64;

__global__ void no_barrier(float* out) {
  DYNAMIC_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  shared[threadIdx.x] = float(threadIdx.x);
  out[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

__global__ void barrier_for_some(float* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void shuffle_of_some(float* out) {
  if (threadIdx.x < 40) out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

__global__ void copy_not_waited_for(float* out) {
  DYNAMIC_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  __pipeline_memcpy_async(shared + threadIdx.x, out + threadIdx.x, sizeof(float));
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void copy_not_aligned(float* out) {
  DYNAMIC_SHARED(memory);
  __pipeline_memcpy_async(memory, out + 1, 16);
}

__global__ void past_shared_memory(float* out) {
  DYNAMIC_SHARED(memory);
  reinterpret_cast<float*>(memory)[threadIdx.x + 1] = out[threadIdx.x];
}

__global__ void past_global_memory(float* out) { out[threadIdx.x + 1] = 0; }

void (*const kKernels[])(float*) = {no_barrier,       barrier_for_some,   shuffle_of_some,   copy_not_waited_for,
                                    copy_not_aligned, past_shared_memory, past_global_memory};

void fault(torch::stable::Tensor out, int64_t which, int64_t shared_bytes, int64_t cluster) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim.x = 32;
  config.blockDim.x = kThreads;
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  bitfast::gpu::check(cudaLaunchKernelEx(&config, kKernels[which], static_cast<float*>(out.mutable_data_ptr())));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_simt, m) {
  m.def("fault(Tensor(a!) out, int which, int shared_bytes, int cluster) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(bitfast_simt, CPU, m) { m.impl("fault", TORCH_BOX(&fault)); }

// The part of CUDA that the kernels in csrc use, on one thread of the host: csrc/*.cu compiles as C++ with this folder
// before that of CUDA. The threads of a block are fibers, which run one at a time and change only where they wait for
// each other. Shared memory is NaN at first, asynchronous copies arrive only when they are waited for, and a launch that
// a GPU would refuse is refused: so index arithmetic, barriers and launch data are those of the GPU. What is not shown:
// races inside a warp that never wait, memory of other blocks read before it is written, and any time.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define CUDART_VERSION 13000
#define DYNAMIC_SHARED(name) uint4* const name = static_cast<uint4*>(simt::dynamic_shared())

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrReservedSharedMemoryPerBlock,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int device);

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

void* dynamic_shared();
void block_barrier();
void warp_barrier(unsigned mask);
void cluster_barrier();
unsigned cluster_rank(), cluster_size();
void* shared_of_rank(void*, unsigned rank);
// The value that lane `from` of this thread's warp gives; every lane of `mask` must take part.
uint64_t exchange(unsigned mask, uint64_t value, int from);
void copy_later(void* to, const void* from, size_t bytes);
void copies_arrive();
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute, int value);
cudaError_t launch(const cudaLaunchConfig_t&, const void* kernel, const std::function<void()>& thread);

}  // namespace simt

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { simt::warp_barrier(mask); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  static_assert(sizeof(T) == 4);
  const int lane = int(threadIdx.x % 32);
  return std::bit_cast<T>(uint32_t(simt::exchange(mask, std::bit_cast<uint32_t>(value), lane ^ lanes)));
}

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float __expf(float x) { return std::exp(x); }

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return simt::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... values) {
  return simt::launch(*config, reinterpret_cast<const void*>(kernel), [&] { kernel(values...); });
}

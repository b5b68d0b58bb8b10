// Values as they are stored, and as float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/gpu.h"

// Shared memory of a size that the launch says.
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
#endif

namespace bitfast::gpu {

using BFloat16 = __nv_bfloat16;
using Half = __half;

__device__ inline float as_float(float v) { return v; }
__device__ inline float as_float(BFloat16 v) { return __bfloat162float(v); }
__device__ inline float as_float(Half v) { return __half2float(v); }

// Rounded to the nearest.
template <class T>
__device__ inline T stored(float v) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return __float2bfloat16_rn(v);
  else if constexpr (std::is_same_v<T, Half>)
    return __float2half_rn(v);
  else
    return v;
}

// Calls f with a value of the type; the same for all threads of a block.
template <class F>
__device__ inline auto with_type(Type type, F f) {
  if (type == Type::kBFloat16) return f(BFloat16{});
  if (type == Type::kFloat16) return f(Half{});
  return f(float{});
}

}  // namespace bitfast::gpu

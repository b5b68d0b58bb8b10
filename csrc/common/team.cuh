// Threads that work on the same row: sums over all of them, in an order that is always the same.
#pragma once

#include <cuda_runtime.h>

namespace bitfast::gpu {

constexpr unsigned kAllLanes = ~0u;
constexpr int kWarp = 32;

template <int kSums>
__device__ inline void add_lanes(float (&sums)[kSums]) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    for (int s = 0; s < kSums; ++s) sums[s] += __shfl_xor_sync(kAllLanes, sums[s], lanes);
}

struct WarpTeam {
  static constexpr int kSize = kWarp;

  __device__ int rank() const { return int(threadIdx.x) % kWarp; }
  __device__ void sync() const { __syncwarp(); }

  // Every thread then has the sums of all.
  template <int kSums>
  __device__ void add(float (&sums)[kSums]) const {
    add_lanes(sums);
  }
};

template <int kThreads>
struct BlockTeam {
  static constexpr int kSize = kThreads, kWarps = kThreads / kWarp, kMostSums = 4;
  static constexpr int kScratchBytes = kWarps * kMostSums * int(sizeof(float));

  float* scratch;  // kScratchBytes of shared memory

  __device__ int rank() const { return int(threadIdx.x); }
  __device__ void sync() const { __syncthreads(); }

  template <int kSums>
  __device__ void add(float (&sums)[kSums]) const {
    static_assert(kSums <= kMostSums);
    add_lanes(sums);
    __syncthreads();  // the scratch may still be read
    if (rank() % kWarp == 0)
      for (int s = 0; s < kSums; ++s) scratch[rank() / kWarp * kMostSums + s] = sums[s];
    __syncthreads();
    for (int s = 0; s < kSums; ++s) {
      sums[s] = 0;
      for (int warp = 0; warp < kWarps; ++warp) sums[s] += scratch[warp * kMostSums + s];
    }
  }
};

}  // namespace bitfast::gpu

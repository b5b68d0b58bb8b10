// A block's part of a slab: which elements are whose, sums over them, sums over the cluster.
//
// A thread has a vector of 16 bytes of channels, of every R-th pixel of one image, and is the only one that touches
// these in shared memory. Sums are added in an order that depends on nothing but the sizes.
#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>

#include <type_traits>

#include "common/storage.cuh"
#include "common/team.cuh"
#include "group_norm/group_norm_gpu.h"

namespace bitfast::gpu {

constexpr int kSlabThreads = 256;
constexpr int kVectorBytes = 16;

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// What a block has in shared memory beside its images.
struct SlabScratch {
  float* partial;      // (rows, channels): of the thread that wrote it
  float* channels[2];  // (images, channels)
  float* groups[6];    // (images, groups)

  static int floats(int threads_lanes, int images_channels, int images_groups) {
    return threads_lanes + 2 * images_channels + 6 * images_groups;
  }
  __device__ SlabScratch(float* memory, int threads_lanes, int images_channels, int images_groups) : partial(memory) {
    for (int i = 0; i < 2; ++i) channels[i] = memory + threads_lanes + i * images_channels;
    for (int i = 0; i < 6; ++i) groups[i] = memory + threads_lanes + 2 * images_channels + i * images_groups;
  }
};

// One value for each channel of a vector.
template <class T>
struct Lane {
  float v[kLanes<T>];

  __device__ float& operator[](int i) { return v[i]; }
  __device__ float operator[](int i) const { return v[i]; }
};

template <class T>
__device__ Lane<T> unpacked(const uint4& bits) {
  Lane<T> lane;
  const T* const values = reinterpret_cast<const T*>(&bits);
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = as_float(values[i]);
  return lane;
}

template <class T>
__device__ uint4 packed(const Lane<T>& lane) {
  uint4 bits;
  T* const values = reinterpret_cast<T*>(&bits);
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) values[i] = stored<T>(lane[i]);
  return bits;
}

template <class T>
class Slab {
 public:
  __device__ Slab(const Images& x, const Slabs& slabs, char* memory)
      : x_(x),
        cluster_(slabs.cluster),
        rank_(int(blockIdx.x) % cluster_),
        first_image_(int64_t(blockIdx.x) / cluster_ / slabs.across(x) * slabs.images),
        first_group_(int(blockIdx.x) / cluster_ % slabs.across(x) * slabs.groups),
        per_group_(x.channels / x.groups),
        images(x.n - first_image_ < slabs.images ? int(x.n - first_image_) : slabs.images),
        groups(x.groups - first_group_ < slabs.groups ? x.groups - first_group_ : slabs.groups),
        channels(groups * per_group_),
        vectors_(channels / kLanes<T>),
        rows_(kSlabThreads / vectors_ / slabs.images),
        column_(int(threadIdx.x) % vectors_),
        row_(int(threadIdx.x) / vectors_ % rows_),
        image_(int(threadIdx.x) / vectors_ / rows_),
        most_pixels_((x.pixels + cluster_ - 1) / cluster_),
        first_pixel_(rank_ * most_pixels_),
        pixels_(image_ < images ? (x.pixels - first_pixel_ < most_pixels_ ? x.pixels - first_pixel_ : most_pixels_) : 0),
        vectors_in_memory_(slabs.images * most_pixels_ * slabs.groups * per_group_ / kLanes<T>),
        held_(reinterpret_cast<uint4*>(memory)) {}

  // Where the scratch begins, behind `count` images.
  __device__ SlabScratch scratch(const Slabs& slabs, int count) const {
    float* const memory = reinterpret_cast<float*>(held_ + count * vectors_in_memory_);
    return {memory, kSlabThreads * kLanes<T>, slabs.images * slabs.groups * per_group_, slabs.images * slabs.groups};
  }

  // f(vector in memory, vector in shared memory) for this thread's pixels.
  template <class F>
  __device__ void each(F f) const {
    const int64_t image = (first_image_ + image_) * x_.pixels + first_pixel_;
    const int64_t start = (image * x_.channels + first_group_ * per_group_) / kLanes<T> + column_;
    const int stride = x_.channels / kLanes<T>;
#pragma unroll 2
    for (int p = row_; p < pixels_; p += rows_)
      f(start + int64_t(p) * stride, (image_ * most_pixels_ + p) * vectors_ + column_);
  }

  // Begins to copy an image to the `number`-th place of shared memory; arrived() waits for all of them.
  __device__ void fetch(const void* image, int number) const {
    const uint4* const from = static_cast<const uint4*>(image);
    each([&](int64_t i, int k) { __pipeline_memcpy_async(held(number) + k, from + i, kVectorBytes); });
  }
  __device__ static void arrived() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
  }
  __device__ uint4* held(int number) const { return held_ + number * vectors_in_memory_; }

  // The sum over this block's pixels, for (image, channel).
  __device__ void sum_pixels(const Lane<T>& mine, float* partial, float* of_channels) const {
    __syncthreads();
    if (image_ < images)
#pragma unroll
      for (int i = 0; i < kLanes<T>; ++i)
        partial[(image_ * rows_ + row_) * channels + column_ * kLanes<T> + i] = mine[i];
    __syncthreads();
    for (int k = int(threadIdx.x); k < images * channels; k += kSlabThreads) {
      const int image = k / channels, c = k - image * channels;
      float sum = 0;
      for (int row = 0; row < rows_; ++row) sum += partial[(image * rows_ + row) * channels + c];
      of_channels[k] = sum;
    }
    __syncthreads();
  }

  // Sums over the channels of a group: of_channels[k] * factor(channel of x).
  template <class Factor>
  __device__ void sum_channels(const float* of_channels, float* of_groups, Factor factor) const {
    const int lane = int(threadIdx.x) % kWarp;
    for (int k = int(threadIdx.x) / kWarp; k < images * groups; k += kSlabThreads / kWarp) {
      const int begin = k * per_group_, c = k % groups * per_group_;
      float sum[1] = {};
      for (int d = lane; d < per_group_; d += kWarp)
        sum[0] += of_channels[begin + d] * factor(first_group_ * per_group_ + c + d);
      add_lanes(sum);
      if (lane == 0) of_groups[k] = sum[0];
    }
  }

  // Means over the pixels and channels of a group, of `count` sums: every block adds those of all, in order of rank.
  __device__ void mean_of_cluster(float* const* sums, float* const* means, int count) const {
    sync();
    const float size = float(x_.pixels) * float(per_group_);
    for (int s = 0; s < count; ++s)
      for (int k = int(threadIdx.x); k < images * groups; k += kSlabThreads) {
        float total = 0;
        for (int rank = 0; rank < cluster_; ++rank) total += of_rank(sums[s], rank)[k];
        means[s][k] = total / size;
      }
    __syncthreads();
  }

  // Waits for all blocks of the cluster; the last time so that no one leaves while its memory is read.
  __device__ void sync() const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (cluster_ > 1) return cooperative_groups::this_cluster().sync();
#endif
    __syncthreads();
  }

  // Of the i-th channel of this thread's vectors: its number in x, and where its image and group are in (images, groups).
  __device__ int channel(int i) const { return first_group_ * per_group_ + column_ * kLanes<T> + i; }
  __device__ int group(int i) const { return image_ * groups + (column_ * kLanes<T> + i) / per_group_; }

  // Where a value of (image, group) of this slab is in (n, groups) of x.
  __device__ int64_t place(int k) const {
    return (first_image_ + k / groups) * x_.groups + first_group_ + k % groups;
  }
  __device__ bool is_first() const { return rank_ == 0; }
  __device__ bool has_pixels() const { return image_ < images; }
  // The row of dw and db that this block writes, at the slab's first channel.
  __device__ int64_t gradient_row(const Slabs& slabs) const {
    return (first_image_ / slabs.images * cluster_ + rank_) * x_.channels + first_group_ * per_group_;
  }

 private:
  __device__ float* of_rank(float* shared, int rank) const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (cluster_ > 1) return cooperative_groups::this_cluster().map_shared_rank(shared, unsigned(rank));
#endif
    return shared;
  }

  const Images x_;
  const int cluster_, rank_;
  const int64_t first_image_;
  const int first_group_, per_group_;

 public:
  const int images, groups, channels;  // of this slab

 private:
  const int vectors_, rows_, column_, row_, image_;
  const int most_pixels_, first_pixel_, pixels_;
  const int vectors_in_memory_;
  uint4* const held_;
};

// Calls f with the activation as a constant.
template <class F>
__device__ void with_activation(Activation activation, F f) {
  if (activation == Activation::kRelu) return f(std::integral_constant<Activation, Activation::kRelu>{});
  if (activation == Activation::kSilu) return f(std::integral_constant<Activation, Activation::kSilu>{});
  f(std::integral_constant<Activation, Activation::kNone>{});
}

__device__ inline float sigmoid(float z) { return 1 / (1 + __expf(-z)); }

// Comparisons, and not a maximum, which would turn NaN into 0.
template <Activation kActivation>
__device__ float activate(float z) {
  if constexpr (kActivation == Activation::kRelu) return z < 0 ? 0 : z;
  if constexpr (kActivation == Activation::kSilu) return z * sigmoid(z);
  return z;
}

template <Activation kActivation>
__device__ float activation_gradient(float dy, float z) {
  if constexpr (kActivation == Activation::kRelu) return z <= 0 ? 0 : dy;
  if constexpr (kActivation == Activation::kSilu) return dy * sigmoid(z) * (1 + z * (1 - sigmoid(z)));
  return dy;
}

// Launches `kernel` for all slabs of images.
template <class Params>
cudaError_t launch_slabs(void (*kernel)(Params, Slabs), const Params& p, const Slabs& slabs, cudaStream_t stream) {
  if (p.images.n == 0) return cudaSuccess;
  BITFAST_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, slabs.shared_bytes));
  if (slabs.cluster > 8)
    BITFAST_RETURN_IF_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(slabs.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim.x = unsigned(slabs.down(p.images) * slabs.across(p.images) * slabs.cluster);
  config.blockDim.x = kSlabThreads;
  config.dynamicSmemBytes = size_t(slabs.shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = slabs.cluster > 1;
  return cudaLaunchKernelEx(&config, kernel, p, slabs);
}

}  // namespace bitfast::gpu

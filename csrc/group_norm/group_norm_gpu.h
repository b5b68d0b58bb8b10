// The operations of group_norm.h on a GPU, for channels_last images: every image is read once.
#pragma once

#include <string>

#include "common/gpu.h"
#include "group_norm/activation.h"

namespace bitfast::gpu {

// (n, pixels, channels), dense.
struct Images {
  int64_t n;
  int channels, pixels, groups;
  Type type;
  Activation activation;
};

// A slab is all pixels of some groups of some images, held in the shared memory of a cluster of blocks, each of which
// has a range of pixels.
struct Slabs {
  int groups, images, cluster, shared_bytes;

  __host__ __device__ int across(const Images& x) const { return (x.groups + groups - 1) / groups; }
  int64_t down(const Images& x) const { return (x.n + images - 1) / images; }
};

enum class Way { kForward, kBackward };

// The slabs for images on the current device, and why there are none, or "".
cudaError_t choose_slabs(const Images&, Way, Slabs*, std::string* objection);

struct GroupNormForward {
  Images images;
  const void* x;
  const void* residual;  // null: s is x, and sum is not written
  const float* weight;
  const float* bias;
  void* y;
  void* sum;
  float* mean;
  float* rstd;
  float eps;
};

// x is the s of the forward. dw and db are (slabs.down * slabs.cluster, channels): their sums over rows are the gradients.
struct GroupNormBackward {
  Images images;
  const void* dy;
  const void* ds;  // null, or added to dx
  const void* x;
  const float* weight;
  const float* bias;
  const float* mean;
  const float* rstd;
  void* dx;
  float* dw;
  float* db;
};

cudaError_t group_norm_forward(const GroupNormForward&, const Slabs&, cudaStream_t);
cudaError_t group_norm_backward(const GroupNormBackward&, const Slabs&, cudaStream_t);

}  // namespace bitfast::gpu

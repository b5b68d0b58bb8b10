// GroupNorm backward on a GPU: slabs of x and dy are read once. The activation's gradient is made anew from x each time.
#include "group_norm/slab.cuh"

namespace bitfast::gpu {
namespace {

// Of a thread's channels, what z and dz are made with: z = (x - mean) * scale + bias.
template <class T>
struct Channels {
  Lane<T> mean, scale, bias;
};

template <class T>
__device__ Channels<T> channels_of(const Slab<T>& slab, const GroupNormBackward& p) {
  Channels<T> of{};
  if (slab.has_pixels())
#pragma unroll
    for (int l = 0; l < kLanes<T>; ++l) {
      const int64_t group = slab.place(slab.group(l));
      of.mean[l] = p.mean[group];
      of.scale[l] = p.rstd[group] * p.weight[slab.channel(l)];
      of.bias[l] = p.bias[slab.channel(l)];
    }
  return of;
}

// Of a (image, channel) of the slab: the sum of dz * (x - mean) becomes that of dz * xhat; then both are added over the
// images of this block, for dw and db.
template <class T>
__device__ void write_gradients(const Slab<T>& slab, const GroupNormBackward& p, const Slabs& slabs, float* dz,
                                float* dz_xhat) {
  const int per_group = p.images.channels / p.images.groups;
  const int64_t row = slab.gradient_row(slabs);
  for (int c = int(threadIdx.x); c < slab.channels; c += kSlabThreads) {
    float db = 0, dw = 0;
    for (int image = 0; image < slab.images; ++image) {
      const int k = image * slab.channels + c;
      dz_xhat[k] *= p.rstd[slab.place(image * slab.groups + c / per_group)];
      db += dz[k];
      dw += dz_xhat[k];
    }
    p.db[row + c] = db;
    p.dw[row + c] = dw;
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kSlabThreads, 2) backward_kernel(const GroupNormBackward p, const Slabs slabs) {
  DYNAMIC_SHARED(memory);
  const Slab<T> slab(p.images, slabs, reinterpret_cast<char*>(memory));
  const SlabScratch scratch = slab.scratch(slabs, 2);
  slab.fetch(p.x, 0);
  slab.fetch(p.dy, 1);
  const Channels<T> of = channels_of(slab, p);
  Slab<T>::arrived();
  const uint4 *const x = slab.held(0), *const dy = slab.held(1);

  Lane<T> sum_dz{}, sum_dz_centred{};
  with_activation(p.images.activation, [&](auto activation) {
    slab.each([&](int64_t, int k) {
      const Lane<T> v = unpacked<T>(x[k]), g = unpacked<T>(dy[k]);
#pragma unroll
      for (int l = 0; l < kLanes<T>; ++l) {
        const float centred = v[l] - of.mean[l];
        const float dz = activation_gradient<decltype(activation)::value>(g[l], centred * of.scale[l] + of.bias[l]);
        sum_dz[l] += dz;
        sum_dz_centred[l] += dz * centred;
      }
    });
  });
  slab.sum_pixels(sum_dz, scratch.partial, scratch.channels[0]);
  slab.sum_pixels(sum_dz_centred, scratch.partial, scratch.channels[1]);
  write_gradients(slab, p, slabs, scratch.channels[0], scratch.channels[1]);
  const auto weight = [&](int c) { return p.weight[c]; };
  slab.sum_channels(scratch.channels[0], scratch.groups[0], weight);
  slab.sum_channels(scratch.channels[1], scratch.groups[1], weight);
  slab.mean_of_cluster(scratch.groups, scratch.groups + 2, 2);

  if (slab.has_pixels()) {
    Lane<T> mean_dz, slope;  // rstd * mean(dz), rstd^2 * mean(dz * xhat)
#pragma unroll
    for (int l = 0; l < kLanes<T>; ++l) {
      const int group = slab.group(l);
      const float rstd = p.rstd[slab.place(group)];
      mean_dz[l] = rstd * scratch.groups[2][group];
      slope[l] = rstd * rstd * scratch.groups[3][group];
    }
    const uint4* const ds = static_cast<const uint4*>(p.ds);
    uint4* const dx = static_cast<uint4*>(p.dx);
    with_activation(p.images.activation, [&](auto activation) {
      slab.each([&](int64_t i, int k) {
        const Lane<T> v = unpacked<T>(x[k]), g = unpacked<T>(dy[k]);
        Lane<T> d{};
        if (ds) d = unpacked<T>(ds[i]);
#pragma unroll
        for (int l = 0; l < kLanes<T>; ++l) {
          const float centred = v[l] - of.mean[l];
          const float dz = activation_gradient<decltype(activation)::value>(g[l], centred * of.scale[l] + of.bias[l]);
          d[l] += dz * of.scale[l] - mean_dz[l] - centred * slope[l];
        }
        dx[i] = packed<T>(d);
      });
    });
  }
  slab.sync();
}

}  // namespace

cudaError_t group_norm_backward(const GroupNormBackward& p, const Slabs& slabs, cudaStream_t stream) {
  switch (p.images.type) {
    case Type::kBFloat16: return launch_slabs(backward_kernel<BFloat16>, p, slabs, stream);
    case Type::kFloat16: return launch_slabs(backward_kernel<Half>, p, slabs, stream);
    default: return launch_slabs(backward_kernel<float>, p, slabs, stream);
  }
}

}  // namespace bitfast::gpu

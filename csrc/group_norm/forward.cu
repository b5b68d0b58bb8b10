// GroupNorm forward on a GPU: a slab is read once, its statistics and its result are made of it in shared memory.
#include "group_norm/slab.cuh"

namespace bitfast::gpu {
namespace {

template <class T>
__device__ void fetch_sum(const Slab<T>& slab, const GroupNormForward& p) {
  const uint4 *const x = static_cast<const uint4*>(p.x), *const residual = static_cast<const uint4*>(p.residual);
  uint4* const sum = static_cast<uint4*>(p.sum);
  slab.each([&](int64_t i, int k) {
    Lane<T> v = unpacked<T>(x[i]);
    const Lane<T> r = unpacked<T>(residual[i]);
#pragma unroll
    for (int l = 0; l < kLanes<T>; ++l) v[l] += r[l];
    sum[i] = slab.held(0)[k] = packed<T>(v);
  });
}

template <class T>
__global__ void __launch_bounds__(kSlabThreads, 2) forward_kernel(const GroupNormForward p, const Slabs slabs) {
  DYNAMIC_SHARED(memory);
  const Slab<T> slab(p.images, slabs, reinterpret_cast<char*>(memory));
  const SlabScratch scratch = slab.scratch(slabs, 1);
  const uint4* const held = slab.held(0);
  if (p.residual)
    fetch_sum(slab, p);
  else
    slab.fetch(p.x, 0);
  Slab<T>::arrived();
  const auto one = [](int) { return 1.0f; };

  Lane<T> first{}, second{};
  slab.each([&](int64_t, int k) {
    const Lane<T> v = unpacked<T>(held[k]);
#pragma unroll
    for (int l = 0; l < kLanes<T>; ++l) first[l] += v[l];
  });
  slab.sum_pixels(first, scratch.partial, scratch.channels[0]);
  slab.sum_channels(scratch.channels[0], scratch.groups[0], one);
  slab.mean_of_cluster(scratch.groups, scratch.groups + 1, 1);

  // A mean far from 0 is rounded; what centring by it leaves over is taken off too.
  const bool mine = slab.has_pixels();
  Lane<T> centre;
#pragma unroll
  for (int l = 0; l < kLanes<T>; ++l) centre[l] = mine ? scratch.groups[1][slab.group(l)] : 0;
  first = {};
  slab.each([&](int64_t, int k) {
    const Lane<T> v = unpacked<T>(held[k]);
#pragma unroll
    for (int l = 0; l < kLanes<T>; ++l) {
      const float c = v[l] - centre[l];
      first[l] += c;
      second[l] += c * c;
    }
  });
  slab.sum_pixels(first, scratch.partial, scratch.channels[0]);
  slab.sum_pixels(second, scratch.partial, scratch.channels[1]);
  slab.sum_channels(scratch.channels[0], scratch.groups[2], one);
  slab.sum_channels(scratch.channels[1], scratch.groups[3], one);
  slab.mean_of_cluster(scratch.groups + 2, scratch.groups + 4, 2);
  for (int k = int(threadIdx.x); k < slab.images * slab.groups; k += kSlabThreads) {
    const float offset = scratch.groups[4][k], var = scratch.groups[5][k] - offset * offset;
    const float rstd = 1 / sqrtf((var < 0 ? 0 : var) + p.eps);
    if (slab.is_first()) {
      p.mean[slab.place(k)] = scratch.groups[1][k] + offset;
      p.rstd[slab.place(k)] = rstd;
    }
    scratch.groups[5][k] = rstd;
  }
  __syncthreads();

  if (mine) {
    Lane<T> scale, shift;
#pragma unroll
    for (int l = 0; l < kLanes<T>; ++l) {
      const int group = slab.group(l), c = slab.channel(l);
      scale[l] = scratch.groups[5][group] * p.weight[c];
      shift[l] = p.bias[c] - scratch.groups[4][group] * scale[l];
    }
    uint4* const y = static_cast<uint4*>(p.y);
    with_activation(p.images.activation, [&](auto activation) {
      slab.each([&](int64_t i, int k) {
        Lane<T> v = unpacked<T>(held[k]);
#pragma unroll
        for (int l = 0; l < kLanes<T>; ++l)
          v[l] = activate<decltype(activation)::value>((v[l] - centre[l]) * scale[l] + shift[l]);
        y[i] = packed<T>(v);
      });
    });
  }
  slab.sync();
}

}  // namespace

cudaError_t group_norm_forward(const GroupNormForward& p, const Slabs& slabs, cudaStream_t stream) {
  switch (p.images.type) {
    case Type::kBFloat16: return launch_slabs(forward_kernel<BFloat16>, p, slabs, stream);
    case Type::kFloat16: return launch_slabs(forward_kernel<Half>, p, slabs, stream);
    default: return launch_slabs(forward_kernel<float>, p, slabs, stream);
  }
}

}  // namespace bitfast::gpu

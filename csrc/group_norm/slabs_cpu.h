// A slab is the unit of work: some groups of one image, swept once for sums and once for the results.
#pragma once

#include <memory>
#include <numeric>

#include "group_norm/group_norm.h"
#include "group_norm/sweeps_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kTaskElements = 32 << 10;  // below this a task is not worth a thread
constexpr int64_t kStreamBytes = 2 << 20;    // results of this size go past the caches

// Groups [begin, end) of an image.
struct Slab {
  int64_t image, begin, end;
};

// In channels_last rows are long, so an image is split only to give every thread something, and at whole vectors, which
// keeps the arithmetic of every channel the same. A contiguous slab is one group.
template <class T>
int64_t slab_groups(const GroupNormImages& images, int64_t threads) {
  if (!images.channels_last) return 1;
  const int64_t per_group = images.channels / images.groups;
  const int64_t whole = kLanes<T> / std::gcd(kLanes<T>, per_group), parts = (threads + images.n - 1) / images.n;
  const int64_t step = std::max<int64_t>(images.groups / parts, 1);
  return std::min((step + whole - 1) / whole * whole, images.groups);
}

// Calls run(slab, scratch) for every slab; the Scratch, made for a number of channels, is that of a range of slabs.
template <class T, class Scratch, class Run>
void for_each_slab(const GroupNormImages& images, const Parallel& parallel, Run run) {
  if (images.n * images.channels * images.pixels == 0) return;
  const int64_t per_group = images.channels / images.groups, step = slab_groups<T>(images, parallel.threads);
  const int64_t slabs = (images.groups + step - 1) / step;
  const int64_t grain = kTaskElements / (step * per_group * images.pixels) + 1;
  for_each_range(parallel, images.n * slabs, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch(step * per_group);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % slabs * step;
      run(Slab{task / slabs, first, std::min(first + step, images.groups)}, scratch);
    }
    stream_fence();
  });
}

// Whether results go past the caches: writing them does not read them first, and what follows a norm reads them once,
// in order. Stores past the caches are of whole, aligned vectors.
template <class Stored>
bool streams(const GroupNormImages& images) {
  const int64_t run = images.channels_last ? images.channels : images.pixels;
  return images.n * images.channels * images.pixels * int64_t(sizeof(Stored)) >= kStreamBytes &&
         run % kLanes<Compute<Stored>> == 0;
}

template <bool kStream, class V, class Stored>
void put(Stored* p, V v) {
  kStream ? stream<V>(p, v) : store<V>(p, v);
}

template <Activation kActivation, class V>
V activate(V z) {
  if constexpr (kActivation == Activation::kRelu) return relu(z);
  if constexpr (kActivation == Activation::kSilu) return silu(z);
  return z;
}

template <Activation kActivation, class V>
V activation_gradient(V dy, V z) {
  if constexpr (kActivation == Activation::kRelu) return relu_gradient(dy, z);
  if constexpr (kActivation == Activation::kSilu) return silu_gradient(dy, z);
  return dy;
}

// Calls f(a value of the storage type, the activation as a constant).
template <class F>
void for_kind(const GroupNormImages& images, F f) {
  auto with = [&](auto stored) {
    switch (images.activation) {
      case Activation::kNone: return f(stored, std::integral_constant<Activation, Activation::kNone>{});
      case Activation::kRelu: return f(stored, std::integral_constant<Activation, Activation::kRelu>{});
      case Activation::kSilu: return f(stored, std::integral_constant<Activation, Activation::kSilu>{});
    }
  };
  switch (images.type) {
    case StorageType::kFloat32: return with(float{});
    case StorageType::kFloat64: return with(double{});
    case StorageType::kBFloat16: return with(BFloat16{});
  }
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

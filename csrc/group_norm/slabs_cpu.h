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

// Groups [begin, end) of an image; `offset` of its first element. The next slab of the same thread is `ahead` elements
// further on, 0 if it is the last: while the results of a slab are written the next is fetched.
struct Slab {
  int64_t image, begin, end, offset, ahead;
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

// Working memory of a range of slabs: arrays of a value per channel, aligned to vectors.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t width)
      : totals_(new Block[2 * blocks<double>(width)]),
        values_(new Block[4 * blocks<T>(width)]),
        total_first(array<double>(totals_, width, 0)),
        total_second(array<double>(totals_, width, 1)),
        first(array<T>(values_, width, 0)),
        second(array<T>(values_, width, 1)),
        mean(array<T>(values_, width, 2)),
        scale(array<T>(values_, width, 3)) {}

 private:
  struct alignas(kVectorBytes) Block {
    char bytes[kVectorBytes];
  };
  using Memory = std::unique_ptr<Block[]>;

  template <class U>
  static int64_t blocks(int64_t width) {
    return (width + kLanes<U> - 1) / kLanes<U>;
  }
  template <class U>
  static U* array(const Memory& memory, int64_t width, int64_t i) {
    return reinterpret_cast<U*>(memory.get() + i * blocks<U>(width));
  }

  const Memory totals_, values_;

 public:
  double *const total_first, *const total_second;
  T *const first, *const second, *const mean, *const scale;
};

// Sets scratch.mean, and scratch.scale to rstd * weight, of the channels [begin, begin + count) of a group.
template <class T>
void set_group(const Scratch<T>& scratch, int64_t begin, int64_t count, T mean, T rstd, const T* weight) {
  std::fill_n(scratch.mean + begin, count, mean);
  T* const __restrict scale = scratch.scale + begin;
  for (int64_t c = 0; c < count; ++c) scale[c] = rstd * weight[c];
}

// Calls run(slab, scratch) for every slab.
template <class T, class Run>
void for_each_slab(const GroupNormImages& images, const Parallel& parallel, Run run) {
  if (images.n * images.channels * images.pixels == 0) return;
  const int64_t per_group = images.channels / images.groups, step = slab_groups<T>(images, parallel.threads);
  const int64_t slabs = (images.groups + step - 1) / step;
  const int64_t grain = kTaskElements / (step * per_group * images.pixels) + 1;
  const int64_t of_group = images.channels_last ? per_group : per_group * images.pixels;
  auto offset = [&](int64_t task) {
    return task / slabs * images.channels * images.pixels + task % slabs * step * of_group;
  };
  for_each_range(parallel, images.n * slabs, grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(step * per_group);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % slabs * step, last = std::min(first + step, images.groups);
      const int64_t ahead = task + 1 < end ? offset(task + 1) - offset(task) : 0;
      run(Slab{task / slabs, first, last, offset(task), ahead}, scratch);
    }
    stream_fence();
  });
}

// Sums columns over all rows, blocks of rows in double: sums(begin, end) leaves those of a block in scratch.first and
// second; use(first, second) is called with those of all. What is one block is handed on as it is.
template <class T, class BlockSums, class Use>
void block_sums(int64_t pixels, int64_t width, const Scratch<T>& scratch, BlockSums sums, Use use) {
  if (pixels <= kBlockRows) {
    sums(0, pixels);
    return use(scratch.first, scratch.second);
  }
  std::fill_n(scratch.total_first, width, 0.0);
  std::fill_n(scratch.total_second, width, 0.0);
  for (int64_t begin = 0; begin < pixels; begin += kBlockRows) {
    sums(begin, std::min(begin + kBlockRows, pixels));
    add_to(scratch.total_first, scratch.first, width);
    add_to(scratch.total_second, scratch.second, width);
  }
  use(scratch.total_first, scratch.total_second);
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

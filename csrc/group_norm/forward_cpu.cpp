// GroupNorm forward on the CPU.
#include "group_norm/moments_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

template <class Stored, Activation kActivation, bool kResidual, bool kStream>
class Forward {
  using T = Compute<Stored>;

 public:
  explicit Forward(const GroupNormForward& p)
      : p_(p),
        per_group_(p.images.channels / p.images.groups),
        x_(static_cast<const Stored*>(p.x)),
        residual_(static_cast<const Stored*>(p.residual)),
        weight_(static_cast<const T*>(p.weight)),
        bias_(static_cast<const T*>(p.bias)),
        y_(static_cast<Stored*>(p.y)),
        sum_(static_cast<Stored*>(p.sum)),
        mean_(static_cast<T*>(p.mean)),
        rstd_(static_cast<T*>(p.rstd)) {}

  void run(const Parallel& parallel) const {
    for_each_slab<T>(p_.images, parallel, [&](const Slab& slab, const Scratch<T>& scratch) {
      p_.images.channels_last ? channels_last(slab, scratch) : contiguous(slab);
    });
  }

 private:
  void channels_last(const Slab& slab, const Scratch<T>& scratch) const {
    const int64_t pixels = p_.images.pixels, channel = slab.begin * per_group_;
    const int64_t width = (slab.end - slab.begin) * per_group_;
    const int64_t group = slab.image * p_.images.groups + slab.begin;
    const Rows rows{p_.images.channels, width};
    T *const mean = scratch.mean, *const scale = scratch.scale;
    auto sums = [&](int64_t begin, int64_t end, auto last) {
      column_sums<T>(rows, begin, end, scratch.first, scratch.second, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return term<last.value>(slab.offset, load<V>(mean + c));
      });
    };

    moments(pixels, width, per_group_, scratch, sums, [&](int64_t g, T shift, const Sums& of_group) {
      finish(group + g, shift, of_group);
      const int64_t c = g * per_group_;
      set_group(scratch, c, per_group_, mean_[group + g], rstd_[group + g], weight_ + channel + c);
    });

    column_results<T>(rows, pixels, [&](auto vector, int64_t c) {
      using V = decltype(vector);
      return result(slab, 0, load<V>(mean + c), load<V>(scale + c), load<V>(bias_ + channel + c));
    });
  }

  void contiguous(const Slab& slab) const {
    const int64_t pixels = p_.images.pixels, count = per_group_ * pixels;
    const int64_t group = slab.image * p_.images.groups + slab.begin;
    auto sums = [&](T shift, int64_t n, auto last) {
      return run_sums<T>(n, [&](auto vector, int64_t) {
        using V = decltype(vector);
        return term<last.value>(slab.offset, V{} + shift);
      });
    };
    const int64_t shift_count = (count + kShiftShare - 1) / kShiftShare;
    const T shift = T(sums(0, shift_count, std::false_type{}).first / double(shift_count));
    finish(group, shift, sums(shift, count, std::true_type{}));
    for (int64_t c = 0; c < per_group_; ++c) {
      const int64_t channel = slab.begin * per_group_ + c;
      const T mean = mean_[group], scale = rstd_[group] * weight_[channel], bias = bias_[channel];
      run_results<T>(pixels, [&](auto vector, int64_t) {
        using V = decltype(vector);
        return result(slab, c * pixels, V{} + mean, V{} + scale, V{} + bias);
      });
    }
  }

  // s of the elements at offset + i, as it is stored.
  template <class V>
  auto input(int64_t offset) const {
    if constexpr (kResidual)
      return [x = x_ + offset, residual = residual_ + offset](int64_t i) {
        return rounded<Stored>(load<V>(x + i) + load<V>(residual + i));
      };
    else
      return [x = x_ + offset](int64_t i) { return load<V>(x + i); };
  }

  // s - shift and its square; the last sweep for sums writes s, if that is not x.
  template <bool kLast, class V>
  auto term(int64_t offset, V shift) const {
    return [=, s = input<V>(offset), sum = kResidual ? sum_ + offset : nullptr](int64_t i, V& first, V& second) {
      const V value = s(i), d = value - shift;
      if constexpr (kResidual && kLast) put<kStream>(sum + i, value);
      first += d;
      second += d * d;
    };
  }

  // Writes y of the elements at i from `first` of the slab on; fetches those of the next slab.
  template <class V>
  auto result(const Slab& slab, int64_t first, V mean, V scale, V bias) const {
    const int64_t offset = slab.offset + first, next = offset + slab.ahead;
    const Stored* const residual = kResidual ? residual_ + next : nullptr;
    return [=, s = input<V>(offset), x = x_ + next, y = y_ + offset](int64_t i) {
      prefetch(x + i);
      if constexpr (kResidual) prefetch(residual + i);
      put<kStream>(y + i, activate<kActivation>((s(i) - mean) * scale + bias));
    };
  }

  void finish(int64_t group, T shift, const Sums& sums) const {
    finish_moments(shift, sums, per_group_ * p_.images.pixels, p_.eps, mean_[group], rstd_[group]);
  }

  const GroupNormForward p_;
  const int64_t per_group_;
  const Stored *const x_, *const residual_;
  const T *const weight_, *const bias_;
  Stored *const y_, *const sum_;
  T *const mean_, *const rstd_;
};

}  // namespace

void group_norm_forward(const GroupNormForward& p, const Parallel& parallel) {
  for_kind(p.images, [&](auto stored, auto activation) {
    using Stored = decltype(stored);
    auto run = [&](auto residual, auto stream) {
      Forward<Stored, activation.value, residual.value, stream.value>(p).run(parallel);
    };
    const bool stream = streams<Stored>(p.images);
    if (p.residual)
      stream ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
    else
      stream ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
  });
}

}  // namespace bitfast::BITFAST_ISA

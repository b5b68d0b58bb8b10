// GroupNorm forward on the CPU.
#include "group_norm/moments_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

// Means, variances and, with a residual, s: the same code whatever the activation.
template <class Stored, bool kResidual, bool kStream>
class Moments {
 protected:
  using T = Compute<Stored>;

  explicit Moments(const GroupNormForward& p)
      : p_(p),
        per_group_(p.images.channels / p.images.groups),
        x_(static_cast<const Stored*>(p.x)),
        residual_(static_cast<const Stored*>(p.residual)),
        sum_(static_cast<Stored*>(p.sum)),
        mean_(static_cast<T*>(p.mean)),
        rstd_(static_cast<T*>(p.rstd)) {}

  // Leaves the mean and scale of every channel of the slab in `scratch`.
  void channels_last(const Slab& slab, const Rows& rows, const T* weight, const Scratch<T>& scratch) const {
    const int64_t pixels = p_.images.pixels, group = first_group(slab);
    T* const mean = scratch.mean;
    auto sums = [&](int64_t begin, int64_t end, auto last) {
      column_sums<T>(rows, begin, end, scratch.first, scratch.second, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return term<last.value>(slab.offset, load<V>(mean + c));
      });
    };
    moments(pixels, rows.width, per_group_, scratch, sums, [&](int64_t g, T shift, const Sums& of_group) {
      finish(group + g, shift, of_group);
      const int64_t c = g * per_group_;
      set_group(scratch, c, per_group_, mean_[group + g], rstd_[group + g], weight + c);
    });
  }

  void contiguous(const Slab& slab) const {
    const int64_t count = per_group_ * p_.images.pixels;
    auto sums = [&](T shift, int64_t n, auto last) {
      return run_sums<T>(n, [&](auto vector, int64_t) {
        using V = decltype(vector);
        return term<last.value>(slab.offset, V{} + shift);
      });
    };
    const int64_t shift_count = (count + kShiftShare - 1) / kShiftShare;
    const T shift = T(sums(0, shift_count, std::false_type{}).first / double(shift_count));
    finish(first_group(slab), shift, sums(shift, count, std::true_type{}));
  }

  int64_t first_group(const Slab& slab) const { return slab.image * p_.images.groups + slab.begin; }

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

  const GroupNormForward p_;
  const int64_t per_group_;
  const Stored *const x_, *const residual_;
  Stored* const sum_;
  T *const mean_, *const rstd_;

 private:
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

  void finish(int64_t group, T shift, const Sums& sums) const {
    finish_moments(shift, sums, per_group_ * p_.images.pixels, p_.eps, mean_[group], rstd_[group]);
  }
};

template <class Stored, Activation kActivation, bool kResidual, bool kStream>
class Forward : Moments<Stored, kResidual, kStream> {
  using Base = Moments<Stored, kResidual, kStream>;
  using T = typename Base::T;
  using Base::p_, Base::per_group_, Base::x_, Base::residual_;

 public:
  explicit Forward(const GroupNormForward& p)
      : Base(p),
        weight_(static_cast<const T*>(p.weight)),
        bias_(static_cast<const T*>(p.bias)),
        y_(static_cast<Stored*>(p.y)) {}

  void run(const Parallel& parallel) const {
    for_each_slab<T>(p_.images, parallel, [&](const Slab& slab, const Scratch<T>& scratch) {
      p_.images.channels_last ? channels_last(slab, scratch) : contiguous(slab);
    });
  }

 private:
  void channels_last(const Slab& slab, const Scratch<T>& scratch) const {
    const int64_t channel = slab.begin * per_group_;
    const Rows rows{p_.images.channels, (slab.end - slab.begin) * per_group_};
    Base::channels_last(slab, rows, weight_ + channel, scratch);
    column_results<T>(rows, p_.images.pixels, [&](auto vector, int64_t c) {
      using V = decltype(vector);
      return result(slab, 0, load<V>(scratch.mean + c), load<V>(scratch.scale + c), load<V>(bias_ + channel + c));
    });
  }

  void contiguous(const Slab& slab) const {
    Base::contiguous(slab);
    const int64_t pixels = p_.images.pixels, group = Base::first_group(slab);
    for (int64_t c = 0; c < per_group_; ++c) {
      const int64_t channel = slab.begin * per_group_ + c;
      const T mean = Base::mean_[group], scale = Base::rstd_[group] * weight_[channel], bias = bias_[channel];
      run_results<T>(pixels, [&](auto vector, int64_t) {
        using V = decltype(vector);
        return result(slab, c * pixels, V{} + mean, V{} + scale, V{} + bias);
      });
    }
  }

  // Writes y of the elements at i from `first` of the slab on; fetches those of the next slab.
  template <class V>
  auto result(const Slab& slab, int64_t first, V mean, V scale, V bias) const {
    const int64_t offset = slab.offset + first, next = offset + slab.ahead;
    const Stored* const residual = kResidual ? residual_ + next : nullptr;
    return [=, s = Base::template input<V>(offset), x = x_ + next, y = y_ + offset](int64_t i) {
      prefetch(x + i);
      if constexpr (kResidual) prefetch(residual + i);
      put<kStream>(y + i, activate<kActivation>((s(i) - mean) * scale + bias));
    };
  }

  const T *const weight_, *const bias_;
  Stored* const y_;
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

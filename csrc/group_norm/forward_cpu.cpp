// GroupNorm forward on the CPU.
#include "group_norm/moments_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

template <class Stored, Activation kActivation, bool kResidual>
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
        rstd_(static_cast<T*>(p.rstd)),
        stream_(streams<Stored>(p.images)) {}

  void run(const Parallel& parallel) const {
    for_each_slab<T>(p_.images, parallel, [&](const Slab& slab, const Scratch<T>& scratch) {
      p_.images.channels_last ? channels_last(slab, scratch) : contiguous(slab);
    });
  }

 private:
  void channels_last(const Slab& slab, const Scratch<T>& scratch) const {
    const int64_t pixels = p_.images.pixels, channel = slab.begin * per_group_;
    const int64_t width = (slab.end - slab.begin) * per_group_;
    const int64_t offset = slab.image * pixels * p_.images.channels + channel;
    const int64_t group = slab.image * p_.images.groups + slab.begin;
    const Rows rows{p_.images.channels, width};
    T *const mean = scratch.mean, *const scale = scratch.scale;
    auto sums = [&](int64_t begin, int64_t end, auto) {
      column_sums<T>(rows, begin, end, scratch.first, scratch.second, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return term(offset, rows.ahead(), load<V>(mean + c));
      });
    };

    moments(pixels, width, per_group_, scratch, sums, [&](int64_t g, T shift, const Sums& of_group) {
      finish(group + g, shift, of_group);
      for (int64_t i = g * per_group_; i < (g + 1) * per_group_; ++i) {
        mean[i] = mean_[group + g];
        scale[i] = rstd_[group + g] * weight_[channel + i];
      }
    });

    auto results = [&](auto stream) {
      column_results<T>(rows, pixels, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return result<stream.value>(offset, rows.ahead(), load<V>(mean + c), load<V>(scale + c),
                                    load<V>(bias_ + channel + c));
      });
    };
    stream_ ? results(std::true_type{}) : results(std::false_type{});
  }

  void contiguous(const Slab& slab) const {
    const int64_t pixels = p_.images.pixels, count = per_group_ * pixels;
    const int64_t group = slab.image * p_.images.groups + slab.begin, offset = group * count;
    auto sums = [&](T shift, int64_t n) {
      return run_sums<T>(n, [&](auto vector, int64_t) {
        using V = decltype(vector);
        return term(offset, 0, V{} + shift);
      });
    };
    const int64_t shift_count = (count + kShiftShare - 1) / kShiftShare;
    const T shift = T(sums(0, shift_count).first / double(shift_count));
    finish(group, shift, sums(shift, count));
    for (int64_t c = 0; c < per_group_; ++c) {
      const int64_t channel = slab.begin * per_group_ + c;
      const T mean = mean_[group], scale = rstd_[group] * weight_[channel], bias = bias_[channel];
      auto results = [&](auto stream) {
        run_results<T>(pixels, [&](auto vector, int64_t) {
          using V = decltype(vector);
          return result<stream.value>(offset + c * pixels, 0, V{} + mean, V{} + scale, V{} + bias);
        });
      };
      stream_ ? results(std::true_type{}) : results(std::false_type{});
    }
  }

  // s of the elements at offset + i, as it is stored; fetches those `ahead` of them.
  template <class V>
  auto input(int64_t offset, int64_t ahead) const {
    auto fetched = [=](const Stored* p) {
      prefetch(p + ahead);
      return load<V>(p);
    };
    if constexpr (kResidual)
      return [=, x = x_ + offset, residual = residual_ + offset](int64_t i) {
        return rounded<Stored>(fetched(x + i) + fetched(residual + i));
      };
    else
      return [=, x = x_ + offset](int64_t i) { return fetched(x + i); };
  }

  // s - shift and its square.
  template <class V>
  auto term(int64_t offset, int64_t ahead, V shift) const {
    return [=, s = input<V>(offset, ahead)](int64_t i, V& first, V& second) {
      const V d = s(i) - shift;
      first += d;
      second += d * d;
    };
  }

  // Writes y and, with a residual, s.
  template <bool kStream, class V>
  auto result(int64_t offset, int64_t ahead, V mean, V scale, V bias) const {
    auto normalize = [=, s = input<V>(offset, ahead), y = y_ + offset](int64_t i) {
      const V value = s(i);
      put<kStream>(y + i, activate<kActivation>((value - mean) * scale + bias));
      return value;
    };
    if constexpr (kResidual)
      return [=, sum = sum_ + offset](int64_t i) { put<kStream>(sum + i, normalize(i)); };
    else
      return [=](int64_t i) { normalize(i); };
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
  const bool stream_;
};

}  // namespace

void group_norm_forward(const GroupNormForward& p, const Parallel& parallel) {
  for_kind(p.images, [&](auto stored, auto activation) {
    using Stored = decltype(stored);
    p.residual ? Forward<Stored, activation.value, true>(p).run(parallel)
               : Forward<Stored, activation.value, false>(p).run(parallel);
  });
}

}  // namespace bitfast::BITFAST_ISA

// The statistics of GroupNorm alone, for those who normalise as they read: one sweep that, with a residual, writes s.
#include "group_norm/moments_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

template <bool kResidual, bool kStream>
void statistics(const GroupNormForward& p, const Parallel& parallel) {
  const int64_t per_group = p.images.channels / p.images.groups, pixels = p.images.pixels;
  for_each_slab<float>(p.images, parallel, [&](const Slab& slab, const Scratch<float>& scratch) {
    const int64_t width = (slab.end - slab.begin) * per_group;
    const Rows rows{p.images.channels, width};
    const float* const x = static_cast<const float*>(p.x) + slab.offset;
    const float* const residual = kResidual ? static_cast<const float*>(p.residual) + slab.offset : nullptr;
    float* const sum = kResidual ? static_cast<float*>(p.sum) + slab.offset : nullptr;
    auto sums = [&](int64_t begin, int64_t end, auto last) {
      column_sums<float>(rows, begin, end, scratch.first, scratch.second, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return [=, shift = load<V>(scratch.mean + c)](int64_t i, V& first, V& second) {
          V s = load<V>(x + i);
          if constexpr (kResidual) s += load<V>(residual + i);
          if constexpr (kResidual && decltype(last)::value) put<kStream>(sum + i, s);
          const V d = s - shift;
          first += d;
          second += d * d;
        };
      });
    };
    const int64_t group = slab.image * p.images.groups + slab.begin;
    moments(pixels, width, per_group, scratch, sums, [&](int64_t g, float shift, const Sums& of_group) {
      finish_moments(shift, of_group, per_group * pixels, p.eps, static_cast<float*>(p.mean)[group + g],
                     static_cast<float*>(p.rstd)[group + g]);
    });
  });
}

}  // namespace

void group_norm_statistics(const GroupNormForward& p, const Parallel& parallel) {
  if (!p.residual)
    statistics<false, false>(p, parallel);
  else
    streams<float>(p.images) ? statistics<true, true>(p, parallel) : statistics<true, false>(p, parallel);
}

}  // namespace bitfast::BITFAST_ISA

// What a convolution reads: the image itself, or relu((x - mean) * scale + bias), applied as it is gathered, so that the
// normalised image never stands in memory.
#pragma once

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

// The image's own row of `norm` (n, 3, channels): mean, scale, bias. Null: the image as it is.
struct Input {
  const float* norm;
  int64_t channels;

  Input of_image(int64_t image) const { return {norm ? norm + image * 3 * channels : nullptr, channels}; }
};

template <bool kNorm>
inline Vector<float> read(const Input& input, const float* x, int64_t channel) {
  using V = Vector<float>;
  const V v = load<V>(x);
  if constexpr (!kNorm) return v;
  const float* const p = input.norm + channel;
  return relu((v - load<V>(p)) * load<V>(p + input.channels) + load<V>(p + 2 * input.channels));
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

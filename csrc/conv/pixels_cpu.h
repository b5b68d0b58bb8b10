// Pixels of an image gathered into panels: what a convolution reads is the image itself, or
// relu((x - mean) * scale + bias), applied on the way, so that the normalised image never stands in memory.
#pragma once

#include <algorithm>

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

// The norm's rows (n, 3, channels): mean, scale, bias. Null: the image as it is.
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

// Up to kMost pixels by the address of their first channel, null where they lie outside, and the runs of one image.
struct Pixels {
  static constexpr int64_t kMost = 128;

  int64_t count = 0, runs = 0;
  const float* at[kMost];
  int64_t end[kMost], image[kMost];  // of each run

  bool any() const {
    return std::any_of(at, at + count, [](const float* pixel) { return pixel != nullptr; });
  }

  void add(const float* pixel, int64_t of_image) {
    if (runs == 0 || image[runs - 1] != of_image) image[runs++] = of_image;
    at[count++] = pixel;
    end[runs - 1] = count;
  }
};

// to[c / kWidth][pixel][c % kWidth] for kVectors vectors of channels from `first` + `c` on.
template <bool kNorm, int kWidth, int kVectors>
void gather_strip(const Pixels& pixels, const Input& input, int64_t first, int64_t c, float* to) {
  using V = Vector<float>;
  constexpr int lanes = kLanes<float>;
  for (int64_t run = 0, i = 0; run < pixels.runs; ++run) {
    V mean[kVectors], scale[kVectors], bias[kVectors];
    if constexpr (kNorm) {
      const float* const p = input.of_image(pixels.image[run]).norm + first + c;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        mean[v] = load<V>(p + v * lanes);
        scale[v] = load<V>(p + input.channels + v * lanes);
        bias[v] = load<V>(p + 2 * input.channels + v * lanes);
      }
    }
    for (; i < pixels.end[run]; ++i) {
      const float* const from = pixels.at[i];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        V x{};
        if (from) {
          x = load<V>(from + first + c + v * lanes);
          if constexpr (kNorm) x = relu((x - mean[v]) * scale[v] + bias[v]);
        }
        const int64_t channel = c + v * lanes;
        store<V>(to + (channel / kWidth * pixels.count + i) * kWidth + channel % kWidth, x);
      }
    }
  }
}

// The same for `channels` channels, a multiple of 32.
template <bool kNorm, int kWidth>
void gather(const Pixels& pixels, const Input& input, int64_t first, int64_t channels, float* to) {
  constexpr int64_t lanes = kLanes<float>, wide = 4 * lanes, narrow = 2 * lanes;
  int64_t c = 0;
  for (; c + wide <= channels; c += wide) gather_strip<kNorm, kWidth, 4>(pixels, input, first, c, to);
  for (; c < channels; c += narrow) gather_strip<kNorm, kWidth, 2>(pixels, input, first, c, to);
}

// Brings channels of the share-th of so many shares of the pixels closer, while something else is computed.
inline void fetch(const Pixels& pixels, int64_t first, int64_t channels, int64_t share, int64_t shares) {
  constexpr int64_t line = 64 / sizeof(float);
  for (int64_t i = pixels.count * share / shares; i < pixels.count * (share + 1) / shares; ++i)
    for (int64_t c = 0; pixels.at[i] && c < channels; c += line) __builtin_prefetch(pixels.at[i] + first + c, 0, 2);
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

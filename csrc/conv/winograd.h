// 3x3 convolution of stride 1 and zero padding 1, forward and both gradients, by Winograd's minimal filtering.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace bitfast {

// Images are (n, height, width, channels), weights (out, 3, 3, in); both counts of channels are multiples of 32.
// All pointers are to float.
struct WinogradShape {
  int64_t n, height, width, in, out;
};

// y (n, height, width, out) from x (n, height, width, in) and `filter`, winograd_filter's result of as many elements as
// winograd_filter_size says.
struct WinogradConv {
  WinogradShape shape;
  const float* x;
  const float* norm;  // as ConvForward has
  const float* filter;
  float* y;
};

// The transformed weights; `flipped`: those with which WinogradConv, `in` and `out` exchanged, gives the gradient of x.
struct WinogradFilter {
  int64_t in, out;
  bool flipped;
  const float* weight;
  float* filter;
};

// dw (out, 3, 3, in) from x and dy, of at least one image.
struct WinogradWeightGradient {
  WinogradShape shape;
  const float* x;
  const float* norm;
  const float* dy;
  float* dw;
};

constexpr int64_t winograd_filter_size(int64_t in, int64_t out) { return 36 * in * out; }

BITFAST_DECLARE_KERNEL(void winograd_conv(const WinogradConv&, const Parallel&);
                       void winograd_filter(const WinogradFilter&, const Parallel&);
                       void winograd_weight_gradient(const WinogradWeightGradient&, const Parallel&))

}  // namespace bitfast

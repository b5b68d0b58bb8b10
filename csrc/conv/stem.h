// The stem's convolution: 7x7, stride 2, zero padding 3, from a few channels.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace bitfast {

// x is (n, height, width, in), y and dy (n, out_height, out_width, out), weights (out, 7, 7, in); all float, out a
// multiple of 32.
struct StemShape {
  int64_t n, height, width, in, out;

  int64_t out_height() const { return (height + 1) / 2; }
  int64_t out_width() const { return (width + 1) / 2; }
};

struct StemConv {
  StemShape shape;
  const float *x, *weight;
  float* y;
};

struct StemWeightGradient {
  StemShape shape;
  const float *x, *dy;
  float* dw;
};

BITFAST_DECLARE_KERNEL(void stem_conv(const StemConv&, const Parallel&);
                       void stem_weight_gradient(const StemWeightGradient&, const Parallel&))

}  // namespace bitfast

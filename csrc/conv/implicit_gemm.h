// Convolutions as matrix products whose left side is gathered from the image, a few rows at a time.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace bitfast {

// A convolution of square kernel, stride and zero padding; images are (n, height, width, channels), weights
// (out, kernel, kernel, in), all float, both counts of channels multiples of 32.
struct ConvShape {
  int64_t n, in_height, in_width, in, out_height, out_width, out, kernel, stride, padding;
};

// With norm (n, 3, in), norm_rows', the convolution's input is relu((x - mean) * scale + bias), else x itself.
struct ConvForward {
  ConvShape shape;
  const float* x;
  const float* norm;
  const float* panels;  // gemm_filter's
  float* y;
};

struct ConvInputGradient {
  ConvShape shape;
  const float* dy;
  const float* weight;
  float* dx;
  bool adds;  // to what dx holds
};

// Of at least one image.
struct ConvWeightGradient {
  ConvShape shape;
  const float* x;
  const float* norm;
  const float* dy;
  float* dw;
};

// The weights (out, steps) in the order in which gemm_forward reads them; steps are kernel * kernel * in.
struct ConvFilter {
  int64_t out, steps;
  const float* weight;
  float* panels;
};

BITFAST_DECLARE_KERNEL(void gemm_filter(const ConvFilter&, const Parallel&);
                       void gemm_forward(const ConvForward&, const Parallel&);
                       void gemm_input_gradient(const ConvInputGradient&, const Parallel&);
                       void gemm_weight_gradient(const ConvWeightGradient&, const Parallel&))

}  // namespace bitfast

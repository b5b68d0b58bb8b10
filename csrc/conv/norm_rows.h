// The norm before a convolution as three rows of channels for every image.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace bitfast {

// rows (n, 3, channels): mean, rstd * weight and bias; from mean and rstd (n, groups), weight and bias (channels).
struct NormRows {
  int64_t n, channels, groups;
  const float *mean, *rstd, *weight, *bias;
  float* rows;
};

BITFAST_DECLARE_KERNEL(void norm_rows(const NormRows&, const Parallel&))

}  // namespace bitfast

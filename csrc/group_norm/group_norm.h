// y = act((s - mean) * rstd * weight + bias), s = x + residual, statistics per image and group of channels.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/storage_type.h"

namespace bitfast {

enum class Activation { kNone, kRelu, kSilu };

// Images are dense, (n, pixels, channels) if channels_last, else (n, channels, pixels).
// weight, bias (channels), mean and rstd (n, groups) are float, or double for kFloat64.
struct GroupNormForward {
  const void* x;
  const void* residual;  // null: s is x, and sum is not written
  const void* weight;
  const void* bias;
  void* y;
  void* sum;
  void* mean;
  void* rstd;
  int64_t n, channels, pixels, groups;
  double eps;
  StorageType type;
  Activation activation;
  bool channels_last;
};

BITFAST_DECLARE_KERNEL(void group_norm_forward(const GroupNormForward&, const Parallel&))

}  // namespace bitfast

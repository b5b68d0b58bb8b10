// y = act((s - mean) * rstd * weight + bias), s = x + residual, statistics per image and group of channels.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/storage.h"
#include "group_norm/activation.h"

namespace bitfast {

// Images are dense, (n, pixels, channels) if channels_last, else (n, channels, pixels).
// weight, bias (channels), mean and rstd (n, groups) are float, or double for kFloat64.
struct GroupNormImages {
  int64_t n, channels, pixels, groups;
  StorageType type;
  Activation activation;
  bool channels_last;
};

struct GroupNormForward {
  GroupNormImages images;
  const void* x;
  const void* residual;  // null: s is x, and sum is not written
  const void* weight;
  const void* bias;
  void* y;
  void* sum;
  void* mean;
  void* rstd;
  double eps;
};

// x is the s of the forward; dw and db (channels) are of the type of weight.
struct GroupNormBackward {
  GroupNormImages images;
  const void* dy;
  const void* ds;  // null, or added to dx
  const void* x;
  const void* weight;
  const void* bias;
  const void* mean;
  const void* rstd;
  void* dx;
  void* dw;
  void* db;
};

BITFAST_DECLARE_KERNEL(void group_norm_forward(const GroupNormForward&, const Parallel&))
// mean, rstd and, with a residual, sum; of channels_last float images.
BITFAST_DECLARE_KERNEL(void group_norm_statistics(const GroupNormForward&, const Parallel&))
BITFAST_DECLARE_KERNEL(void group_norm_backward(const GroupNormBackward&, const Parallel&))

}  // namespace bitfast

// Weight standardization, its projection and the optimizer step on both, of many tensors in one call.
// With mean and rstd = 1 / sqrt(var + eps) of a row of w:
//
//   w_hat = (w - mean) * rstd
//   g = rstd * (d - mean(d) - w_hat * mean(d * w_hat))
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/storage.h"

namespace bitfast {

// Dense rows, one after the other. A row is (outer, width / outer) where that of w is the transpose of it; outer is 1
// where both have the same order.
struct Rows {
  void* data;
  int64_t outer;
  StorageType type;
};

// Statistics and sums are float, or double where w is kFloat64. w and g have outer 1.
struct WeightTensor {
  int64_t elements, width;  // where width does not divide elements the last row is shorter: only without w_hat
  double eps;
  Rows w, d, g, m, w_hat, a;
};

// A decoupled decay is not a part of m: w = (1 - lr * weight_decay) * w - lr * m.
struct SgdRule {
  double lr, momentum, weight_decay;
  bool decoupled;
  double ema_decay;
};

// Reads w, writes w_hat.
BITFAST_DECLARE_KERNEL(void weight_standardize(const WeightTensor*, int64_t count, const Parallel&))

// Reads w and d, writes g.
BITFAST_DECLARE_KERNEL(void weight_standardize_backward(const WeightTensor*, int64_t count, const Parallel&))

// m = momentum * m + g + weight_decay * w;  w -= lr * m;  a += (1 - ema_decay) * (w - a);  w_hat of the new w.
// Where w_hat has no data, d takes the place of g; where m has none, it is 0 and is not written; where a has
// none, it is left out.
BITFAST_DECLARE_KERNEL(void standardized_sgd_step(const WeightTensor*, int64_t count, const SgdRule&, const Parallel&))

}  // namespace bitfast

// The operations of weight_std.h on a GPU: many tensors in one launch.
#pragma once

#include "common/gpu.h"

namespace bitfast::gpu {

// Dense rows, one after the other. Where `turned`, a row is (outer, width / outer) and that of w is the transpose of it.
struct Rows {
  void* data;
  bool turned;
  Type type;
};

// w, m and average are float.
struct Weight {
  int64_t rows, width, outer;
  float eps;
  void* w;
  Rows m, average, d, result;
};

// shrink: 1, or 1 - lr * the decay that is decoupled from m.
struct SgdRule {
  float lr, momentum, weight_decay, shrink, average_step;
};

// Reads w, writes result: w_hat.
cudaError_t weight_standardize(const Weight*, int64_t count, cudaStream_t);

// Reads w and d, writes result: g, of float. Where norms is given, it gets the L2 norm of g for each row, tensors one
// after the other; result may then be without data.
cudaError_t weight_standardize_backward(const Weight*, int64_t count, float* norms, cudaStream_t);

// m = momentum * m + g + weight_decay * w;  w = shrink * w - lr * m;  average += average_step * (w - average);
// result: w_hat of the new w. Where result has no data, d takes the place of g; where m has none, it is 0 and is not
// written, and so is average.
cudaError_t standardized_sgd_step(const Weight*, int64_t count, const SgdRule&, cudaStream_t);

}  // namespace bitfast::gpu

// A square of vectors in registers.
#pragma once

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

// Rows become columns, by as many rounds of interleaving as halve the number of lanes to one.
inline void transpose(Vector<float> (&rows)[kLanes<float>]) {
  using V = Vector<float>;
  using Index [[gnu::vector_size(sizeof(V))]] = int32_t;
  constexpr int lanes = kLanes<float>;
  Index low, high;
  for (int i = 0; i < lanes; ++i) {
    low[i] = i / 2 + i % 2 * lanes;
    high[i] = lanes / 2 + i / 2 + i % 2 * lanes;
  }
  for (int round = 1; round < lanes; round *= 2) {
    V next[lanes];
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + lanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + lanes / 2], high);
    }
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

// Winograd's F(4x4, 3x3) on the points 0, +-1/sqrt(2), +-sqrt(2), infinity, whose rounding error is half that of the
// usual 0, +-1, +-2. One-dimensional transforms of vectors; a plane is transformed along its rows, then along its columns.
//     y = AT ((G g) * (BT d)),  dg = GT (sum over tiles of (BT d) * (A dy))
#pragma once

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int kOut = 4, kTaps = 3, kIn = kOut + kTaps - 1, kPositions = kIn * kIn;
constexpr float kRoot2 = 1.41421356237309505f, kHalfRoot2 = 0.707106781186547524f;

// BT d: 6 -> 6.
template <class V>
inline void transform_input(const V (&d)[kIn], V (&out)[kIn]) {
  const V even_a = d[4] - 2 * d[2], odd_a = kHalfRoot2 * d[3] - kRoot2 * d[1];
  const V even_b = d[4] - 0.5f * d[2], odd_b = kRoot2 * d[3] - kHalfRoot2 * d[1];
  out[0] = (d[0] + d[4]) - 2.5f * d[2];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = (d[1] + d[5]) - 2.5f * d[3];
}

// AT m: 6 -> 4.
template <class V>
inline void transform_output(const V (&m)[kIn], V (&out)[kOut]) {
  const V sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  out[0] = m[0] + sum_a + sum_b;
  out[1] = kHalfRoot2 * difference_a + kRoot2 * difference_b;
  out[2] = 0.5f * sum_a + 2 * sum_b;
  out[3] = m[5] + 0.5f * kHalfRoot2 * difference_a + 2 * kRoot2 * difference_b;
}

// A dy: 4 -> 6.
template <class V>
inline void transform_output_gradient(const V (&dy)[kOut], V (&out)[kIn]) {
  const V even_a = dy[0] + 0.5f * dy[2], odd_a = kHalfRoot2 * (dy[1] + 0.5f * dy[3]);
  const V even_b = dy[0] + 2 * dy[2], odd_b = kRoot2 * (dy[1] + 2 * dy[3]);
  out[0] = dy[0];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = dy[3];
}

// G g: 3 -> 6.
template <class V>
inline void transform_filter(const V (&g)[kTaps], V (&out)[kIn]) {
  const V even_a = (-2 / 3.f) * g[0] - (1 / 3.f) * g[2], odd_a = (-2 / 3.f) * kHalfRoot2 * g[1];
  const V even_b = (1 / 6.f) * g[0] + (1 / 3.f) * g[2], odd_b = (1 / 6.f) * kRoot2 * g[1];
  out[0] = g[0];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g[2];
}

// GT dg: 6 -> 3.
template <class V>
inline void transform_filter_gradient(const V (&dg)[kIn], V (&out)[kTaps]) {
  const V sum_a = dg[1] + dg[2], difference_a = dg[1] - dg[2], sum_b = dg[3] + dg[4], difference_b = dg[3] - dg[4];
  out[0] = dg[0] - (2 / 3.f) * sum_a + (1 / 6.f) * sum_b;
  out[1] = (-2 / 3.f) * kHalfRoot2 * difference_a + (1 / 6.f) * kRoot2 * difference_b;
  out[2] = dg[5] - (1 / 3.f) * sum_a + (1 / 3.f) * sum_b;
}

// The plane read by load(row, column), transformed both ways and written by store(row, column, vector).
template <class V, int kFrom, int kTo, void (*kTransform)(const V (&)[kFrom], V (&)[kTo]), class Load, class Store>
inline void transform_plane(Load load, Store store) {
  V half[kTo][kFrom];
#pragma GCC unroll 6
  for (int column = 0; column < kFrom; ++column) {
    V in[kFrom], out[kTo];
    for (int row = 0; row < kFrom; ++row) in[row] = load(row, column);
    kTransform(in, out);
    for (int row = 0; row < kTo; ++row) half[row][column] = out[row];
  }
#pragma GCC unroll 6
  for (int row = 0; row < kTo; ++row) {
    V out[kTo];
    kTransform(half[row], out);
    for (int column = 0; column < kTo; ++column) store(row, column, out[column]);
  }
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

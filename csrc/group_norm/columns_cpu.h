// The two sweeps of GroupNorm over rows of columns: moments of every column, and the normalisation.
#pragma once

#include <algorithm>
#include <numeric>

#include "common/vector.h"
#include "group_norm/group_norm.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kBlockRows = 64;  // rows summed in the compute type before merging in double
constexpr int64_t kBandRows = 8;    // rows read side by side: as many sequential streams
constexpr int kUnroll = 4;          // vectors side by side in a strip

template <class T>
constexpr int64_t kStrip = kUnroll * kLanes<T>;

// Both layouts are rows of columns: `rows` rows of `width` elements that begin `stride` elements apart.
template <class Stored>
struct Rows {
  const Stored* x;
  const Stored* residual;  // null: x is the input; else x + residual is, and is written to sum
  Stored* sum;
  Stored* y;
  int64_t rows, stride, width;

  // The input as it stands in memory once it has been summed.
  const Stored* source() const { return residual ? sum : x; }
};

// Per column: running mean and squared distances from it, and the sums of the current block about `centre`.
template <class T>
struct Columns {
  double *mean, *squares;
  T *centre, *first, *second;
};

// Covers columns [0, width) by strips, widest first: f(vector of the strip's type, vectors in it, first column).
template <class T, class F>
void for_each_strip(int64_t width, F f) {
  int64_t i = 0;
  for (; i + kStrip<T> <= width; i += kStrip<T>) f(Vector<T>{}, std::integral_constant<int, kUnroll>{}, i);
  for (; i + kLanes<T> <= width; i += kLanes<T>) f(Vector<T>{}, std::integral_constant<int, 1>{}, i);
  for (; i < width; ++i) f(T{}, std::integral_constant<int, 1>{}, i);
}

template <class V, int kVectors, bool kAdd, class Stored, class T>
void strip_sums(const Rows<Stored>& in, int64_t begin, int64_t end, int64_t column, const Columns<T>& out) {
  constexpr int lanes = Lanes<V>::count;
  V centre[kVectors], first[kVectors], second[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    centre[v] = load<V>(out.centre + column + v * lanes);
    first[v] = load<V>(out.first + column + v * lanes);
    second[v] = load<V>(out.second + column + v * lanes);
  }
  const Stored *x = in.x, *residual = in.residual, *source = in.source();
  Stored* const sum = in.sum;
  const int64_t stride = in.stride;
  for (int64_t r = begin; r < end; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = r * stride + column + v * lanes;
      if constexpr (kAdd) store<V>(sum + i, load<V>(x + i) + load<V>(residual + i));
      const V d = load<V>(source + i) - centre[v];
      first[v] += d;
      second[v] += d * d;
    }
  for (int v = 0; v < kVectors; ++v) {
    store<V>(out.first + column + v * lanes, first[v]);
    store<V>(out.second + column + v * lanes, second[v]);
  }
}

template <bool kAdd, class Stored, class T>
void block_sums(const Rows<Stored>& in, int64_t begin, int64_t end, const Columns<T>& out) {
  for (int64_t r = begin; r < end; r += kBandRows)
    for_each_strip<T>(in.width, [&](auto v, auto vectors, int64_t column) {
      strip_sums<decltype(v), vectors, kAdd>(in, r, std::min(r + kBandRows, end), column, out);
    });
}

// Column moments. Each block is centred on the mean of the blocks before it, the first on its own.
template <class Stored, class T>
void column_moments(const Rows<Stored>& in, const Columns<T>& out) {
  std::fill_n(out.centre, in.width, T(0));
  std::fill_n(out.first, in.width, T(0));
  std::fill_n(out.second, in.width, T(0));
  std::fill_n(out.mean, in.width, 0.0);
  std::fill_n(out.squares, in.width, 0.0);
  for (int64_t begin = 0; begin < in.rows; begin += kBlockRows) {
    const int64_t end = std::min(begin + kBlockRows, in.rows);
    const double n = double(end - begin), per_row = 1 / n, share = n / double(end);
    in.residual ? block_sums<true>(in, begin, end, out) : block_sums<false>(in, begin, end, out);
    if (begin == 0) {
      for (int64_t c = 0; c < in.width; ++c) {
        out.centre[c] = T(out.first[c] * per_row);
        out.first[c] = out.second[c] = 0;
      }
      block_sums<false>(in, begin, end, out);
    }
    for (int64_t c = 0; c < in.width; ++c) {
      const double offset = out.first[c] * per_row, delta = out.centre[c] + offset - out.mean[c];
      out.squares[c] += out.second[c] - out.first[c] * offset + delta * delta * (double(begin) * share);
      out.mean[c] += delta * share;
      out.centre[c] = T(out.mean[c]);
      out.first[c] = out.second[c] = 0;
    }
  }
}

template <Activation kActivation, bool kStream, class V, int kVectors, class Stored, class T>
void strip_apply(const Rows<Stored>& in, int64_t begin, int64_t end, int64_t column, const T* mean, const T* scale,
                 const T* bias) {
  constexpr int lanes = Lanes<V>::count;
  V m[kVectors], a[kVectors], b[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    m[v] = load<V>(mean + column + v * lanes);
    a[v] = load<V>(scale + column + v * lanes);
    b[v] = load<V>(bias + column + v * lanes);
  }
  const Stored* const source = in.source();
  Stored* const y = in.y;
  const int64_t stride = in.stride;
  for (int64_t r = begin; r < end; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = r * stride + column + v * lanes;
      V z = (load<V>(source + i) - m[v]) * a[v] + b[v];
      if constexpr (kActivation == Activation::kRelu) z = relu(z);
      if constexpr (kActivation == Activation::kSilu) z = silu(z);
      kStream ? stream<V>(y + i, z) : store<V>(y + i, z);
    }
}

// y of all rows, last first. Streamed results go past the caches.
template <Activation kActivation, bool kStream, class Stored, class T>
void apply(const Rows<Stored>& in, const T* mean, const T* scale, const T* bias) {
  for (int64_t end = in.rows; end > 0; end -= kBandRows) {
    const int64_t begin = std::max<int64_t>(end - kBandRows, 0);
    for_each_strip<T>(in.width, [&](auto v, auto vectors, int64_t column) {
      strip_apply<kActivation, kStream, decltype(v), vectors>(in, begin, end, column, mean, scale, bias);
    });
  }
}

// Moments of a group, merged from those of its columns.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  // Adds `columns` columns of `rows` values each.
  void merge(int64_t rows, int64_t columns, const double* means, const double* squared) {
    const double n = double(rows) * double(columns), total = count + n;
    const double m = std::accumulate(means, means + columns, 0.0) / double(columns), delta = m - mean;
    double between = 0, within = 0;
    for (int64_t c = 0; c < columns; ++c) {
      between += (means[c] - m) * (means[c] - m);
      within += squared[c];
    }
    squares += within + between * double(rows) + delta * delta * (count * n / total);
    mean += delta * (n / total);
    count = total;
  }
};

}  // namespace
}  // namespace bitfast::BITFAST_ISA

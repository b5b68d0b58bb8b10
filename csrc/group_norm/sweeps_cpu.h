// Sweeps over rows of columns and over runs of elements: sums of two values, and results written.
//
// What a sweep computes is given as `make(V{}, column)`: it loads the parameters of the columns that begin at `column`
// into registers and returns what is done with the elements at offset i. Sweeps over rows are flattened: a strip is too
// short to be worth a call. Not so for the baseline, where gcc would take minutes to compile them.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "common/vector.h"

#ifdef __AVX2__
#define BITFAST_FLATTEN [[gnu::flatten]]
#else
#define BITFAST_FLATTEN
#endif

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kBlockRows = 64;  // rows summed in the compute type before they are added in double
constexpr int kUnroll = 4;          // vectors side by side in a strip of a run
constexpr int64_t kNarrow = 256;                 // columns of a narrow row, at most
constexpr int kLineVectors = 64 / kVectorBytes;  // of a cache line

template <class T>
constexpr int64_t kStrip = kUnroll * kLanes<T>;

// Covers columns [0, width) by strips, widest first: f(vector of the strip's type, vectors in it, first column).
template <class T, int kVectors = kUnroll, class F>
void for_each_strip(int64_t width, F f) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + kVectors * lanes <= width; i += kVectors * lanes)
    f(Vector<T>{}, std::integral_constant<int, kVectors>{}, i);
  if constexpr (kVectors > 1)
    for (; i + lanes <= width; i += lanes) f(Vector<T>{}, std::integral_constant<int, 1>{}, i);
  for (; i < width; ++i) f(T{}, std::integral_constant<int, 1>{}, i);
}

// What `make` returns for each of the vectors of a strip.
template <class V, int kVectors, class Make>
auto make_strip(int64_t column, Make make) {
  return [&]<int... v>(std::integer_sequence<int, v...>) {
    return std::array{make(V{}, column + v * Lanes<V>::count)...};
  }(std::make_integer_sequence<int, kVectors>{});
}

// Rows of `width` columns, `stride` elements apart.
struct Rows {
  int64_t stride, width;
};

// Covers rows [begin, end) by bands of kRows and these by strips of kVectors: f(vector of the strip's type, vectors in
// it, first column, rows), where rows(g) calls g(offset of the first column) for every row of the band, unrolled.
template <class T, int kRows, int kVectors, class F>
void for_each_tile_of(const Rows& rows, int64_t begin, int64_t end, F f) {
  for (int64_t band = begin; band < end; band += kRows)
    for_each_strip<T, kVectors>(rows.width, [&](auto vector, auto vectors, int64_t column) {
      const int64_t offset = band * rows.stride + column;
      f(vector, vectors, column, [&](auto g) {
        if (band + kRows <= end) {
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) g(offset + r * rows.stride);
        } else {
          for (int64_t r = 0; r < end - band; ++r) g(offset + r * rows.stride);
        }
      });
    });
}

// Narrow rows are read nearly in the order of memory, which the processor foresees best; of wide ones a cache line of
// eight rows is, since their parameters and sums do not stay in the first-level cache from a row to the next.
template <class T, int kNarrowRows, class F>
void for_each_tile(const Rows& rows, int64_t begin, int64_t end, F f) {
  rows.stride <= kNarrow ? for_each_tile_of<T, kNarrowRows, kUnroll>(rows, begin, end, f)
                         : for_each_tile_of<T, 8, kLineVectors>(rows, begin, end, f);
}

// Sums of two values over rows [begin, end): f = make(V{}, column), f(i, first, second) adds those at i.
template <class T, class Make>
BITFAST_FLATTEN void column_sums(const Rows& rows, int64_t begin, int64_t end, T* first, T* second, Make make) {
  std::fill_n(first, rows.width, T(0));
  std::fill_n(second, rows.width, T(0));
  for_each_tile<T, 4>(rows, begin, end, [&](auto vector, auto vectors, int64_t column, auto for_each_row) {
    using V = decltype(vector);
    constexpr int kVectors = decltype(vectors)::value, lanes = Lanes<V>::count;
    const auto add = make_strip<V, kVectors>(column, make);
    V f[kVectors], s[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      f[v] = load<V>(first + column + v * lanes);
      s[v] = load<V>(second + column + v * lanes);
    }
    for_each_row([&](int64_t i) {
      for (int v = 0; v < kVectors; ++v) add[v](i + v * lanes, f[v], s[v]);
    });
    for (int v = 0; v < kVectors; ++v) {
      store<V>(first + column + v * lanes, f[v]);
      store<V>(second + column + v * lanes, s[v]);
    }
  });
}

// Results of rows [0, count): f = make(V{}, column), f(i) writes those of the elements at i.
template <class T, class Make>
BITFAST_FLATTEN void column_results(const Rows& rows, int64_t count, Make make) {
  for_each_tile<T, 1>(rows, 0, count, [&](auto vector, auto vectors, int64_t column, auto for_each_row) {
    using V = decltype(vector);
    constexpr int kVectors = decltype(vectors)::value;
    const auto write = make_strip<V, kVectors>(column, make);
    for_each_row([&](int64_t i) {
      for (int v = 0; v < kVectors; ++v) write[v](i + v * Lanes<V>::count);
    });
  });
}

struct Sums {
  double first = 0, second = 0;
};

// As column_sums, over `count` consecutive elements that share their parameters.
template <class T, class Make>
Sums run_sums(int64_t count, Make make) {
  constexpr int64_t lanes = kLanes<T>;
  const auto add = make(Vector<T>{}, 0);
  const auto add_one = make(T{}, 0);
  Sums sums;
  for (int64_t i = 0; i < count;) {
    const int64_t end = std::min(i + kBlockRows * kStrip<T>, count);
    Vector<T> f[kUnroll]{}, s[kUnroll]{};
    T last_f = 0, last_s = 0;
    for (; i + kStrip<T> <= end; i += kStrip<T>)
      for (int v = 0; v < kUnroll; ++v) add(i + v * lanes, f[v], s[v]);
    for (; i + lanes <= end; i += lanes) add(i, f[0], s[0]);
    for (; i < end; ++i) add_one(i, last_f, last_s);
    sums.first += lane_sum((f[0] + f[1]) + (f[2] + f[3])) + last_f;
    sums.second += lane_sum((s[0] + s[1]) + (s[2] + s[3])) + last_s;
  }
  return sums;
}

// The sums of two arrays, in double.
template <class T>
Sums total(const T* first, const T* second, int64_t count) {
  return run_sums<double>(count, [&](auto vector, int64_t) {
    using V = decltype(vector);
    return [=](int64_t i, V& f, V& s) {
      f += load<V>(first + i);
      s += load<V>(second + i);
    };
  });
}

// As column_results, over `count` consecutive elements that share their parameters.
template <class T, class Make>
void run_results(int64_t count, Make make) {
  const auto write = make(Vector<T>{}, 0);
  const auto write_one = make(T{}, 0);
  for_each_strip<T>(count, [&](auto vector, auto vectors, int64_t i) {
    for (int v = 0; v < vectors; ++v)
      if constexpr (std::is_same_v<decltype(vector), T>)
        write_one(i);
      else
        write(i + v * kLanes<T>);
  });
}

// total[c] += part[c], for all of `width`.
template <class T>
void add_to(double* total, const T* part, int64_t width) {
  for_each_strip<double>(width, [&](auto vector, auto vectors, int64_t column) {
    using V = decltype(vector);
    for (int v = 0; v < vectors; ++v) {
      double* const to = total + column + v * Lanes<V>::count;
      store<V>(to, load<V>(to) + load<V>(part + column + v * Lanes<V>::count));
    }
  });
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

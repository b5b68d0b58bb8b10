// The register tile of a matrix product: a few rows of A times a panel of B that is two vectors wide.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int kDepth = 16;      // steps of the reduction that stand together in a panel of A
constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes<float>;  // columns of a panel of B
constexpr int64_t kFlush = 8;   // depths that are summed before they are added to the result: bounds the rounding error
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif

// Which way the 16 x 16 blocks of A lie: [row][step] or [step][row].
enum class Order { kRowMajor, kStepMajor };

// What happens to the result: it is set, added to, or set past the caches, for which it must be aligned.
enum class Write { kSet, kAdd, kStream };

// C[row][0..kPanel) (+)= sum over steps of A(row, step) * B[step][0..kPanel); A: blocks `block_stride` apart.
template <int kRows, Order kOrder>
void gemm_tile(const float* a, int64_t block_stride, const float* b, int64_t steps, float* c, int64_t c_stride,
               Write write) {
  using V = Vector<float>;
  constexpr int lanes = kLanes<float>;
  constexpr int row_stride = kOrder == Order::kRowMajor ? kDepth : 1;
  constexpr int step_stride = kOrder == Order::kRowMajor ? 1 : kDepth;
  for (int64_t begin = 0; begin < steps; begin += kFlush * kDepth) {
    V sum[kRows][kPanelVectors] = {};
    const int64_t end = std::min(begin + kFlush * kDepth, steps);
    for (int64_t block = begin; block < end; block += kDepth, a += block_stride) {
      const int count = int(std::min<int64_t>(kDepth, end - block));
      const float* p = a;
      for (int step = 0; step < count; ++step, p += step_stride, b += kPanel) {
        V columns[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) columns[v] = load<V>(b + v * lanes);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
          for (int v = 0; v < kPanelVectors; ++v) sum[row][v] += p[row * row_stride] * columns[v];
      }
    }
    auto put = [&](auto write_vector) {
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v) write_vector(c + row * c_stride + v * lanes, sum[row][v]);
    };
    if (write == Write::kAdd || begin)
      put([](float* out, V v) { store<V>(out, load<V>(out) + v); });
    else if (write == Write::kStream && steps <= kFlush * kDepth)
      put([](float* out, V v) { stream<V>(out, v); });
    else
      put([](float* out, V v) { store<V>(out, v); });
  }
}

using GemmTile = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, Write);

template <Order kOrder>
GemmTile tile_of_rows(int64_t rows) {
  static constexpr auto table = []<int... kRow>(std::integer_sequence<int, kRow...>) {
    return std::array<GemmTile, kTileRows>{gemm_tile<kRow + 1, kOrder>...};
  }(std::make_integer_sequence<int, kTileRows>());
  return table[rows - 1];
}

// The same for any number of rows, as equal tiles.
template <Order kOrder>
void gemm_panel(int64_t rows, const float* a, int64_t block_stride, const float* b, int64_t steps,
                float* c, int64_t c_stride, Write write = Write::kSet) {
  constexpr int64_t row_stride = kOrder == Order::kRowMajor ? kDepth : 1;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = t * rows / tiles, count = (t + 1) * rows / tiles - begin;
    tile_of_rows<kOrder>(count)(a + begin * row_stride, block_stride, b, steps, c + begin * c_stride, c_stride, write);
  }
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

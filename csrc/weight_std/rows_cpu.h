// Rows of weights: read into and written from the compute type and the order of w, summed, and shared among threads.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "common/vector.h"
#include "weight_std/weight_std.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kTaskElements = 32 << 10;  // below this a task is not worth a thread
constexpr int64_t kBlockElements = 4096;     // summed in the compute type before adding up in double
constexpr int kUnroll = 4;                   // partial sums side by side

// f(vector, first index) over [0, width), then f(scalar, index) over what is left.
template <class T, class F>
void for_each_vector(int64_t width, F f) {
  int64_t i = 0;
  for (; i + kLanes<T> <= width; i += kLanes<T>) f(Vector<T>{}, i);
  for (; i < width; ++i) f(T{}, i);
}

// kSums sums over a row: add(i, sums) adds the terms of index i and, if they are vectors, those after it.
template <class T, int kSums, class F>
std::array<double, kSums> row_sums(int64_t width, F add) {
  std::array<double, kSums> total{};
  for (int64_t begin = 0; begin < width; begin += kBlockElements) {
    const int64_t end = std::min(begin + kBlockElements, width);
    Vector<T> sums[kUnroll][kSums] = {};
    T rest[kSums] = {};
    int64_t i = begin;
    for (; i + kUnroll * kLanes<T> <= end; i += kUnroll * kLanes<T>)
      for (int u = 0; u < kUnroll; ++u) add(i + u * kLanes<T>, sums[u]);
    for (; i + kLanes<T> <= end; i += kLanes<T>) add(i, sums[0]);
    for (; i < end; ++i) add(i, rest);
    for (int s = 0; s < kSums; ++s) {
      const Vector<T> sum = (sums[0][s] + sums[1][s]) + (sums[2][s] + sums[3][s]);
      for (int lane = 0; lane < kLanes<T>; ++lane) total[s] += sum[lane];
      total[s] += rest[s];
    }
  }
  return total;
}

// Calls f with a null pointer of the stored type.
template <class F>
void with_type(StorageType type, F f) {
  switch (type) {
    case StorageType::kFloat32: return f(static_cast<float*>(nullptr));
    case StorageType::kFloat64: return f(static_cast<double*>(nullptr));
    case StorageType::kBFloat16: return f(static_cast<BFloat16*>(nullptr));
  }
}

template <class T>
constexpr StorageType kStorageType = std::is_same_v<T, double> ? StorageType::kFloat64 : StorageType::kFloat32;

template <class T>
using Quad [[gnu::vector_size(4 * sizeof(T))]] = T;

// Elements of a (numbered from 0) and b (from 4).
template <class T, int... kElements>
inline void pick(const Quad<T>& a, const Quad<T>& b, Quad<T>& out) {
#if __has_builtin(__builtin_shufflevector)
  out = __builtin_shufflevector(a, b, kElements...);
#else
  out = __builtin_shuffle(a, b, Quad<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>>{kElements...});
#endif
}

// A tile of 4 x 4, the rows of which begin `inner` elements apart, into rows `outer` apart.
template <class T>
inline void transpose_tile(const T* in, int64_t inner, T* out, int64_t outer) {
  Quad<T> rows[4], pairs[4];
  for (int r = 0; r < 4; ++r) std::memcpy(&rows[r], in + r * inner, sizeof rows[r]);
  for (int r = 0; r < 4; r += 2) {
    pick<T, 0, 4, 1, 5>(rows[r], rows[r + 1], pairs[r]);
    pick<T, 2, 6, 3, 7>(rows[r], rows[r + 1], pairs[r + 1]);
  }
  for (int r = 0; r < 2; ++r) {
    pick<T, 0, 1, 4, 5>(pairs[r], pairs[r + 2], rows[2 * r]);
    pick<T, 2, 3, 6, 7>(pairs[r], pairs[r + 2], rows[2 * r + 1]);
  }
  for (int r = 0; r < 4; ++r) std::memcpy(out + r * outer, &rows[r], sizeof rows[r]);
}

// (outer, inner) -> (inner, outer).
template <class T>
void transpose(const T* in, int64_t outer, int64_t inner, T* out) {
  int64_t r = 0;
  for (; r + 4 <= outer; r += 4) {
    int64_t c = 0;
    for (; c + 4 <= inner; c += 4) transpose_tile(in + r * inner + c, inner, out + c * outer + r, outer);
    for (; c < inner; ++c)
      for (int64_t i = r; i < r + 4; ++i) out[c * outer + i] = in[i * inner + c];
  }
  for (; r < outer; ++r)
    for (int64_t c = 0; c < inner; ++c) out[c * outer + r] = in[r * inner + c];
}

// The row that begins at element `first`, in the compute type and the order of w: where it stands if it is so already,
// else in `buffer`. Uses `spare`.
template <class T>
const T* read_row(const Rows& rows, int64_t first, int64_t width, T* buffer, T* spare) {
  const T* row = nullptr;
  with_type(rows.type, [&]<class Stored>(Stored*) {
    const Stored* const in = static_cast<const Stored*>(rows.data) + first;
    if constexpr (std::is_same_v<Stored, T>) {
      row = in;
    } else {
      T* const out = rows.outer == 1 ? buffer : spare;
      if constexpr (std::is_same_v<Compute<Stored>, T>)
        for_each_vector<T>(width, [&](auto v, int64_t i) { store(out + i, load<decltype(v)>(in + i)); });
      else
        for (int64_t i = 0; i < width; ++i) out[i] = T(load<Compute<Stored>>(in + i));
      row = out;
    }
  });
  if (rows.outer == 1) return row;
  transpose(row, rows.outer, width / rows.outer, buffer);
  return buffer;
}

template <bool kStream, class T, class Stored, class F>
void write_stored(Stored* out, int64_t width, F value) {
  if constexpr (std::is_same_v<Compute<Stored>, T>)
    for_each_vector<T>(width, [&](auto v, int64_t i) {
      kStream ? stream(out + i, value(v, i)) : store(out + i, value(v, i));
    });
  else
    for (int64_t i = 0; i < width; ++i) store(out + i, Compute<Stored>(value(T{}, i)));
}

template <class T, class F>
void write_in_order(const Rows& rows, int64_t first, int64_t width, bool past_caches, F value) {
  with_type(rows.type, [&]<class Stored>(Stored*) {
    Stored* const out = static_cast<Stored*>(rows.data) + first;
    const bool aligned = reinterpret_cast<uintptr_t>(out) % kVectorBytes == 0;
    past_caches&& aligned ? write_stored<true, T>(out, width, value) : write_stored<false, T>(out, width, value);
  });
}

// Writes value(vector or scalar, index), indices in the order of w; past the caches where asked for and aligned. Uses
// `buffer` and `spare` unless the rows have the order of w.
template <class T, class F>
void write_row(const Rows& rows, int64_t first, int64_t width, bool past_caches, T* buffer, T* spare, F value) {
  if (rows.outer == 1) return write_in_order<T>(rows, first, width, past_caches, value);
  for_each_vector<T>(width, [&](auto v, int64_t i) { store(buffer + i, value(v, i)); });
  transpose(buffer, width / rows.outer, rows.outer, spare);
  write_in_order<T>(rows, first, width, past_caches, [&](auto v, int64_t i) { return load<decltype(v)>(spare + i); });
}

// Room for a few rows in the compute type, aligned to whole lines.
class Workspace {
 public:
  explicit Workspace(int64_t width)
      : lines_(width * int64_t(sizeof(double)) / kLine + 1), memory_(new Line[4 * lines_]) {}

  // Row 0 to 3.
  template <class T>
  T* row(int i) const {
    return reinterpret_cast<T*>(memory_.get() + i * lines_);
  }

 private:
  static constexpr int64_t kLine = 64;
  struct alignas(kLine) Line {
    char bytes[kLine];
  };
  const int64_t lines_;
  const std::unique_ptr<Line[]> memory_;
};

// Calls row(tensor, first element, width, workspace) for every row of every tensor. The threads' shares are of as many
// elements; a row belongs to the share that its first element lies in.
template <class F>
void for_each_row(const WeightTensor* tensors, int64_t count, const Parallel& parallel, F row) {
  std::vector<int64_t> starts(count + 1);
  int64_t widest = 0;
  for (int64_t t = 0; t < count; ++t) {
    starts[t + 1] = starts[t] + tensors[t].elements;
    widest = std::max(widest, tensors[t].width);
  }
  auto share = [&](int64_t begin, int64_t end) {
    const Workspace workspace(widest);
    int64_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; t < count && starts[t] < end; ++t) {
      const int64_t width = tensors[t].width, skipped = std::max<int64_t>(begin - starts[t], 0);
      const int64_t stop = std::min(end - starts[t], tensors[t].elements);
      for (int64_t first = (skipped + width - 1) / width * width; first < stop; first += width)
        row(tensors[t], first, std::min(width, tensors[t].elements - first), workspace);
    }
    stream_fence();
  };
  auto body = [](void* context, int64_t begin, int64_t end) { (*static_cast<decltype(share)*>(context))(begin, end); };
  parallel.run(starts[count], kTaskElements, body, &share);
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

// The tensors of a launch, handed to the kernel by value: so a CUDA graph holds them, and nothing is copied or kept.
#pragma once

#include <algorithm>
#include <vector>

#include "common/storage.cuh"
#include "common/team.cuh"
#include "weight_std/weight_std_gpu.h"

namespace bitfast::gpu {

constexpr int kThreads = 512;                 // of a block; two fit a multiprocessor with 64 registers a thread
constexpr int kWarpWidth = 256;               // rows up to this length are a warp's, longer ones a block's
constexpr int kBlockElements = 8 * kThreads;  // of a plain parameter
constexpr int kWarps = kThreads / kWarp;
using Block = BlockTeam<kThreads>;

// How blocks share a tensor.
enum class Kind : uint8_t {
  kElements,     // kBlockElements each
  kShortRows,    // a row for every warp, in shared memory
  kLongRows,     // a row, in shared memory
  kRowsInPlace,  // a row too long for it, which is read again from where it is
};

// A tensor, in few bytes.
struct Column {
  float *w, *m, *average;
  void *d, *result;  // result: of a projection g, and m is where the norms of the rows go
  int first_block, rows, width, outer;
  float eps;
  Type d_type, result_type;
  Kind kind;
  bool m_turned : 1, average_turned : 1, d_turned : 1, result_turned : 1;
};

// A column as its blocks use it. In turned rows, of (outer, inner), element i of w, whose rows are (inner, outer), is at
// position turned(i).
struct Tensor : Column {
  int inner;
  unsigned by_outer, by_inner;  // 2^32 / divisor, rounded up; 0 where that is not exact for every position

  __device__ explicit Tensor(const Column& c)
      : Column(c), inner(c.width / c.outer), by_outer(reciprocal(outer, width)), by_inner(reciprocal(inner, width)) {}

  __device__ static unsigned reciprocal(int divisor, int width) {
    const unsigned by = ~0u / unsigned(divisor) + 1, excess = by * unsigned(divisor);  // less 2^32
    return divisor > 1 && uint64_t(excess) * unsigned(width) <= uint64_t(1) << 32 ? by : 0;
  }
  __device__ static int quotient(int i, int divisor, unsigned by) {
    return by ? int(__umulhi(unsigned(i), by)) : i / divisor;
  }
  __device__ int turned(int i) const {
    const int a = quotient(i, outer, by_outer);
    return (i - a * outer) * inner + a;
  }
  __device__ int turned_back(int j) const {
    const int b = quotient(j, inner, by_inner);
    return (j - b * inner) * outer + b;
  }

  // Where m, the average and d have element i of w; which element of w they and the result have at j.
  __device__ int of_m(int i) const { return m_turned ? turned(i) : i; }
  __device__ int of_average(int i) const { return average_turned ? turned(i) : i; }
  __device__ int of_d(int i) const { return d_turned ? turned(i) : i; }
  __device__ int in_d(int j) const { return d_turned ? turned_back(j) : j; }
  __device__ int in_result(int j) const { return result_turned ? turned_back(j) : j; }
};

// CUDA 12.1 and later takes 32764 bytes of arguments, earlier ones 4096. R152x4 has 459 parameters.
constexpr int kColumns = CUDART_VERSION >= 12010 ? 480 : 60;

struct Table {
  int count, blocks;
  Column columns[kColumns];

  // What block `block` works on.
  __device__ Tensor of_block(int block) const {
    int first = 0, end = count;
    while (end - first > 1) {
      const int middle = (first + end) / 2;
      (columns[middle].first_block <= block ? first : end) = middle;
    }
    return Tensor(columns[first]);
  }
};
static_assert(sizeof(Table) + 64 <= (CUDART_VERSION >= 12010 ? 32764 : 4096));

__host__ __device__ inline int aligned(int bytes) { return (bytes + 15) / 16 * 16; }

// What a row takes in shared memory: w, then d where the operation reads it.
__host__ __device__ inline int room_bytes(int width, int d_bytes) {
  return aligned(width * int(sizeof(float))) + aligned(width * d_bytes);
}

inline int blocks_of(const Column& c) {
  if (c.kind == Kind::kElements) return int((int64_t(c.rows) * c.width + kBlockElements - 1) / kBlockElements);
  return c.kind == Kind::kShortRows ? (c.rows + kWarps - 1) / kWarps : c.rows;
}

// Fewer elements a block come last, so that no long row is the last to begin.
inline bool comes_before(const Column& a, const Column& b) {
  return int64_t(a.width) * a.rows * blocks_of(b) > int64_t(b.width) * b.rows * blocks_of(a);
}

// Half of a multiprocessor's shared memory, so that one block loads while another computes.
inline cudaError_t shared_memory_of_block(int* bytes) {
  int device = 0, whole = 0, most = 0, reserved = 0;
  BITFAST_RETURN_IF_ERROR(cudaGetDevice(&device));
  BITFAST_RETURN_IF_ERROR(cudaDeviceGetAttribute(&whole, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  BITFAST_RETURN_IF_ERROR(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  BITFAST_RETURN_IF_ERROR(cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device));
  *bytes = std::min(most, whole / 2 - reserved);
  return cudaSuccess;
}

inline int d_bytes(const Weight& w) { return !w.d.data ? 0 : w.d.type == Type::kFloat32 ? 4 : 2; }

inline Column column(const Weight& weight, void* m, bool standardized, int shared_bytes) {
  Column c{};
  c.w = static_cast<float*>(weight.w);
  c.m = static_cast<float*>(m);
  c.average = static_cast<float*>(weight.average.data);
  c.d = weight.d.data;
  c.result = weight.result.data;
  c.d_type = weight.d.type;
  c.result_type = weight.result.type;
  c.eps = weight.eps;
  c.rows = int(weight.rows);
  c.width = int(weight.width);
  c.outer = 1;
  const int64_t outer = weight.outer, inner = weight.width / outer;
  if (outer > 1 && inner > 1) {
    c.outer = int(outer);
    c.m_turned = weight.m.turned;
    c.average_turned = weight.average.turned;
    c.d_turned = weight.d.turned;
    c.result_turned = weight.result.turned;
  }
  const int bytes = Block::kScratchBytes + room_bytes(c.width, d_bytes(weight));
  c.kind = !standardized           ? Kind::kElements
           : c.width <= kWarpWidth ? Kind::kShortRows
           : bytes <= shared_bytes ? Kind::kLongRows
                                   : Kind::kRowsInPlace;
  return c;
}

inline int shared_bytes_of(const Column& c, int d_bytes) {
  if (c.kind == Kind::kShortRows) return kWarps * room_bytes(c.width, d_bytes);
  return Block::kScratchBytes + (c.kind == Kind::kLongRows ? room_bytes(c.width, d_bytes) : 0);
}

}  // namespace bitfast::gpu

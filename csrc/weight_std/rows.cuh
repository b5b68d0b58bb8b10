// A row of a weight, shared by a team: brought to shared memory, its statistics, the projection of a gradient.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "weight_std/table.cuh"

namespace bitfast::gpu {

// Copies a row to shared memory, as many bytes at once as the addresses allow; there after arrived().
template <class Team, class T>
__device__ void fetch(const Team& team, T* to, const T* from, int width) {
  const int bytes = width * int(sizeof(T));
  const uintptr_t address = reinterpret_cast<uintptr_t>(from);
  if ((address | uintptr_t(bytes)) % 16 == 0) {
    constexpr int kTogether = 16 / sizeof(T);
    for (int i = team.rank() * kTogether; i < width; i += Team::kSize * kTogether)
      __pipeline_memcpy_async(to + i, from + i, 16);
  } else {
    for (int i = team.rank(); i < width; i += Team::kSize) to[i] = from[i];
  }
}

template <class Team>
__device__ void arrived(const Team& team) {
  __pipeline_commit();
  __pipeline_wait_prior(0);
  team.sync();
}

// Of one row: mean = centre + offset, the second being what the rounding of the first left.
struct Statistics {
  float centre, offset, rstd;

  __device__ float centred(float w) const { return (w - centre) - offset; }
};

// From the means of w - centre and of its square.
__device__ inline Statistics statistics_about(float centre, float first, float second, float eps) {
  const float var = second - first * first;
  return {centre, first, 1 / sqrtf((var < 0 ? 0 : var) + eps)};
}

// `sum`: this thread's part of the sum of w.
template <class Team>
__device__ Statistics statistics(const Team& team, float sum, const float* w, int width, float eps) {
  float total[1] = {sum};
  team.add(total);
  const float centre = total[0] / width;
  float sums[2] = {};
  for (int i = team.rank(); i < width; i += Team::kSize) {
    const float c = w[i] - centre;
    sums[0] += c;
    sums[1] += c * c;
  }
  team.add(sums);
  return statistics_about(centre, sums[0] / width, sums[1] / width, eps);
}

template <class Team>
__device__ Statistics statistics(const Team& team, const float* w, int width, float eps) {
  float sum = 0;
  for (int i = team.rank(); i < width; i += Team::kSize) sum += w[i];
  return statistics(team, sum, w, width, eps);
}

// g = ((d - mean) - centred(w) * slope) * rstd.
struct Projection {
  Statistics of_w;
  float mean, slope;

  __device__ float operator()(float d, float w) const {
    return ((d - mean) - of_w.centred(w) * slope) * of_w.rstd;
  }
};

// Goes along d, so that a warp reads neighbours of it; w, turned, is then read a small odd number apart.
template <class Team, class D>
__device__ Projection projection(const Team& team, const Tensor& c, const float* w, const D* d) {
  float totals[2] = {};
  for (int j = team.rank(); j < c.width; j += Team::kSize) {
    totals[0] += w[j];
    totals[1] += as_float(d[j]);
  }
  team.add(totals);
  const float centre = totals[0] / c.width, d_centre = totals[1] / c.width;
  float sums[4] = {};
#pragma unroll 2
  for (int j = team.rank(); j < c.width; j += Team::kSize) {
    const float v = w[c.in_d(j)] - centre, e = as_float(d[j]) - d_centre;
    sums[0] += v;
    sums[1] += v * v;
    sums[2] += e;
    sums[3] += v * e;
  }
  team.add(sums);
  for (float& sum : sums) sum /= c.width;
  const Statistics of_w = statistics_about(centre, sums[0], sums[1], c.eps);
  return {of_w, d_centre + sums[2], (sums[3] - sums[0] * sums[2]) * of_w.rstd * of_w.rstd};
}

// Writes w_hat in the order of the network.
template <class Team>
__device__ void write_w_hat(const Team& team, const Tensor& c, int64_t begin, const float* w, const Statistics& of_w) {
  with_type(c.result_type, [&](auto value) {
    using T = decltype(value);
    T* const out = static_cast<T*>(c.result) + begin;
    for (int j = team.rank(); j < c.width; j += Team::kSize)
      out[j] = stored<T>(of_w.centred(w[c.in_result(j)]) * of_w.rstd);
  });
}

// Calls op(team, first element of the row, w, d, where w is in shared memory or null) for the row of this team. Rows
// in shared memory are there.
template <class D, class Op>
__device__ void with_row(const Tensor& c, int block, char* shared, Op op) {
  const auto run = [&](const auto& team, int row, char* room) {
    const int64_t begin = int64_t(row) * c.width;
    const D* d = static_cast<const D*>(c.d) + begin;
    if (!room) return op(team, row, begin, c.w + begin, d, static_cast<float*>(nullptr));
    float* const w = reinterpret_cast<float*>(room);
    fetch(team, w, c.w + begin, c.width);
    if (c.d) {
      D* const copy = reinterpret_cast<D*>(room + aligned(c.width * int(sizeof(float))));
      fetch(team, copy, d, c.width);
      d = copy;
    }
    arrived(team);
    op(team, row, begin, w, d, w);
  };
  if (c.kind == Kind::kShortRows) {
    const int warp = int(threadIdx.x) / kWarp, row = block * kWarps + warp;
    if (row < c.rows) run(WarpTeam{}, row, shared + warp * room_bytes(c.width, c.d ? int(sizeof(D)) : 0));
  } else {
    const Block team{reinterpret_cast<float*>(shared)};
    run(team, block, c.kind == Kind::kLongRows ? shared + Block::kScratchBytes : nullptr);
  }
}

}  // namespace bitfast::gpu

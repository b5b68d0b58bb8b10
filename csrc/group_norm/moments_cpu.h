// Mean and variance of the groups of a slab, from sums about a shift.
#pragma once

#include <cmath>

#include "group_norm/slabs_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

// The shift that values are summed about is the mean of a sixteenth of them, and so within four standard deviations of
// the mean of all: the variance loses little where it is taken from the sums about the shift.
constexpr int64_t kShiftShare = 16;

template <class T>
struct MomentsScratch {
  explicit MomentsScratch(int64_t width)
      : totals(new double[2 * width]),
        values(new T[4 * width]),
        total_first(totals.get()),
        total_second(totals.get() + width),
        first(values.get()),
        second(values.get() + width),
        mean(values.get() + 2 * width),
        scale(values.get() + 3 * width) {}

  const std::unique_ptr<double[]> totals;
  const std::unique_ptr<T[]> values;
  double *const total_first, *const total_second;
  T *const first, *const second, *const mean, *const scale;
};

// Calls use(group of the slab, shift, its sums about the shift). sums(begin, end, whether this is the last sweep) sums
// the columns of rows [begin, end) about scratch.mean into scratch.first and second.
template <class T, class ColumnSums, class Use>
void moments(int64_t pixels, int64_t width, int64_t per_group, const MomentsScratch<T>& scratch, ColumnSums sums,
             Use use) {
  const int64_t shift_rows = (pixels + kShiftShare - 1) / kShiftShare;
  std::fill_n(scratch.mean, width, T(0));
  sums(0, shift_rows, std::false_type{});
  for (int64_t c = 0; c < width; c += per_group) {
    const Sums of_group = total(scratch.first + c, scratch.second + c, per_group);
    std::fill_n(scratch.mean + c, per_group, T(of_group.first / double(shift_rows * per_group)));
  }
  std::fill_n(scratch.total_first, width, 0.0);
  std::fill_n(scratch.total_second, width, 0.0);
  for (int64_t begin = 0; begin < pixels; begin += kBlockRows) {
    sums(begin, std::min(begin + kBlockRows, pixels), std::true_type{});
    add_to(scratch.total_first, scratch.first, width);
    add_to(scratch.total_second, scratch.second, width);
  }
  for (int64_t g = 0, c = 0; c < width; ++g, c += per_group)
    use(g, scratch.mean[c], total(scratch.total_first + c, scratch.total_second + c, per_group));
}

template <class T>
void finish_moments(T shift, const Sums& sums, int64_t count, double eps, T& mean, T& rstd) {
  const double offset = sums.first / double(count);
  mean = T(shift + offset);
  rstd = T(1 / std::sqrt(std::max(sums.second / double(count) - offset * offset, 0.0) + eps));
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

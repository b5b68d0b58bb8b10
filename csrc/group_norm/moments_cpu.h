// Mean and variance of the groups of a slab, from sums about a shift.
#pragma once

#include <cmath>

#include "group_norm/slabs_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

// The shift that values are summed about is the mean of a sixteenth of them, and so within four standard deviations of
// the mean of all: the variance loses little where it is taken from the sums about the shift.
constexpr int64_t kShiftShare = 16;

// Calls use(group of the slab, shift, its sums about the shift). sums(begin, end, whether this is the last sweep) sums
// the columns of rows [begin, end) about scratch.mean into scratch.first and second.
template <class T, class ColumnSums, class Use>
void moments(int64_t pixels, int64_t width, int64_t per_group, const Scratch<T>& scratch, ColumnSums sums,
             Use use) {
  const int64_t shift_rows = (pixels + kShiftShare - 1) / kShiftShare;
  std::fill_n(scratch.mean, width, T(0));
  sums(0, shift_rows, std::false_type{});
  for (int64_t c = 0; c < width; c += per_group) {
    const Sums of_group = total(scratch.first + c, scratch.second + c, per_group);
    std::fill_n(scratch.mean + c, per_group, T(of_group.first / double(shift_rows * per_group)));
  }
  block_sums(
      pixels, width, scratch, [&](int64_t begin, int64_t end) { sums(begin, end, std::true_type{}); },
      [&](const auto* first, const auto* second) {
        for (int64_t g = 0, c = 0; c < width; ++g, c += per_group)
          use(g, scratch.mean[c], total(first + c, second + c, per_group));
      });
}

template <class T>
void finish_moments(T shift, const Sums& sums, int64_t count, double eps, T& mean, T& rstd) {
  const double offset = sums.first / double(count);
  mean = T(shift + offset);
  rstd = T(1 / std::sqrt(std::max(sums.second / double(count) - offset * offset, 0.0) + eps));
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

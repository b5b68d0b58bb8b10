#include "conv/norm_rows.h"

#include <algorithm>

namespace bitfast::BITFAST_ISA {
namespace {

// kPerGroup: channels of a group, known where they are too few for a loop; 0 otherwise.
template <int kPerGroup>
void rows_of_image(const NormRows& p, int64_t image) {
  const int64_t per_group = kPerGroup ? kPerGroup : p.channels / p.groups;
  const float *mean_of = p.mean + image * p.groups, *rstd_of = p.rstd + image * p.groups, *weight = p.weight;
  float *mean = p.rows + image * 3 * p.channels, *scale = mean + p.channels;
  std::copy_n(p.bias, p.channels, scale + p.channels);
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t i = 0; i < per_group; ++i) {
      *mean++ = mean_of[g];
      *scale++ = rstd_of[g] * *weight++;
    }
}

}  // namespace

void norm_rows(const NormRows& p, const Parallel& parallel) {
  const auto rows = [&] {
    switch (p.channels / p.groups) {
      case 1: return rows_of_image<1>;
      case 2: return rows_of_image<2>;
      case 4: return rows_of_image<4>;
      case 8: return rows_of_image<8>;
      default: return rows_of_image<0>;
    }
  }();
  for_each_task(parallel, p.n, (16 << 10) / p.channels + 1, [&](int64_t image) { rows(p, image); });
}

}  // namespace bitfast::BITFAST_ISA

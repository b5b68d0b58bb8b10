#include "conv/norm_rows.h"

#include <algorithm>

namespace bitfast::BITFAST_ISA {

void norm_rows(const NormRows& p, const Parallel& parallel) {
  const int64_t per_group = p.channels / p.groups;
  for_each_task(parallel, p.n, (16 << 10) / p.channels + 1, [&](int64_t image) {
    float* const mean = p.rows + image * 3 * p.channels;
    float* const scale = mean + p.channels;
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t group = image * p.groups + g, first = g * per_group;
      std::fill_n(mean + first, per_group, p.mean[group]);
      for (int64_t c = first; c < first + per_group; ++c) scale[c] = p.rstd[group] * p.weight[c];
    }
    std::copy_n(p.bias, p.channels, scale + p.channels);
  });
}

}  // namespace bitfast::BITFAST_ISA

// torch's own threads as a bitfast::Parallel.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "common/parallel.h"

namespace bitfast {

inline Parallel torch_threads() {
  auto run = [](int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
  };
  return {run, torch::stable::get_num_threads()};
}

}  // namespace bitfast

// Parallel loops without knowing whose threads they run on.
#pragma once

#include <cstdint>

namespace bitfast {

struct Parallel {
  // Calls body(context, begin, end) on disjoint ranges that cover [0, count), of at least `grain` where possible.
  void (*run)(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);
  int64_t threads;
};

// Calls range(begin, end) on disjoint ranges that cover [0, count), in any order and on any thread.
template <class Range>
void for_each_range(const Parallel& parallel, int64_t count, int64_t grain, Range range) {
  auto body = [](void* context, int64_t begin, int64_t end) { (*static_cast<Range*>(context))(begin, end); };
  parallel.run(count, grain, body, &range);
}

// Calls task(i) for every i of [0, count), in any order and on any thread.
template <class Task>
void for_each_task(const Parallel& parallel, int64_t count, int64_t grain, Task task) {
  for_each_range(parallel, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

}  // namespace bitfast

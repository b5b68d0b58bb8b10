// Working memory of the calling thread.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

// At least so many floats, aligned to a cache line; kept for the next call of this thread, and grows.
float* scratch(int64_t floats) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  static thread_local std::unique_ptr<float, Free> memory;
  static thread_local int64_t size = 0;
  if (size < floats) {
    memory.reset();
    size = 0;
    const int64_t wanted = (floats + 1023) / 1024 * 1024;
    memory.reset(static_cast<float*>(std::aligned_alloc(64, size_t(wanted) * sizeof(float))));
    if (!memory) throw std::bad_alloc();
    size = wanted;
  }
  return memory.get();
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace bitfast::BITFAST_ISA

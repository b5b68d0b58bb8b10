// y = maximum over 3x3 windows, two apart, of x inside a frame of zeros one wide. Zeros take part in the maximum.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/storage.h"

namespace bitfast {

// Images are dense, (n, height, width, channels) if channels_last, else (n, channels, height, width); y, dy and index
// likewise, of (height + 1) / 2 by (width + 1) / 2 pixels. index: 3 * row + column of the winner in its window.
struct StemPoolForward {
  const void* x;
  void* y;
  uint8_t* index;  // null: not written
  int64_t n, channels, height, width;
  StorageType type;
  bool channels_last;
};

// dx = sum of dy over the windows that x won.
struct StemPoolBackward {
  const void* dy;
  const uint8_t* index;
  void* dx;
  int64_t n, channels, height, width;
  StorageType type;
  bool channels_last;
};

BITFAST_DECLARE_KERNEL(void stem_pool_forward(const StemPoolForward&, const Parallel&))
BITFAST_DECLARE_KERNEL(void stem_pool_backward(const StemPoolBackward&, const Parallel&))

}  // namespace bitfast

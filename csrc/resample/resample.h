// Windows of resized images: y = ((box of x, resized, rounded to 0 .. 255)[window] - mean) / std, mirrored if asked.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace bitfast {

enum class Filter : int64_t { kNearest, kBilinear, kBicubic, kLanczos };

enum class PixelType { kUInt8, kFloat32, kBFloat16 };

// The box and the window in pixels; the box lies in the image, the window in the box's resized image. Beyond the box
// its edge is repeated. In the order in which a row of the windows tensor holds them.
struct Window {
  int64_t top, left, box_height, box_width;  // of the image
  int64_t height, width;                     // that the box is resized to
  int64_t y, x;                              // of the window in it
  int64_t flip;
};

struct Picture {
  const uint8_t* pixels;  // (height, width, 3), dense
  int64_t height, width;
};

// y: (n, out_height, out_width, 3), dense. Bytes are neither shifted nor scaled.
struct Resample {
  const Picture* pictures;
  const Window* windows;
  void* y;
  int64_t n, out_height, out_width;
  Filter filter;
  PixelType type;
  float mean, scale;
};

BITFAST_DECLARE_KERNEL(void resample(const Resample&, const Parallel&))

}  // namespace bitfast

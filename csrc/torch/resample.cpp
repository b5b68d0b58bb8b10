// torch.ops.bitfast_native.resample: tensors to Resample. Callers are bitfast/ops; what is checked here is what memory
// safety needs.
#include "resample/resample.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "torch/parallel.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kFields = sizeof(bitfast::Window) / sizeof(int64_t);

bool is_pixels(const Tensor& t) { return t.is_cpu() && t.is_contiguous() && t.size(t.dim() - 1) == 3; }

bool inside(int64_t start, int64_t length, int64_t end) {
  return start >= 0 && length >= 1 && start <= end && length <= end - start;
}

bitfast::PixelType pixel_type(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Byte: return bitfast::PixelType::kUInt8;
    case ScalarType::Float: return bitfast::PixelType::kFloat32;
    case ScalarType::BFloat16: return bitfast::PixelType::kBFloat16;
    default: STD_TORCH_CHECK(false, "resample: out must be uint8, float32 or bfloat16");
  }
}

void resample(std::vector<Tensor> images, Tensor windows, Tensor out, int64_t filter, double mean, double std) {
  const int64_t n = int64_t(images.size());
  STD_TORCH_CHECK(out.dim() == 4 && out.size(0) == n && is_pixels(out), "resample: out must be dense (N, H, W, 3)");
  STD_TORCH_CHECK(windows.is_cpu() && windows.is_contiguous() && windows.scalar_type() == ScalarType::Long &&
                      windows.dim() == 2 && windows.size(0) == n && windows.size(1) == kFields,
                  "resample: windows must be int64, one row per image");
  STD_TORCH_CHECK(filter >= 0 && filter <= int64_t(bitfast::Filter::kLanczos), "resample: no such filter");
  if (out.numel() == 0) return;
  const auto* const window = static_cast<const bitfast::Window*>(windows.const_data_ptr());
  std::vector<bitfast::Picture> pictures;
  for (int64_t i = 0; i < n; ++i) {
    const Tensor& image = images[i];
    STD_TORCH_CHECK(image.dim() == 3 && image.scalar_type() == ScalarType::Byte && is_pixels(image),
                    "resample: images must be dense uint8 (H, W, 3)");
    const bitfast::Window& w = window[i];
    STD_TORCH_CHECK(inside(w.top, w.box_height, image.size(0)) && inside(w.left, w.box_width, image.size(1)) &&
                        inside(w.y, out.size(1), w.height) && inside(w.x, out.size(2), w.width),
                    "resample: a window is not inside its image");
    pictures.push_back({static_cast<const uint8_t*>(image.const_data_ptr()), image.size(0), image.size(1)});
  }
  bitfast::Resample p{};
  p.pictures = pictures.data();
  p.windows = window;
  p.y = out.mutable_data_ptr();
  p.n = n;
  p.out_height = out.size(1);
  p.out_width = out.size(2);
  p.filter = bitfast::Filter(filter);
  p.type = pixel_type(out);
  p.mean = float(mean);
  p.scale = float(1 / std);
  BITFAST_KERNEL(resample)(p, bitfast::torch_threads());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_native, m) {
  m.def(
      "resample(Tensor[] images, Tensor windows, Tensor(a!) out, int filter, float mean, float std) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bitfast_native, CPU, m) { m.impl("resample", TORCH_BOX(&resample)); }

// torch.ops.bitfast_native.{stem_pool, stem_pool_with_index, stem_pool_backward}: tensors to StemPoolForward, -Backward.
// Callers are bitfast/ops; what is checked here is what memory safety needs.
#include "stem_pool/stem_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "torch/parallel.h"
#include "torch/tensors.h"

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is_dense(const Tensor& x, bool channels_last) {
  return channels_last ? bitfast::is_channels_last(x) : x.is_contiguous();
}

void check(const Tensor& x, bool channels_last) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && (x.numel() == 0 || is_dense(x, channels_last)),
                  "stem_pool: tensors must be 4-D and dense in the layout that is named");
}

Tensor empty_image(const Tensor& like, int64_t height, int64_t width, ScalarType type, bool channels_last) {
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty({like.size(0), like.size(1), height, width}, type, std::nullopt, like.device(),
                              std::nullopt, format);
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, bool channels_last, bool with_index) {
  check(x, channels_last);
  bitfast::StemPoolForward p{};
  p.n = x.size(0);
  p.channels = x.size(1);
  p.height = x.size(2);
  p.width = x.size(3);
  p.type = bitfast::storage_type(x);
  p.channels_last = channels_last;
  Tensor y = empty_image(x, (p.height + 1) / 2, (p.width + 1) / 2, x.scalar_type(), channels_last), index;
  if (with_index) index = empty_image(x, y.size(2), y.size(3), ScalarType::Byte, channels_last);
  p.x = x.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.index = with_index ? static_cast<uint8_t*>(index.mutable_data_ptr()) : nullptr;
  if (x.numel() > 0) {
    BITFAST_KERNEL(stem_pool_forward)(p, bitfast::torch_threads());
  }
  return {y, index};
}

Tensor stem_pool(Tensor x, bool channels_last) { return std::get<0>(forward(x, channels_last, false)); }

std::tuple<Tensor, Tensor> stem_pool_with_index(Tensor x, bool channels_last) {
  return forward(x, channels_last, true);
}

Tensor stem_pool_backward(Tensor dy, Tensor index, int64_t height, int64_t width, bool channels_last) {
  check(dy, channels_last);
  check(index, channels_last);
  bool alike = index.scalar_type() == ScalarType::Byte;
  for (int dim = 0; dim < 4; ++dim) alike = alike && index.size(dim) == dy.size(dim);
  STD_TORCH_CHECK(alike, "stem_pool: index must be uint8, in the shape of dy");
  STD_TORCH_CHECK(height > 0 && width > 0 && dy.size(2) == (height + 1) / 2 && dy.size(3) == (width + 1) / 2,
                  "stem_pool: dy is not half of height and width");
  Tensor dx = empty_image(dy, height, width, dy.scalar_type(), channels_last);
  bitfast::StemPoolBackward p{};
  p.dy = dy.const_data_ptr();
  p.index = static_cast<const uint8_t*>(index.const_data_ptr());
  p.dx = dx.mutable_data_ptr();
  p.n = dy.size(0);
  p.channels = dy.size(1);
  p.height = height;
  p.width = width;
  p.type = bitfast::storage_type(dy);
  p.channels_last = channels_last;
  if (dx.numel() > 0) {
    BITFAST_KERNEL(stem_pool_backward)(p, bitfast::torch_threads());
  }
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_native, m) {
  m.def("stem_pool(Tensor x, bool channels_last) -> Tensor");
  m.def("stem_pool_with_index(Tensor x, bool channels_last) -> (Tensor y, Tensor index)");
  m.def("stem_pool_backward(Tensor dy, Tensor index, int height, int width, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bitfast_native, CPU, m) {
  m.impl("stem_pool", TORCH_BOX(&stem_pool));
  m.impl("stem_pool_with_index", TORCH_BOX(&stem_pool_with_index));
  m.impl("stem_pool_backward", TORCH_BOX(&stem_pool_backward));
}

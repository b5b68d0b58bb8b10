// 3x3 convolutions on the CPU by F(4x4, 3x3): an image is cut into tiles of 4x4 outputs, each is transformed into 36
// positions, a matrix product per position over the channels does the work of nine, a quarter of the multiplications.
#include "conv/winograd.h"

#include "conv/gemm_cpu.h"
#include "conv/pixels_cpu.h"
#include "conv/scratch_cpu.h"
#include "conv/transforms_cpu.h"
#include "conv/transpose_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

using V = Vector<float>;
constexpr int kL = kLanes<float>;
constexpr int64_t kChunk = 64;                      // output channels that pass through the cache together
constexpr int64_t kBlockFloats = 150 << 10;         // of transformed tiles of a task: about half a second-level cache
constexpr int64_t kGradientFloats = 4 << 20;        // of transformed images at a time in the weight gradient
constexpr int64_t kPad = 16;                        // between positions, so that they do not share a cache set
constexpr int64_t kGradientRows = 64;               // tiles multiplied at a time in the weight gradient
constexpr int64_t kGradientColumns = 64;            // channels of either side in a task of the weight gradient

// The tiles of a batch of images, numbered row by row and image by image.
struct Tiles {
  int64_t height, width, rows, columns;

  explicit Tiles(const WinogradShape& s)
      : height(s.height), width(s.width), rows(ceil_div(s.height, kOut)), columns(ceil_div(s.width, kOut)) {}

  int64_t per_image() const { return rows * columns; }

  // f(i, j, offset in pixels, or -1 outside) for the kSize x kSize pixels from (kOut * tile - kBefore) on.
  template <int kSize, int kBefore, class F>
  void for_each_pixel(int64_t tile, F f) const {
    const int64_t image = tile / per_image(), within = tile % per_image();
    const int64_t top = within / columns * kOut - kBefore, left = within % columns * kOut - kBefore;
    for (int i = 0; i < kSize; ++i)
      for (int j = 0; j < kSize; ++j) {
        const int64_t row = top + i, column = left + j;
        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
        f(i, j, inside ? (image * height + row) * width + column : -1);
      }
  }
};

// Transformed pixels of tiles [begin, end): out[position][channel / width][tile - begin][channel % width].
template <bool kNorm, int kSize, int kBefore, void (*kTransform)(const V (&)[kSize], V (&)[kIn])>
void transform_tiles(const Tiles& tiles, int64_t begin, int64_t end, const float* x, const Input& input,
                     const float* zeros, float* out, int64_t position_stride, int64_t rows, int64_t width) {
  using Mask [[gnu::vector_size(sizeof(V))]] = int32_t;
  const int64_t channels = input.channels;
  for (int64_t tile = begin; tile < end; ++tile) {
    const Input own = input.of_image(tile / tiles.per_image());
    const float* pixels[kSize][kSize];
    int32_t inside[kSize][kSize];  // all bits, or none
    tiles.for_each_pixel<kSize, kBefore>(tile, [&](int i, int j, int64_t offset) {
      pixels[i][j] = offset < 0 ? zeros : x + offset * channels;
      inside[i][j] = offset < 0 ? 0 : -1;
    });
    for (int64_t c = 0; c < channels; c += kL) {
      float* const to = out + (c / width * rows + tile - begin) * width + c % width;
      transform_plane<V, kSize, kIn, kTransform>(
          [&](int i, int j) {
            const V v = read<kNorm>(own, pixels[i][j] + (inside[i][j] & c), c);
            return kNorm ? V(Mask(v) & inside[i][j]) : v;
          },
          [&](int i, int j, V v) { store<V>(to + (i * kIn + j) * position_stride, v); });
    }
  }
}

// The matrix products of tiles [begin, end) with every chunk of output channels, and the way back to pixels.
void convolve_tiles(const WinogradConv& p, const Tiles& tiles, int64_t begin, int64_t end) {
  const int64_t in = p.shape.in, out = p.shape.out, rows = end - begin;
  const int64_t input_stride = rows * in + kPad, product_stride = rows * kChunk + kPad;
  float* const zeros = scratch(kL + kPositions * (input_stride + product_stride) + 16);
  float* const inputs = zeros + 16;
  float* const products = inputs + kPositions * input_stride;
  store<V>(zeros, V{});
  const Input input{p.norm, in};
  const auto transform = p.norm ? transform_tiles<true, kIn, 1, transform_input<V>>
                                : transform_tiles<false, kIn, 1, transform_input<V>>;
  transform(tiles, begin, end, p.x, input, zeros, inputs, input_stride, rows, kDepth);
  for (int64_t chunk = 0; chunk < out; chunk += kChunk) {
    const int64_t width = std::min(kChunk, out - chunk);
    for (int position = 0; position < kPositions; ++position)
      for (int64_t column = 0; column < width; column += kPanel)
        gemm_panel<Order::kRowMajor>(rows, inputs + position * input_stride, rows * kDepth,
                                     p.filter + ((chunk + column) * kPositions + position * kPanel) * in, in,
                                     products + position * product_stride + column, kChunk);
    for (int64_t tile = begin; tile < end; ++tile) {
      float* pixels[kOut][kOut];
      tiles.for_each_pixel<kOut, 0>(tile, [&](int i, int j, int64_t offset) {
        pixels[i][j] = offset < 0 ? nullptr : p.y + offset * out + chunk;
      });
      for (int64_t column = 0; column < width; column += kL) {
        const float* const from = products + (tile - begin) * kChunk + column;
        transform_plane<V, kIn, kOut, transform_output<V>>(
            [&](int i, int j) { return load<V>(from + (i * kIn + j) * product_stride); },
            [&](int i, int j, V v) {
              if (pixels[i][j]) store<V>(pixels[i][j] + column, v);
            });
      }
    }
  }
}

}  // namespace

void winograd_conv(const WinogradConv& p, const Parallel& parallel) {
  const Tiles tiles(p.shape);
  const int64_t count = p.shape.n * tiles.per_image();
  const int64_t fitting = kBlockFloats / (kPositions * (p.shape.in + kChunk));
  const int64_t most = std::max<int64_t>(fitting / kTileRows, 1) * kTileRows;
  const int64_t blocks = std::min(ceil_div(ceil_div(count, most), parallel.threads) * parallel.threads, count);
  for_each_task(parallel, blocks, 1, [&](int64_t block) {
    convolve_tiles(p, tiles, block * count / blocks, (block + 1) * count / blocks);
  });
}

// filter[panel of outputs][position][input][output in the panel]; flipped: of inputs, [position][output][input].
void winograd_filter(const WinogradFilter& p, const Parallel& parallel) {
  const int64_t columns = p.flipped ? p.in : p.out, depth = p.flipped ? p.out : p.in;
  const int64_t row = kTaps * kTaps * p.in;
  auto weights = [&](int64_t output, int64_t input) {
    const float* const w = p.weight + output * row + input;
    return [w, &p](int i, int j) {
      const int tap = i * kTaps + j;
      return load<V>(w + (p.flipped ? kTaps * kTaps - 1 - tap : tap) * p.in);
    };
  };
  for_each_task(parallel, columns / kPanel, 1, [&](int64_t index) {
    const int64_t first = index * kPanel;
    float* const panel = p.filter + first * kPositions * depth;
    for (int64_t d = 0; d < depth; d += p.flipped ? 1 : kL)
      for (int64_t c = 0; c < kPanel; c += kL) {
        auto at = [&](int position, int64_t step) { return panel + ((position * depth + d + step) * kPanel + c); };
        if (p.flipped) {
          transform_plane<V, kTaps, kIn, transform_filter<V>>(
              weights(d, first + c), [&](int i, int j, V v) { store<V>(at(i * kIn + j, 0), v); });
        } else {
          V square[kPositions][kL];
          for (int o = 0; o < kL; ++o)
            transform_plane<V, kTaps, kIn, transform_filter<V>>(
                weights(first + c + o, d), [&](int i, int j, V v) { square[i * kIn + j][o] = v; });
          for (int position = 0; position < kPositions; ++position) {
            transpose(square[position]);
            for (int step = 0; step < kL; ++step) store<V>(at(position, step), square[position][step]);
          }
        }
      }
  });
}

// For as many images at a time as fit: their tiles are transformed, a product over the tiles is taken per position, and
// the sums go back to taps at the end.
void winograd_weight_gradient(const WinogradWeightGradient& p, const Parallel& parallel) {
  const Tiles tiles(p.shape);
  const int64_t in = p.shape.in, out = p.shape.out, per_image = tiles.per_image();
  const int64_t images = std::clamp<int64_t>(kGradientFloats / (kPositions * (in + out) * per_image), 1, p.shape.n);
  const int64_t most = images * per_image, input_stride = most * in + kPad, gradient_stride = most * out + kPad;
  const int64_t sums_stride = in * out + kPad;
  float* const zeros = scratch(16 + kPositions * (input_stride + gradient_stride + sums_stride));
  float* const inputs = zeros + 16;
  float* const gradients = inputs + kPositions * input_stride;
  float* const sums = gradients + kPositions * gradient_stride;
  store<V>(zeros, V{});
  const int64_t in_blocks = ceil_div(in, kGradientColumns), out_blocks = ceil_div(out, kGradientColumns);

  for (int64_t image = 0; image < p.shape.n; image += images) {
    const int64_t count = std::min(images, p.shape.n - image) * per_image;
    const float* const x = p.x + image * p.shape.height * p.shape.width * in;
    const float* const dy = p.dy + image * p.shape.height * p.shape.width * out;
    const int64_t blocks = ceil_div(count, 8);
    for_each_task(parallel, blocks, 1, [&](int64_t block) {
      const int64_t begin = block * count / blocks, end = (block + 1) * count / blocks;
      const auto transform = p.norm ? transform_tiles<true, kIn, 1, transform_input<V>>
                                    : transform_tiles<false, kIn, 1, transform_input<V>>;
      transform(tiles, begin, end, x, Input{p.norm, in}.of_image(image), zeros, inputs + begin * kDepth, input_stride,
                count, kDepth);
      transform_tiles<false, kOut, 0, transform_output_gradient<V>>(
          tiles, begin, end, dy, {nullptr, out}, zeros, gradients + begin * kPanel, gradient_stride, count, kPanel);
    });
    for_each_task(parallel, kPositions * in_blocks * out_blocks, 1, [&](int64_t task) {
      const int64_t position = task / (in_blocks * out_blocks), within = task % (in_blocks * out_blocks);
      const int64_t first_in = within / out_blocks * kGradientColumns;
      const int64_t end_in = std::min(first_in + kGradientColumns, in);
      const int64_t first_out = within % out_blocks * kGradientColumns;
      const int64_t end_out = std::min(first_out + kGradientColumns, out);
      for (int64_t row = 0; row < count; row += kGradientRows) {
        const int64_t rows = std::min(kGradientRows, count - row);
        for (int64_t k = first_out; k < end_out; k += kPanel)
          for (int64_t c = first_in; c < end_in; c += kDepth)
            gemm_panel<Order::kStepMajor>(kDepth, inputs + position * input_stride + c * count + row * kDepth,
                                          kDepth * kDepth,
                                          gradients + position * gradient_stride + k * count + row * kPanel, rows,
                                          sums + position * sums_stride + c * out + k, out,
                                          image || row ? Write::kAdd : Write::kSet);
      }
    });
  }
  const int64_t row = kTaps * kTaps * in;
  for_each_task(parallel, out / kL, 1, [&](int64_t task) {
    const int64_t k = task * kL;
    for (int64_t c = 0; c < in; c += kL) {
      V taps[kTaps * kTaps][kL];
      for (int i = 0; i < kL; ++i)
        transform_plane<V, kIn, kTaps, transform_filter_gradient<V>>(
            [&](int a, int b) { return load<V>(sums + (a * kIn + b) * sums_stride + (c + i) * out + k); },
            [&](int a, int b, V v) { taps[a * kTaps + b][i] = v; });
      for (int tap = 0; tap < kTaps * kTaps; ++tap) {
        transpose(taps[tap]);
        for (int i = 0; i < kL; ++i) store<V>(p.dw + (k + i) * row + tap * in + c, taps[tap][i]);
      }
    }
  });
}

}  // namespace bitfast::BITFAST_ISA

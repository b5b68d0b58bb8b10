// Convolutions on the CPU as matrix products. Forward and input gradient: rows of output pixels times panels of
// weights, the taps of a few rows gathered into the cache. Weight gradient: a product over the pixels for every tap.
// What only padding would be multiplied with is left out: in an image of 2x2, five of nine taps of every pixel.
#include "conv/implicit_gemm.h"

#include "conv/gemm_cpu.h"
#include "conv/pixels_cpu.h"
#include "conv/scratch_cpu.h"
#include "conv/transpose_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

using V = Vector<float>;
constexpr int kL = kLanes<float>;
constexpr int64_t kBlockFloats = 100 << 10;         // gathered by a task
constexpr int64_t kStreamFloats = 2 << 20;          // results of this size go past the caches
constexpr int64_t kBlockRows = 96;                  // at most
constexpr int64_t kSteps = 256;                     // of the reduction for which a panel stays in the first-level cache
constexpr int64_t kGradientPixels = Pixels::kMost;  // multiplied at a time in the weight gradient
constexpr int64_t kGradientColumns = 128;           // channels of either side in a task of the weight gradient
constexpr int64_t kGradientTasks = 16;              // below this many, the pixels are split too
constexpr int64_t kFewPositions = 16;               // up to which rows of one position in their images stand together
constexpr int kMostTaps = 9;
static_assert(kBlockRows <= Pixels::kMost && 2 * kTileRows <= kBlockRows);

// One product: y at (row * out_stride + first_row, ...) of a grid of rows and columns = sum over taps of
// x at (row * in_stride + tap's row, ...) * panels of that tap.
struct Gather {
  int64_t n, in_height, in_width, in, out_height, out_width, out;
  int64_t grid_rows, grid_columns, in_stride, out_stride, first_row, first_column;
  int taps;
  int64_t tap_row[kMostTaps], tap_column[kMostTaps];

  int64_t steps() const { return taps * in; }
  int64_t positions() const { return grid_rows * grid_columns; }
  int64_t rows() const { return n * positions(); }

  // Whether all images' rows of a position follow each other, not all positions of an image: they see the same taps.
  bool by_position() const { return taps > 1 && positions() <= kFewPositions; }
};

// For rows [begin, end) of the grid: f(row, image, grid row, grid column).
template <class F>
void for_each_row(const Gather& g, int64_t begin, int64_t end, F f) {
  const bool by_position = g.by_position();
  const int64_t position = by_position ? begin / g.n : begin % g.positions();
  int64_t image = by_position ? begin % g.n : begin / g.positions();
  int64_t row = position / g.grid_columns, column = position % g.grid_columns;
  for (int64_t r = begin; r < end; ++r) {
    f(r - begin, image, row, column);
    if (by_position) {
      if (++image < g.n) continue;
      image = 0;
    }
    if (++column < g.grid_columns) continue;
    column = 0;
    if (++row < g.grid_rows) continue;
    row = 0;
    ++image;
  }
}

// Which steps of a reduction are taken, in order: they stand together on the left side, apart on the right.
struct Runs {
  int64_t steps = 0;
  int count = 0;
  int64_t first[kMostTaps], size[kMostTaps];

  void add(int64_t step, int64_t more) {
    if (count == 0 || first[count - 1] + size[count - 1] != step) {
      first[count] = step;
      size[count++] = 0;
    }
    size[count - 1] += more;
    steps += more;
  }

  // f(first step, how many are taken before it, how many are from it on)
  template <class F>
  void for_each(F f) const {
    for (int64_t run = 0, before = 0; run < count; before += size[run++]) f(first[run], before, size[run]);
  }
};

// The pixels that rows [begin, end) see through a tap.
Pixels pixels_of(const Gather& g, int tap, const float* x, int64_t begin, int64_t end) {
  Pixels pixels;
  for_each_row(g, begin, end, [&](int64_t, int64_t image, int64_t row, int64_t column) {
    const int64_t i = row * g.in_stride + g.tap_row[tap], j = column * g.in_stride + g.tap_column[tap];
    const bool inside = i >= 0 && i < g.in_height && j >= 0 && j < g.in_width;
    pixels.add(inside ? x + ((image * g.in_height + i) * g.in_width + j) * g.in : nullptr, image);
  });
  return pixels;
}

// The pixels of y that rows [begin, end) are.
Pixels results_of(const Gather& g, const float* y, int64_t begin, int64_t end) {
  Pixels pixels;
  for_each_row(g, begin, end, [&](int64_t, int64_t image, int64_t row, int64_t column) {
    const int64_t i = row * g.out_stride + g.first_row, j = column * g.out_stride + g.first_column;
    pixels.add(y + ((image * g.out_height + i) * g.out_width + j) * g.out, image);
  });
  return pixels;
}

void multiply(const Gather& g, const float* x, const Input& input, const float* panels, float* y, bool adds,
              const Parallel& parallel) {
  const int64_t rows = g.rows(), steps = g.steps();
  const bool dense = g.out_stride == 1 && !g.by_position(), pixelwise = dense && g.taps == 1 && g.in_stride == 1;
  const bool streams =
      !adds && g.n * g.out_height * g.out_width * g.out >= kStreamFloats && uintptr_t(y) % sizeof(V) == 0;
  const int64_t fitting = std::clamp<int64_t>(kBlockFloats / std::max<int64_t>(steps, 1) / kTileRows * kTileRows,
                                              2 * kTileRows, kBlockRows);
  const int64_t blocks = ceil_div(rows, fitting);
  const int64_t all_panels = g.out / kPanel;
  // Few rows: the panels are split too, so that every thread reads its own.
  const int64_t splits = blocks < 2 * parallel.threads ? std::min(parallel.threads, all_panels) : 1;
  for_each_task(parallel, blocks * splits, 1, [&](int64_t task) {
    const int64_t block = task / splits, split = task % splits;
    const int64_t begin = block * rows / blocks, end = (block + 1) * rows / blocks, count = end - begin;
    float* const products = scratch(count * (steps + kPanel));
    float* const gathered = products + count * kPanel;
    Runs seen;
    for (int tap = 0; tap < g.taps; ++tap) {
      const Pixels pixels = pixels_of(g, tap, x, begin, end);
      if (!pixels.any()) continue;
      float* const to = gathered + count * seen.steps;
      input.norm ? gather<true, kDepth>(pixels, input, 0, g.in, to) : gather<false, kDepth>(pixels, input, 0, g.in, to);
      seen.add(tap * g.in, g.in);
    }
    const Pixels next = pixels_of(g, 0, x, end, pixelwise ? std::min(end + count, rows) : end);
    const int64_t first_panel = split * all_panels / splits, last_panel = (split + 1) * all_panels / splits;
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const float* const b = panels + panel * steps * kPanel;
      if (pixelwise) fetch(next, 0, g.in, panel - first_panel, last_panel - first_panel);
      float* const in_place = y + begin * g.out + panel * kPanel;
      if (dense && steps <= kSteps && seen.steps == steps) {
        gemm_panel<Order::kRowMajor>(count, gathered, count * kDepth, b, steps, in_place, g.out,
                                     adds      ? Write::kAdd
                                     : streams ? Write::kStream
                                               : Write::kSet);
        continue;
      }
      if (seen.steps == 0) std::fill_n(products, count * kPanel, 0.f);
      seen.for_each([&](int64_t first, int64_t before, int64_t size) {
        for (int64_t step = 0; step < size; step += kSteps)
          gemm_panel<Order::kRowMajor>(count, gathered + (before + step) * count, count * kDepth,
                                       b + (first + step) * kPanel, std::min(kSteps, size - step), products, kPanel,
                                       before + step ? Write::kAdd : Write::kSet);
      });
      for_each_row(g, begin, end, [&](int64_t r, int64_t image, int64_t row, int64_t column) {
        const int64_t i = row * g.out_stride + g.first_row, j = column * g.out_stride + g.first_column;
        float* const to = y + ((image * g.out_height + i) * g.out_width + j) * g.out + panel * kPanel;
        for (int c = 0; c < kPanel; c += kL) {
          V v = load<V>(products + r * kPanel + c);
          if (adds) v += load<V>(to + c);
          streams ? stream<V>(to + c, v) : store<V>(to + c, v);
        }
      });
    }
    if (streams) stream_fence();
  });
}

Gather forward_gather(const ConvShape& s) {
  Gather g{s.n, s.in_height, s.in_width, s.in, s.out_height, s.out_width, s.out, s.out_height, s.out_width,
           s.stride, 1, 0, 0, int(s.kernel * s.kernel), {}, {}};
  for (int tap = 0; tap < g.taps; ++tap) {
    g.tap_row[tap] = tap / s.kernel - s.padding;
    g.tap_column[tap] = tap % s.kernel - s.padding;
  }
  return g;
}

// panels[in / kPanel][of the chosen taps][out][kPanel] of weights (out, taps, in)
void gradient_panels(const ConvShape& s, const float* weight, const int* chosen, int count, float* panels,
                     const Parallel& parallel) {
  const int64_t taps = s.kernel * s.kernel;
  for_each_task(parallel, s.in / kPanel, 1, [&](int64_t panel) {
    float* to = panels + panel * count * s.out * kPanel;
    for (int t = 0; t < count; ++t)
      for (int64_t o = 0; o < s.out; ++o, to += kPanel)
        for (int c = 0; c < kPanel; c += kL)
          store<V>(to + c, load<V>(weight + (o * taps + chosen[t]) * s.in + panel * kPanel + c));
  });
}

// The part of the forward grid that sees the image through a tap.
Gather seen_through(const Gather& g, int tap) {
  Gather seen = g;
  auto cut = [&](int64_t tap_at, int64_t in, int64_t out, int64_t& first, int64_t& count, int64_t& tap_after) {
    first = tap_at < 0 ? ceil_div(-tap_at, g.in_stride) : 0;
    count = in > tap_at ? std::max<int64_t>(std::min(out, ceil_div(in - tap_at, g.in_stride)) - first, 0) : 0;
    tap_after = tap_at + first * g.in_stride;
  };
  seen.taps = 1;
  cut(g.tap_row[tap], g.in_height, g.out_height, seen.first_row, seen.grid_rows, seen.tap_row[0]);
  cut(g.tap_column[tap], g.in_width, g.out_width, seen.first_column, seen.grid_columns, seen.tap_column[0]);
  return seen;
}

// dw[output][tap][input] = sum over pixels of dy[pixel][output] * x[pixel seen through the tap][input]. A task has a
// block of outputs and one of inputs of a tap; where these are few, also a share of the pixels, summed in order.
template <bool kNorm>
void weight_gradient(const ConvWeightGradient& p, const Parallel& parallel) {
  const ConvShape& s = p.shape;
  const Gather all = forward_gather(s);
  const int64_t taps = all.taps;
  const int64_t out_blocks = ceil_div(s.out, kGradientColumns), in_blocks = ceil_div(s.in, kGradientColumns);
  const int64_t blocks = taps * out_blocks * in_blocks;
  const int64_t splits = std::clamp<int64_t>(kGradientTasks / blocks, 1, ceil_div(all.rows(), 4 * kGradientPixels));
  const int64_t size = s.out * taps * s.in;
  const std::unique_ptr<float[]> partial(splits > 1 ? new float[(splits - 1) * size] : nullptr);
  for_each_task(parallel, blocks * splits, 1, [&](int64_t task) {
    const int64_t split = task / blocks, tap = task % blocks / (out_blocks * in_blocks);
    const Gather g = seen_through(all, int(tap));
    const int64_t first_out = task % (out_blocks * in_blocks) / in_blocks * kGradientColumns;
    const int64_t first_in = task % in_blocks * kGradientColumns;
    const int64_t outs = std::min(kGradientColumns, s.out - first_out);
    const int64_t ins = std::min(kGradientColumns, s.in - first_in);
    const int64_t begin = split * g.rows() / splits, end = (split + 1) * g.rows() / splits;
    float* const dw = (split ? partial.get() + (split - 1) * size : p.dw) + (first_out * taps + tap) * s.in + first_in;
    if (begin == end)
      for (int64_t k = 0; k < outs; ++k) std::fill_n(dw + k * taps * s.in, ins, 0.f);
    float* const gradients = scratch(2 * kGradientPixels * kGradientColumns);
    float* const inputs = gradients + kGradientPixels * kGradientColumns;
    const Input input{p.norm, s.in}, result{nullptr, s.out};
    const int64_t products = ins / kPanel * (outs / kDepth);
    for (int64_t first = begin; first < end; first += kGradientPixels) {
      const int64_t last = std::min(first + kGradientPixels, end), next = std::min(last + kGradientPixels, end);
      const int64_t count = last - first;
      gather<kNorm, kPanel>(pixels_of(g, 0, p.x, first, last), input, first_in, ins, inputs);
      gather<false, kDepth>(results_of(g, p.dy, first, last), result, first_out, outs, gradients);
      const Pixels next_inputs = pixels_of(g, 0, p.x, last, next), next_results = results_of(g, p.dy, last, next);
      for (int64_t c = 0, product = 0; c < ins; c += kPanel)
        for (int64_t k = 0; k < outs; k += kDepth, ++product) {
          fetch(next_inputs, first_in, ins, product, products);
          fetch(next_results, first_out, outs, product, products);
          gemm_panel<Order::kStepMajor>(kDepth, gradients + k * count, kDepth * kDepth, inputs + c * count, count,
                                        dw + k * taps * s.in + c, taps * s.in,
                                        first > begin ? Write::kAdd : Write::kSet);
        }
    }
  });
  if (splits > 1)
    for_each_task(parallel, ceil_div(size, kL), 1 << 10, [&](int64_t task) {
      V sum = load<V>(p.dw + task * kL);
      for (int64_t split = 1; split < splits; ++split) sum += load<V>(partial.get() + (split - 1) * size + task * kL);
      store<V>(p.dw + task * kL, sum);
    });
}

}  // namespace

// panels[out / kPanel][step][kPanel]
void gemm_filter(const ConvFilter& p, const Parallel& parallel) {
  for_each_task(parallel, p.out / kL, 1, [&](int64_t task) {
    const int64_t o = task * kL;
    float* const panel = p.panels + o / kPanel * kPanel * p.steps + o % kPanel;
    for (int64_t step = 0; step < p.steps; step += kL) {
      V square[kL];
      for (int i = 0; i < kL; ++i) square[i] = load<V>(p.weight + (o + i) * p.steps + step);
      transpose(square);
      for (int i = 0; i < kL; ++i) store<V>(panel + (step + i) * kPanel, square[i]);
    }
  });
}

void gemm_forward(const ConvForward& p, const Parallel& parallel) {
  multiply(forward_gather(p.shape), p.x, {p.norm, p.shape.in}, p.panels, p.y, false, parallel);
}

// Pixels of x that see the same taps, one for every remainder of row and column by the stride, are one product.
void gemm_input_gradient(const ConvInputGradient& p, const Parallel& parallel) {
  const ConvShape& s = p.shape;
  const std::unique_ptr<float[]> panels(new float[s.out * s.in * s.kernel * s.kernel]);
  for (int64_t a = 0; a < s.stride; ++a)
    for (int64_t b = 0; b < s.stride; ++b) {
      Gather g{s.n, s.out_height, s.out_width, s.out, s.in_height, s.in_width, s.in,
               ceil_div(s.in_height - a, s.stride), ceil_div(s.in_width - b, s.stride), 1, s.stride, a, b, 0, {}, {}};
      int chosen[kMostTaps];
      for (int tap = 0; tap < s.kernel * s.kernel; ++tap) {
        // y's row i takes x's row i * stride + tap's row - padding
        const int64_t row = a + s.padding - tap / s.kernel, column = b + s.padding - tap % s.kernel;
        if (row % s.stride || column % s.stride) continue;
        g.tap_row[g.taps] = row / s.stride;
        g.tap_column[g.taps] = column / s.stride;
        chosen[g.taps++] = tap;
      }
      if (g.rows() == 0 || (p.adds && g.taps == 0)) continue;
      gradient_panels(s, p.weight, chosen, g.taps, panels.get(), parallel);
      multiply(g, p.dy, {nullptr, s.out}, panels.get(), p.dx, p.adds, parallel);
    }
}

void gemm_weight_gradient(const ConvWeightGradient& p, const Parallel& parallel) {
  p.norm ? weight_gradient<true>(p, parallel) : weight_gradient<false>(p, parallel);
}

}  // namespace bitfast::BITFAST_ISA

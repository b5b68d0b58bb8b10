// The stem on the CPU. In an image with its frame of zeros the inputs of a kernel row stand together, and those of the
// next result two pixels on: matrix products read them where they are.
#include "conv/stem.h"

#include <vector>

#include "conv/gemm_cpu.h"
#include "conv/scratch_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

using V = Vector<float>;
constexpr int64_t kKernel = 7, kStride = 2, kPadding = 3;
constexpr int64_t kBandRows = 8;         // of results of a task
constexpr int64_t kGradientTasks = 16;   // at most, whatever the number of threads: each sums its own
constexpr int64_t kGradientSteps = 128;  // results summed in registers, unless a row is longer: bounds the rounding error

// Distances between elements of one side of a product, of which `groups` times `steps` are summed.
struct Strides {
  int64_t group, step;
};

// C[row][0..kPanel) (+)= sum over groups and steps of A[row * row_stride + ...] * B[...][0..kPanel).
template <int kRows>
void tile(int64_t groups, int64_t steps, const float* a, int64_t row_stride, Strides of_a, const float* b, Strides of_b,
          float* c, int64_t c_stride, bool adds) {
  V sum[kRows][kPanelVectors] = {};
  for (int64_t group = 0; group < groups; ++group) {
    const float* p = a + group * of_a.group;
    const float* q = b + group * of_b.group;
    for (int64_t step = 0; step < steps; ++step, p += of_a.step, q += of_b.step) {
      V columns[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) columns[v] = load<V>(q + v * kLanes<float>);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v) sum[row][v] += p[row * row_stride] * columns[v];
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      float* const to = c + row * c_stride + v * kLanes<float>;
      store<V>(to, adds ? load<V>(to) + sum[row][v] : sum[row][v]);
    }
}

// The same for any number of rows, as equal tiles.
void product(int64_t rows, int64_t groups, int64_t steps, const float* a, int64_t row_stride, Strides of_a,
             const float* b, Strides of_b, float* c, int64_t c_stride, bool adds) {
  static constexpr auto tiles = []<int... kRow>(std::integer_sequence<int, kRow...>) {
    return std::array{tile<kRow + 1>...};
  }(std::make_integer_sequence<int, kTileRows>());
  const int64_t count = ceil_div(rows, kTileRows);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t begin = t * rows / count, size = (t + 1) * rows / count - begin;
    tiles[size - 1](groups, steps, a + begin * row_stride, row_stride, of_a, b, of_b, c + begin * c_stride, c_stride,
                    adds);
  }
}

// The images as bands of rows of results.
class Bands {
 public:
  explicit Bands(const StemShape& shape) : s(shape), per_image_(ceil_div(s.out_height(), kBandRows)) {}

  int64_t count() const { return s.n * per_image_; }
  int64_t row_floats() const { return (s.width + 2 * kPadding) * s.in; }
  int64_t floats() const { return (kStride * kBandRows + kKernel - kStride) * row_floats(); }

  // Writes what band `i` reads of x, framed, to `framed`; f(first row, of all images, rows).
  template <class F>
  void visit(int64_t i, const float* x, float* framed, F f) const {
    const int64_t image = i / per_image_, first = i % per_image_ * kBandRows;
    const int64_t rows = std::min(kBandRows, s.out_height() - first), width = s.width * s.in;
    for (int64_t r = 0; r < kStride * (rows - 1) + kKernel; ++r, framed += row_floats()) {
      const int64_t row = kStride * first - kPadding + r;
      if (row < 0 || row >= s.height) {
        std::fill_n(framed, row_floats(), 0.f);
        continue;
      }
      std::fill_n(framed, kPadding * s.in, 0.f);
      std::copy_n(x + (image * s.height + row) * width, width, framed + kPadding * s.in);
      std::fill_n(framed + kPadding * s.in + width, kPadding * s.in, 0.f);
    }
    f(image * s.out_height() + first, rows);
  }

 private:
  const StemShape s;
  const int64_t per_image_;
};

}  // namespace

void stem_conv(const StemConv& p, const Parallel& parallel) {
  const StemShape& s = p.shape;
  const Bands bands(s);
  const int64_t steps = kKernel * s.in, depth = kKernel * steps, width = s.out_width();
  std::vector<float> panels(s.out * depth);  // [out / kPanel][step][kPanel]
  for (int64_t o = 0; o < s.out; ++o)
    for (int64_t step = 0; step < depth; ++step)
      panels[(o / kPanel * depth + step) * kPanel + o % kPanel] = p.weight[o * depth + step];
  for_each_task(parallel, bands.count(), 1, [&](int64_t band) {
    float* const framed = scratch(bands.floats());
    bands.visit(band, p.x, framed, [&](int64_t first, int64_t rows) {
      for (int64_t o = 0; o < s.out; o += kPanel)
        for (int64_t row = 0; row < rows; ++row)
          product(width, kKernel, steps, framed + kStride * row * bands.row_floats(), kStride * s.in,
                  {bands.row_floats(), 1}, panels.data() + o * depth, {steps * kPanel, kPanel},
                  p.y + (first + row) * width * s.out + o, s.out, false);
    });
  });
}

// A task sums dw[tap and channel][output] over its share of the bands; the sums are added in order.
void stem_weight_gradient(const StemWeightGradient& p, const Parallel& parallel) {
  const StemShape& s = p.shape;
  const Bands bands(s);
  const int64_t steps = kKernel * s.in, depth = kKernel * steps, width = s.out_width();
  const int64_t tasks = std::min(kGradientTasks, bands.count()), at_once = std::max<int64_t>(kGradientSteps / width, 1);
  std::vector<float> sums(tasks * depth * s.out);
  for_each_task(parallel, tasks, 1, [&](int64_t task) {
    float* const framed = scratch(bands.floats());
    float* const own = sums.data() + task * depth * s.out;
    for (int64_t band = task * bands.count() / tasks; band < (task + 1) * bands.count() / tasks; ++band)
      bands.visit(band, p.x, framed, [&](int64_t first, int64_t rows) {
        for (int64_t row = 0; row < rows; row += at_once)
          for (int64_t o = 0; o < s.out; o += kPanel)
            for (int64_t tap = 0; tap < kKernel; ++tap)
              product(steps, std::min(at_once, rows - row), width, framed + (kStride * row + tap) * bands.row_floats(),
                      1, {kStride * bands.row_floats(), kStride * s.in}, p.dy + (first + row) * width * s.out + o,
                      {width * s.out, s.out}, own + tap * steps * s.out + o, s.out, true);
      });
  });
  for (int64_t o = 0; o < s.out; ++o)
    for (int64_t step = 0; step < depth; ++step) {
      float sum = 0;
      for (int64_t task = 0; task < tasks; ++task) sum += sums[(task * depth + step) * s.out + o];
      p.dw[o * depth + step] = sum;
    }
}

}  // namespace bitfast::BITFAST_ISA

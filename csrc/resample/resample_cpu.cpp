// Two passes per output row: columns of the image rows it needs into one row of floats, then along that row. Nothing is
// rounded in between, and an output pixel does not depend on the window it is part of.
#include "resample/resample.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

using Pixel [[gnu::vector_size(16)]] = float;  // red, green, blue and a lane that is not used

constexpr int64_t kLargeBytes = 512 << 10;  // rows of such images go past the caches: their batch would not stay there

constexpr double kPi = 3.14159265358979323846;

double radius(Filter filter) {
  switch (filter) {
    case Filter::kNearest: return 0.5;
    case Filter::kBilinear: return 1;
    case Filter::kBicubic: return 2;
    case Filter::kLanczos: return 3;
  }
  return 1;
}

double sinc(double x) { return x == 0 ? 1 : std::sin(kPi * x) / (kPi * x); }

// Keys' cubic with a = -1/2 and Lanczos' window of three lobes, as Pillow and DALI have them.
double weight(Filter filter, double x) {
  x = std::abs(x);
  if (x >= radius(filter)) return 0;
  switch (filter) {
    case Filter::kNearest: return 1;
    case Filter::kBilinear: return 1 - x;
    case Filter::kBicubic: return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2;
    case Filter::kLanczos: return sinc(x) * sinc(x / 3);
  }
  return 0;
}

// For each of `count` outputs from `first` on: `taps` neighbouring inputs from starts[i] on, and their weights.
struct Taps {
  int64_t taps;
  std::vector<int64_t> starts;
  std::vector<float> weights;
};

Taps nearest(int64_t inputs, int64_t outputs, int64_t first, int64_t count) {
  Taps result{1, std::vector<int64_t>(count), std::vector<float>(count, 1.f)};
  const double scale = double(inputs) / double(outputs);
  for (int64_t i = 0; i < count; ++i)
    result.starts[i] = std::clamp<int64_t>(int64_t((double(first + i) + 0.5) * scale), 0, inputs - 1);
  return result;
}

// Antialiased: where the image gets smaller the filter gets as much wider. What lies outside counts as the edge.
Taps filtered(Filter filter, int64_t inputs, int64_t outputs, int64_t first, int64_t count) {
  const double scale = double(inputs) / double(outputs), stretch = std::max(scale, 1.0);
  const double reach = radius(filter) * stretch;
  const int64_t taps = std::min<int64_t>(inputs, int64_t(std::ceil(2 * reach)));  // all inside, ends excluded
  Taps result{taps, std::vector<int64_t>(count), std::vector<float>(count * taps)};
  std::vector<double> weights(taps);
  for (int64_t i = 0; i < count; ++i) {
    const double centre = (double(first + i) + 0.5) * scale - 0.5;
    const int64_t low = int64_t(std::floor(centre - reach)) + 1, high = int64_t(std::ceil(centre + reach)) - 1;
    const int64_t start = std::clamp<int64_t>(low, 0, inputs - taps);
    std::fill(weights.begin(), weights.end(), 0);
    double sum = 0;
    for (int64_t k = low; k <= high; ++k) {
      const double w = weight(filter, (double(k) - centre) / stretch);
      weights[std::clamp<int64_t>(k, start, start + taps - 1) - start] += w;
      sum += w;
    }
    result.starts[i] = start;
    for (int64_t k = 0; k < taps; ++k) result.weights[i * taps + k] = float(weights[k] / sum);
  }
  return result;
}

Taps taps_of(Filter filter, int64_t inputs, int64_t outputs, int64_t first, int64_t count) {
  return filter == Filter::kNearest ? nearest(inputs, outputs, first, count)
                                    : filtered(filter, inputs, outputs, first, count);
}

// row[i] = sum over k < kTaps of weights[k] * pixels[k * stride + i], on top of what is there if `add`.
template <int kTaps>
void sum_rows(const uint8_t* pixels, int64_t stride, const float* weights, int64_t count, bool add, float* row) {
  for (int64_t i = 0; i < count; ++i) {
    float sum = add ? row[i] : 0.f;
    for (int k = 0; k < kTaps; ++k) sum += weights[k] * float(pixels[k * stride + i]);
    row[i] = sum;
  }
}

void sum_rows(const uint8_t* pixels, int64_t stride, const float* weights, int64_t taps, int64_t count, float* row) {
  bool add = false;
  for (; taps >= 4; taps -= 4, pixels += 4 * stride, weights += 4, add = true)
    sum_rows<4>(pixels, stride, weights, count, add, row);
  switch (taps) {
    case 3: return sum_rows<3>(pixels, stride, weights, count, add, row);
    case 2: return sum_rows<2>(pixels, stride, weights, count, add, row);
    case 1: return sum_rows<1>(pixels, stride, weights, count, add, row);
  }
}

// One float more than the pixels of `row` is read, and one more than those of `result` is written.
template <int kTaps>
void sum_columns(const float* row, const Taps& columns, bool flip, float* result) {
  const int64_t count = int64_t(columns.starts.size()), taps = kTaps ? kTaps : columns.taps;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from = flip ? count - 1 - i : i;
    const float* const p = row + 3 * columns.starts[from];
    const float* const w = columns.weights.data() + from * taps;
    Pixel sum{};
    for (int64_t k = 0; k < taps; ++k) {
      Pixel pixel;
      std::memcpy(&pixel, p + 3 * k, sizeof pixel);
      sum += w[k] * pixel;
    }
    std::memcpy(result + 3 * i, &sum, sizeof sum);
  }
}

void sum_columns(const float* row, const Taps& columns, bool flip, float* result) {
  switch (columns.taps) {
    case 1: return sum_columns<1>(row, columns, flip, result);
    case 2: return sum_columns<2>(row, columns, flip, result);
    case 3: return sum_columns<3>(row, columns, flip, result);
    case 4: return sum_columns<4>(row, columns, flip, result);
    default: return sum_columns<0>(row, columns, flip, result);
  }
}

template <class V>
using Integers = decltype(V{} > V{});

// The nearest of 0 .. 255, halves upwards; V is a vector of floats.
template <class V>
Integers<V> level(V value) {
  value = value > 0 ? value : V{};
  value = value < 255 ? value : V{} + 255;
  return __builtin_convertvector(value + 0.5f, Integers<V>);
}

template <class V, class Stored>
void put(V value, float mean, float scale, Stored* y, bool past_caches) {
  const V normalised = (__builtin_convertvector(level(value), V) - mean) * scale;
  past_caches ? stream<V>(y, normalised) : store<V>(y, normalised);
}

template <class V>
void put(V value, float, float, uint8_t* y, bool) {
  const Integers<V> levels = level(value);
  int32_t lanes[Lanes<V>::count];
  std::memcpy(lanes, &levels, sizeof lanes);
  for (int i = 0; i < Lanes<V>::count; ++i) y[i] = uint8_t(lanes[i]);
}

// `values` has room for a whole vector at its end; y need not.
template <class Stored>
void put_row(const float* values, int64_t count, float mean, float scale, Stored* y, bool past_caches) {
  using V = Vector<float>;
  constexpr int64_t lanes = kLanes<float>;
  past_caches = past_caches && reinterpret_cast<uintptr_t>(y) % (lanes * sizeof(Stored)) == 0;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) put(load<V>(values + i), mean, scale, y + i, past_caches);
  if (i == count) return;
  Stored rest[lanes];
  put(load<V>(values + i), mean, scale, rest, false);
  std::copy(rest, rest + (count - i), y + i);
}

template <class Stored>
void resample_one(const Resample& p, const Picture& picture, const Window& window, bool past_caches, Stored* y) {
  const Taps rows = taps_of(p.filter, window.box_height, window.height, window.y, p.out_height);
  Taps columns = taps_of(p.filter, window.box_width, window.width, window.x, p.out_width);
  const auto [first, last] = std::minmax_element(columns.starts.begin(), columns.starts.end());
  const int64_t left = *first, width = *last + columns.taps - left;
  for (int64_t& start : columns.starts) start -= left;
  const int64_t stride = 3 * picture.width;
  const uint8_t* const corner = picture.pixels + window.top * stride + 3 * (window.left + left);
  std::vector<float> row(3 * width + 1), values(3 * p.out_width + kLanes<float>);
  for (int64_t i = 0; i < p.out_height; ++i) {
    const float* const weights = rows.weights.data() + i * rows.taps;
    sum_rows(corner + rows.starts[i] * stride, stride, weights, rows.taps, 3 * width, row.data());
    sum_columns(row.data(), columns, window.flip, values.data());
    put_row(values.data(), 3 * p.out_width, p.mean, p.scale, y + i * 3 * p.out_width, past_caches);
  }
  stream_fence();
}

template <class Stored>
void resample_all(const Resample& p, const Parallel& parallel) {
  Stored* const y = static_cast<Stored*>(p.y);
  const int64_t elements = p.out_height * p.out_width * 3;
  const bool past_caches = elements * int64_t(sizeof(Stored)) >= kLargeBytes;
  for_each_task(parallel, p.n, 1,
                [&](int64_t i) { resample_one(p, p.pictures[i], p.windows[i], past_caches, y + i * elements); });
}

}  // namespace

void resample(const Resample& p, const Parallel& parallel) {
  switch (p.type) {
    case PixelType::kUInt8: return resample_all<uint8_t>(p, parallel);
    case PixelType::kFloat32: return resample_all<float>(p, parallel);
    case PixelType::kBFloat16: return resample_all<BFloat16>(p, parallel);
  }
}

}  // namespace bitfast::BITFAST_ISA

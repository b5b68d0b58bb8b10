// GroupNorm forward on the CPU. A task is a slab: groups of one image, swept once for the statistics and once, backwards
// so that it starts with what is still in the cache, for the normalisation.
#include "group_norm/group_norm.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kTaskElements = 32 << 10;  // below this a task is not worth a thread
constexpr int64_t kBlockRows = 64;           // rows summed in the compute type before merging in double
constexpr int64_t kBandRows = 8;              // rows read side by side: as many sequential streams
constexpr int64_t kStreamBytes = 16 << 20;   // a result of this size leaves the caches before it is read: store past them
constexpr int kUnroll = 4;                   // vectors side by side in a strip

template <class T>
constexpr int64_t kStrip = kUnroll * kLanes<T>;

// Both layouts are rows of columns: `rows` rows of `width` elements that begin `stride` elements apart.
template <class Stored>
struct Rows {
  const Stored* x;
  const Stored* residual;  // null: x is the input; else x + residual is, and is written to sum
  Stored* sum;
  Stored* y;
  int64_t rows, stride, width;

  // The input as it stands in memory once it has been summed.
  const Stored* source() const { return residual ? sum : x; }
};

// Per column: running mean and squared distances from it, and the sums of the current block about `centre`.
template <class T>
struct Columns {
  double *mean, *squares;
  T *centre, *first, *second;
};

// Covers columns [0, width) by strips, widest first: f(vector of the strip's type, vectors in it, first column).
template <class T, class F>
void for_each_strip(int64_t width, F f) {
  int64_t i = 0;
  for (; i + kStrip<T> <= width; i += kStrip<T>) f(Vector<T>{}, std::integral_constant<int, kUnroll>{}, i);
  for (; i + kLanes<T> <= width; i += kLanes<T>) f(Vector<T>{}, std::integral_constant<int, 1>{}, i);
  for (; i < width; ++i) f(T{}, std::integral_constant<int, 1>{}, i);
}

template <class V, int kVectors, bool kAdd, class Stored, class T>
void strip_sums(const Rows<Stored>& in, int64_t begin, int64_t end, int64_t column, const Columns<T>& out) {
  constexpr int lanes = Lanes<V>::count;
  V centre[kVectors], first[kVectors], second[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    centre[v] = load<V>(out.centre + column + v * lanes);
    first[v] = load<V>(out.first + column + v * lanes);
    second[v] = load<V>(out.second + column + v * lanes);
  }
  const Stored *x = in.x, *residual = in.residual, *source = in.source();
  Stored* const sum = in.sum;
  const int64_t stride = in.stride;
  for (int64_t r = begin; r < end; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = r * stride + column + v * lanes;
      if constexpr (kAdd) store<V>(sum + i, load<V>(x + i) + load<V>(residual + i));
      const V d = load<V>(source + i) - centre[v];
      first[v] += d;
      second[v] += d * d;
    }
  for (int v = 0; v < kVectors; ++v) {
    store<V>(out.first + column + v * lanes, first[v]);
    store<V>(out.second + column + v * lanes, second[v]);
  }
}

template <bool kAdd, class Stored, class T>
void block_sums(const Rows<Stored>& in, int64_t begin, int64_t end, const Columns<T>& out) {
  for (int64_t r = begin; r < end; r += kBandRows)
    for_each_strip<T>(in.width, [&](auto v, auto vectors, int64_t column) {
      strip_sums<decltype(v), vectors, kAdd>(in, r, std::min(r + kBandRows, end), column, out);
    });
}

// Column moments. Each block is centred on the mean of the blocks before it, the first on its own.
template <class Stored, class T>
void column_moments(const Rows<Stored>& in, const Columns<T>& out) {
  std::fill_n(out.centre, in.width, T(0));
  std::fill_n(out.first, in.width, T(0));
  std::fill_n(out.second, in.width, T(0));
  std::fill_n(out.mean, in.width, 0.0);
  std::fill_n(out.squares, in.width, 0.0);
  for (int64_t begin = 0; begin < in.rows; begin += kBlockRows) {
    const int64_t end = std::min(begin + kBlockRows, in.rows);
    const double n = double(end - begin), per_row = 1 / n, share = n / double(end);
    in.residual ? block_sums<true>(in, begin, end, out) : block_sums<false>(in, begin, end, out);
    if (begin == 0) {
      for (int64_t c = 0; c < in.width; ++c) {
        out.centre[c] = T(out.first[c] * per_row);
        out.first[c] = out.second[c] = 0;
      }
      block_sums<false>(in, begin, end, out);
    }
    for (int64_t c = 0; c < in.width; ++c) {
      const double offset = out.first[c] * per_row, delta = out.centre[c] + offset - out.mean[c];
      out.squares[c] += out.second[c] - out.first[c] * offset + delta * delta * (double(begin) * share);
      out.mean[c] += delta * share;
      out.centre[c] = T(out.mean[c]);
      out.first[c] = out.second[c] = 0;
    }
  }
}

template <Activation kActivation, bool kStream, class V, int kVectors, class Stored, class T>
void strip_apply(const Rows<Stored>& in, int64_t begin, int64_t end, int64_t column, const T* mean, const T* scale,
                 const T* bias) {
  constexpr int lanes = Lanes<V>::count;
  V m[kVectors], a[kVectors], b[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    m[v] = load<V>(mean + column + v * lanes);
    a[v] = load<V>(scale + column + v * lanes);
    b[v] = load<V>(bias + column + v * lanes);
  }
  const Stored* const source = in.source();
  Stored* const y = in.y;
  const int64_t stride = in.stride;
  for (int64_t r = begin; r < end; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = r * stride + column + v * lanes;
      V z = (load<V>(source + i) - m[v]) * a[v] + b[v];
      if constexpr (kActivation == Activation::kRelu) z = relu(z);
      if constexpr (kActivation == Activation::kSilu) z = silu(z);
      kStream ? stream<V>(y + i, z) : store<V>(y + i, z);
    }
}

template <Activation kActivation, bool kStream, class Stored, class T>
void apply(const Rows<Stored>& in, const T* mean, const T* scale, const T* bias) {
  for (int64_t end = in.rows; end > 0; end -= kBandRows)
    for_each_strip<T>(in.width, [&](auto v, auto vectors, int64_t column) {
      strip_apply<kActivation, kStream, decltype(v), vectors>(in, std::max<int64_t>(end - kBandRows, 0), end, column, mean, scale,
                                                     bias);
    });
}

struct Moments {
  double count = 0, mean = 0, squares = 0;

  // Adds `columns` columns of `rows` values each.
  void merge(int64_t rows, int64_t columns, const double* means, const double* squared) {
    const double n = double(rows) * double(columns), total = count + n;
    const double m = std::accumulate(means, means + columns, 0.0) / double(columns), delta = m - mean;
    double between = 0, within = 0;
    for (int64_t c = 0; c < columns; ++c) {
      between += (means[c] - m) * (means[c] - m);
      within += squared[c];
    }
    squares += within + between * double(rows) + delta * delta * (count * n / total);
    mean += delta * (n / total);
    count = total;
  }
};

template <class Stored, Activation kActivation>
class Forward {
  using T = Compute<Stored>;

 public:
  explicit Forward(const GroupNormForward& p)
      : p_(p),
        per_group_(p.channels / p.groups),
        weight_(static_cast<const T*>(p.weight)),
        bias_(static_cast<const T*>(p.bias)),
        mean_(static_cast<T*>(p.mean)),
        rstd_(static_cast<T*>(p.rstd)),
        stream_(p.n * p.channels * p.pixels * int64_t(sizeof(Stored)) >= kStreamBytes &&
                (p.channels_last ? p.channels : p.pixels) % kStrip<T> == 0) {}

  void run(const Parallel& parallel) const {
    const int64_t step = slab_groups(parallel.threads), slabs = (p_.groups + step - 1) / step;
    const int64_t grain = kTaskElements / (step * per_group_ * p_.pixels) + 1;
    for_each_task(parallel, p_.n * slabs, grain, [&](int64_t task) {
      const int64_t image = task / slabs, begin = task % slabs * step;
      const int64_t end = std::min(begin + step, p_.groups);
      p_.channels_last ? channels_last_slab(image, begin, end) : contiguous_slab(image, begin, end);
      if (stream_) stream_fence();
    });
  }

 private:
  // In channels_last rows are long, so an image is split only to give every thread something, and at whole strips,
  // which keeps the arithmetic of every channel the same.
  int64_t slab_groups(int64_t threads) const {
    if (!p_.channels_last) return 1;
    const int64_t whole = kStrip<T> / std::gcd(kStrip<T>, per_group_), parts = (threads + p_.n - 1) / p_.n;
    return std::min((p_.groups / parts + whole - 1) / whole * whole, p_.groups);
  }

  Rows<Stored> rows_at(int64_t offset, int64_t rows, int64_t stride, int64_t width) const {
    auto at = [&](auto* data) { return data ? data + offset : data; };
    return {at(static_cast<const Stored*>(p_.x)), at(static_cast<const Stored*>(p_.residual)),
            at(static_cast<Stored*>(p_.sum)),     at(static_cast<Stored*>(p_.y)),
            rows,                                 stride,
            width};
  }

  void channels_last_slab(int64_t image, int64_t begin, int64_t end) const {
    const int64_t first = begin * per_group_, width = (end - begin) * per_group_;
    const Rows<Stored> in = rows_at(image * p_.pixels * p_.channels + first, p_.pixels, p_.channels, width);
    const std::unique_ptr<double[]> doubles(new double[2 * width]);
    const std::unique_ptr<T[]> values(new T[3 * width]);
    const Columns<T> columns{doubles.get(), doubles.get() + width, values.get(), values.get() + width,
                             values.get() + 2 * width};
    column_moments(in, columns);
    T *mean = columns.first, *scale = columns.second;
    for (int64_t g = begin; g < end; ++g) {
      const int64_t group = image * p_.groups + g, start = (g - begin) * per_group_;
      Moments moments;
      moments.merge(p_.pixels, per_group_, columns.mean + start, columns.squares + start);
      finish(moments, group);
      for (int64_t c = start; c < start + per_group_; ++c) {
        mean[c] = mean_[group];
        scale[c] = rstd_[group] * weight_[first + c];
      }
    }
    stream_ ? apply<kActivation, true>(in, mean, scale, bias_ + first) : apply<kActivation, false>(in, mean, scale, bias_ + first);
  }

  void contiguous_slab(int64_t image, int64_t begin, int64_t end) const {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t group = image * p_.groups + g, first = g * per_group_;
      const int64_t offset = (image * p_.channels + first) * p_.pixels;
      Moments moments;
      for_each_run(offset, per_group_ * p_.pixels, [&](const Rows<Stored>& in) {
        double mean[kStrip<T>], squares[kStrip<T>];
        T centre[kStrip<T>], sum[kStrip<T>], sum_squares[kStrip<T>];
        column_moments(in, Columns<T>{mean, squares, centre, sum, sum_squares});
        moments.merge(in.rows, in.width, mean, squares);
      });
      finish(moments, group);
      for (int64_t c = 0; c < per_group_; ++c) {
        T mean[kStrip<T>], scale[kStrip<T>], bias[kStrip<T>];
        std::fill_n(mean, kStrip<T>, mean_[group]);
        std::fill_n(scale, kStrip<T>, rstd_[group] * weight_[first + c]);
        std::fill_n(bias, kStrip<T>, bias_[first + c]);
        for_each_run(offset + c * p_.pixels, p_.pixels,
                     [&](const Rows<Stored>& in) { stream_ ? apply<kActivation, true>(in, mean, scale, bias) : apply<kActivation, false>(in, mean, scale, bias); });
      }
    }
  }

  // Consecutive elements as full rows of one strip, and what is left as one short row.
  template <class F>
  void for_each_run(int64_t offset, int64_t count, F f) const {
    const int64_t rows = count / kStrip<T>, rest = count % kStrip<T>;
    if (rows) f(rows_at(offset, rows, kStrip<T>, kStrip<T>));
    if (rest) f(rows_at(offset + rows * kStrip<T>, 1, rest, rest));
  }

  void finish(const Moments& moments, int64_t group) const {
    mean_[group] = T(moments.mean);
    rstd_[group] = T(1 / std::sqrt(moments.squares / moments.count + p_.eps));
  }

  const GroupNormForward p_;
  const int64_t per_group_;
  const T* const weight_;
  const T* const bias_;
  T* const mean_;
  T* const rstd_;
  const bool stream_;
};

template <class Stored>
void forward(const GroupNormForward& p, const Parallel& parallel) {
  switch (p.activation) {
    case Activation::kNone: return Forward<Stored, Activation::kNone>(p).run(parallel);
    case Activation::kRelu: return Forward<Stored, Activation::kRelu>(p).run(parallel);
    case Activation::kSilu: return Forward<Stored, Activation::kSilu>(p).run(parallel);
  }
}

}  // namespace

void group_norm_forward(const GroupNormForward& p, const Parallel& parallel) {
  if (p.n * p.channels * p.pixels == 0) return;
  switch (p.type) {
    case StorageType::kFloat32: return forward<float>(p, parallel);
    case StorageType::kFloat64: return forward<double>(p, parallel);
    case StorageType::kBFloat16: return forward<BFloat16>(p, parallel);
  }
}

}  // namespace bitfast::BITFAST_ISA

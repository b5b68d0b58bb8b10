// GroupNorm forward on the CPU. A task is a slab: groups of one image, swept once for the statistics and once for the
// normalisation, backwards, so that it starts with what is still in the cache.
#include "group_norm/group_norm.h"

#include <memory>

#include "group_norm/columns_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kTaskElements = 32 << 10;  // below this a task is not worth a thread
constexpr int64_t kStreamBytes = 16 << 20;   // a result of this size leaves the caches before it is read

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
    const int64_t step = std::max<int64_t>(p_.groups / parts, 1);
    return std::min((step + whole - 1) / whole * whole, p_.groups);
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
    normalize(in, mean, scale, bias_ + first);
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
                     [&](const Rows<Stored>& in) { normalize(in, mean, scale, bias); });
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

  void normalize(const Rows<Stored>& in, const T* mean, const T* scale, const T* bias) const {
    stream_ ? apply<kActivation, true>(in, mean, scale, bias) : apply<kActivation, false>(in, mean, scale, bias);
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

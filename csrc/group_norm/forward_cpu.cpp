// GroupNorm forward on the CPU.
#include <cmath>

#include "group_norm/slabs_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

// The shift that values are summed about is the mean of a sixteenth of them, and so within four standard deviations of
// the mean of all: the variance loses little where it is taken from the sums about the shift.
constexpr int64_t kShiftShare = 16;

template <class T>
struct ForwardScratch {
  explicit ForwardScratch(int64_t width)
      : totals(new double[2 * width]),
        values(new T[4 * width]),
        total_first(totals.get()),
        total_second(totals.get() + width),
        first(values.get()),
        second(values.get() + width),
        mean(values.get() + 2 * width),
        scale(values.get() + 3 * width) {}

  const std::unique_ptr<double[]> totals;
  const std::unique_ptr<T[]> values;
  double *const total_first, *const total_second;
  T *const first, *const second, *const mean, *const scale;
};

template <class Stored, Activation kActivation>
class Forward {
  using T = Compute<Stored>;

 public:
  explicit Forward(const GroupNormForward& p)
      : p_(p),
        per_group_(p.images.channels / p.images.groups),
        x_(static_cast<const Stored*>(p.x)),
        residual_(static_cast<const Stored*>(p.residual)),
        weight_(static_cast<const T*>(p.weight)),
        bias_(static_cast<const T*>(p.bias)),
        y_(static_cast<Stored*>(p.y)),
        sum_(static_cast<Stored*>(p.sum)),
        mean_(static_cast<T*>(p.mean)),
        rstd_(static_cast<T*>(p.rstd)),
        stream_(streams<Stored>(p.images)) {}

  void run(const Parallel& parallel) const {
    using Scratch = ForwardScratch<T>;
    for_each_slab<T, Scratch>(p_.images, parallel, [&](const Slab& slab, const Scratch& scratch) {
      p_.images.channels_last ? channels_last(slab, scratch) : contiguous(slab);
    });
  }

 private:
  void channels_last(const Slab& slab, const ForwardScratch<T>& scratch) const {
    const int64_t channels = p_.images.channels, rows = p_.images.pixels;
    const int64_t channel = slab.begin * per_group_, width = (slab.end - slab.begin) * per_group_;
    const int64_t offset = slab.image * rows * channels + channel, group = slab.image * p_.images.groups + slab.begin;
    T *const shift = scratch.mean, *const scale = scratch.scale, *const first = scratch.first;

    const int64_t shift_rows = (rows + kShiftShare - 1) / kShiftShare;
    std::fill_n(shift, width, T(0));
    sums(offset, 0, shift_rows, width, residual_, scratch);
    for (int64_t c = 0; c < width; c += per_group_)
      std::fill_n(shift + c, per_group_, T(total(first + c, first + c, per_group_).first / double(shift_rows * per_group_)));

    std::fill_n(scratch.total_first, width, 0.0);
    std::fill_n(scratch.total_second, width, 0.0);
    for (int64_t begin = 0, end; begin < rows; begin = end) {
      end = std::min(begin + kBlockRows, begin < shift_rows ? shift_rows : rows);
      sums(offset, begin, end, width, begin < shift_rows ? nullptr : residual_, scratch);
      add_to(scratch.total_first, scratch.first, width);
      add_to(scratch.total_second, scratch.second, width);
    }

    for (int64_t g = 0, c = 0; c < width; ++g, c += per_group_) {
      finish(group + g, shift[c], total(scratch.total_first + c, scratch.total_second + c, per_group_));
      for (int64_t i = c; i < c + per_group_; ++i) {
        shift[i] = mean_[group + g];
        scale[i] = rstd_[group + g] * weight_[channel + i];
      }
    }

    auto results = [&](auto stream) {
      column_results<T>(rows, channels, width, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return result<stream.value, V>(offset, load<V>(shift + c), load<V>(scale + c), load<V>(bias_ + channel + c));
      });
    };
    stream_ ? results(std::true_type{}) : results(std::false_type{});
  }

  void contiguous(const Slab& slab) const {
    const int64_t pixels = p_.images.pixels, count = per_group_ * pixels;
    for (int64_t g = slab.begin; g < slab.end; ++g) {
      const int64_t group = slab.image * p_.images.groups + g, offset = group * count;
      const int64_t shift_count = (count + kShiftShare - 1) / kShiftShare;
      const T shift = T(run_sums_about(0, offset, shift_count, residual_).first / double(shift_count));
      Sums all = run_sums_about(shift, offset, shift_count, nullptr);
      const Sums rest = run_sums_about(shift, offset + shift_count, count - shift_count, residual_);
      all.first += rest.first;
      all.second += rest.second;
      finish(group, shift, all);
      for (int64_t c = 0; c < per_group_; ++c) {
        const T mean = mean_[group], scale = rstd_[group] * weight_[g * per_group_ + c], bias = bias_[g * per_group_ + c];
        auto results = [&](auto stream) {
          run_results<T>(pixels, [&](auto vector, int64_t) {
            using V = decltype(vector);
            return result<stream.value, V>(offset + c * pixels, V{} + mean, V{} + scale, V{} + bias);
          });
        };
        stream_ ? results(std::true_type{}) : results(std::false_type{});
      }
    }
  }

  Sums run_sums_about(T shift, int64_t offset, int64_t count, const Stored* residual) const {
    auto sum = [&](auto add) {
      return run_sums<T>(count, [&](auto vector, int64_t) {
        using V = decltype(vector);
        return term<V, add.value>(offset, V{} + shift);
      });
    };
    return residual ? sum(std::true_type{}) : sum(std::false_type{});
  }

  // Sums about scratch.mean of the columns at `offset`, over rows [begin, end), into scratch.first and second.
  void sums(int64_t offset, int64_t begin, int64_t end, int64_t width, const Stored* residual,
            const ForwardScratch<T>& scratch) const {
    auto sum = [&](auto add) {
      column_sums<T>(begin, end, p_.images.channels, width, scratch.first, scratch.second, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return term<V, add.value>(offset, load<V>(scratch.mean + c));
      });
    };
    residual ? sum(std::true_type{}) : sum(std::false_type{});
  }

  // s - shift and its square, of the elements at offset + i; with kAdd s is x + residual and is written first.
  template <class V, bool kAdd>
  auto term(int64_t offset, V shift) const {
    const Stored* const source = (residual_ ? sum_ : x_) + offset;
    auto add = [=](int64_t i, V& first, V& second) {
      const V d = load<V>(source + i) - shift;
      first += d;
      second += d * d;
    };
    if constexpr (kAdd)
      return [=, x = x_ + offset, residual = residual_ + offset, sum = sum_ + offset](int64_t i, V& first, V& second) {
        store<V>(sum + i, load<V>(x + i) + load<V>(residual + i));
        add(i, first, second);
      };
    else
      return add;
  }

  template <bool kStream, class V>
  auto result(int64_t offset, V mean, V scale, V bias) const {
    const Stored* const source = (residual_ ? sum_ : x_) + offset;
    Stored* const y = y_ + offset;
    return [=](int64_t i) {
      const V z = activate<kActivation>((load<V>(source + i) - mean) * scale + bias);
      kStream ? stream<V>(y + i, z) : store<V>(y + i, z);
    };
  }

  void finish(int64_t group, T shift, const Sums& sums) const {
    const double count = double(per_group_ * p_.images.pixels), offset = sums.first / count;
    mean_[group] = T(shift + offset);
    rstd_[group] = T(1 / std::sqrt(std::max(sums.second / count - offset * offset, 0.0) + p_.eps));
  }

  const GroupNormForward p_;
  const int64_t per_group_;
  const Stored *const x_, *const residual_;
  const T *const weight_, *const bias_;
  Stored *const y_, *const sum_;
  T *const mean_, *const rstd_;
  const bool stream_;
};

}  // namespace

void group_norm_forward(const GroupNormForward& p, const Parallel& parallel) {
  for_kind(p.images, [&](auto stored, auto activation) {
    Forward<decltype(stored), activation.value>(p).run(parallel);
  });
}

}  // namespace bitfast::BITFAST_ISA

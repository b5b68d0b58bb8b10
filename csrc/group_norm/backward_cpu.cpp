// GroupNorm backward on the CPU. With d = x - mean, dz = dy * act'(z) and means over a group:
//   db = sum dz;  dw = rstd * sum dz * d
//   dx = rstd * weight * dz - rstd * mean(weight * dz) - d * rstd^3 * mean(weight * dz * d) + ds
#include "group_norm/slabs_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kSumElements = 32 << 10;  // below this a sum over the images is not worth a thread
constexpr int64_t kSumChannels = 256;       // summed over the images at once: whole lines, of which many are on their way

template <class Stored, Activation kActivation>
class Backward {
  using T = Compute<Stored>;

 public:
  explicit Backward(const GroupNormBackward& p)
      : p_(p),
        per_group_(p.images.channels / p.images.groups),
        dy_(static_cast<const Stored*>(p.dy)),
        ds_(static_cast<const Stored*>(p.ds)),
        x_(static_cast<const Stored*>(p.x)),
        weight_(static_cast<const T*>(p.weight)),
        bias_(static_cast<const T*>(p.bias)),
        mean_(static_cast<const T*>(p.mean)),
        rstd_(static_cast<const T*>(p.rstd)),
        dx_(static_cast<Stored*>(p.dx)),
        image_dw_(new T[p.images.n * p.images.channels]),
        image_db_(new T[p.images.n * p.images.channels]),
        stream_(streams<Stored>(p.images)) {}

  void run(const Parallel& parallel) const {
    for_each_slab<T>(p_.images, parallel, [&](const Slab& slab, const Scratch<T>& scratch) {
      p_.images.channels_last ? channels_last(slab, scratch) : contiguous(slab, scratch);
    });
    const int64_t channels = p_.images.channels, blocks = (channels + kSumChannels - 1) / kSumChannels;
    for_each_task(parallel, blocks, kSumElements / (kSumChannels * (p_.images.n + 1)) + 1, [&](int64_t block) {
      const int64_t begin = block * kSumChannels, end = std::min(begin + kSumChannels, channels);
      over_images(image_dw_.get(), static_cast<T*>(p_.dw), begin, end);
      over_images(image_db_.get(), static_cast<T*>(p_.db), begin, end);
    });
  }

 private:
  // dx = dz * scale + (d * slope + constant)
  struct Line {
    T slope, constant;
  };

  void channels_last(const Slab& slab, const Scratch<T>& scratch) const {
    const int64_t pixels = p_.images.pixels, channel = slab.begin * per_group_;
    const int64_t width = (slab.end - slab.begin) * per_group_;
    const int64_t group = slab.image * p_.images.groups + slab.begin;
    const Rows rows{p_.images.channels, width};
    T *const mean = scratch.mean, *const scale = scratch.scale;
    for (int64_t g = 0, c = 0; c < width; ++g, c += per_group_)
      set_group(scratch, c, per_group_, mean_[group + g], rstd_[group + g], weight_ + channel + c);

    auto sums = [&](int64_t begin, int64_t end) {
      column_sums<T>(rows, begin, end, scratch.first, scratch.second, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return term(slab.offset, load<V>(mean + c), load<V>(scale + c), load<V>(bias_ + channel + c));
      });
    };
    T *const slope = scratch.first, *const constant = scratch.second;
    block_sums(pixels, width, scratch, sums, [&](const auto* sum_dz, const auto* sum_dz_d) {
      for (int64_t g = 0, c = 0; c < width; ++g, c += per_group_) {
        const Line line = finish(slab.image, slab.begin + g, sum_dz + c, sum_dz_d + c);
        std::fill_n(slope + c, per_group_, line.slope);
        std::fill_n(constant + c, per_group_, line.constant);
      }
    });
    with_options([&](auto add, auto stream) {
      column_results<T>(rows, pixels, [&](auto vector, int64_t c) {
        using V = decltype(vector);
        return result<add.value, stream.value>(slab.offset, slab.ahead, load<V>(mean + c), load<V>(scale + c),
                                               load<V>(bias_ + channel + c), load<V>(slope + c), load<V>(constant + c));
      });
    });
  }

  void contiguous(const Slab& slab, const Scratch<T>& scratch) const {
    const int64_t pixels = p_.images.pixels, channel = slab.begin * per_group_;
    const int64_t group = slab.image * p_.images.groups + slab.begin;
    const T mean = mean_[group], rstd = rstd_[group];
    for (int64_t c = 0; c < per_group_; ++c) {
      const T scale = rstd * weight_[channel + c], bias = bias_[channel + c];
      const Sums of_channel = run_sums<T>(pixels, [&](auto vector, int64_t) {
        using V = decltype(vector);
        return term(slab.offset + c * pixels, V{} + mean, V{} + scale, V{} + bias);
      });
      scratch.total_first[c] = of_channel.first;
      scratch.total_second[c] = of_channel.second;
    }
    const Line line = finish(slab.image, slab.begin, scratch.total_first, scratch.total_second);
    for (int64_t c = per_group_; c-- > 0;) {
      const T scale = rstd * weight_[channel + c], bias = bias_[channel + c];
      with_options([&](auto add, auto stream) {
        run_results<T>(pixels, [&](auto vector, int64_t) {
          using V = decltype(vector);
          return result<add.value, stream.value>(slab.offset + c * pixels, slab.ahead, V{} + mean, V{} + scale,
                                                 V{} + bias, V{} + line.slope, V{} + line.constant);
        });
      });
    }
  }

  // dz and dz * d.
  template <class V>
  auto term(int64_t offset, V mean, V scale, V bias) const {
    return [=, x = x_ + offset, dy = dy_ + offset](int64_t i, V& first, V& second) {
      const V d = load<V>(x + i) - mean;
      const V dz = activation_gradient<kActivation>(load<V>(dy + i), d * scale + bias);
      first += dz;
      second += dz * d;
    };
  }

  // Writes dx; fetches what is `ahead`.
  template <bool kAdd, bool kStream, class V>
  auto result(int64_t offset, int64_t ahead, V mean, V scale, V bias, V slope, V constant) const {
    const Stored* const ds = kAdd ? ds_ + offset : nullptr;
    return [=, x = x_ + offset, dy = dy_ + offset, dx = dx_ + offset](int64_t i) {
      prefetch(x + i + ahead);
      prefetch(dy + i + ahead);
      const V d = load<V>(x + i) - mean;
      const V dz = activation_gradient<kActivation>(load<V>(dy + i), d * scale + bias);
      V g = dz * scale + (d * slope + constant);
      if constexpr (kAdd) g += load<V>(ds + i);
      put<kStream>(dx + i, g);
    };
  }

  template <class F>
  void with_options(F f) const {
    if (ds_)
      stream_ ? f(std::true_type{}, std::true_type{}) : f(std::true_type{}, std::false_type{});
    else
      stream_ ? f(std::false_type{}, std::true_type{}) : f(std::false_type{}, std::false_type{});
  }

  // Keeps the image's part of dw and db, given the sums of a group's channels.
  template <class Sum>
  Line finish(int64_t image, int64_t g, const Sum* sum_dz, const Sum* sum_dz_d) const {
    const int64_t group = image * p_.images.groups + g, channel = g * per_group_;
    const double rstd = rstd_[group], count = double(per_group_ * p_.images.pixels);
    T* const __restrict dw = image_dw_.get() + image * p_.images.channels + channel;
    T* const __restrict db = image_db_.get() + image * p_.images.channels + channel;
    for (int64_t c = 0; c < per_group_; ++c) {
      dw[c] = T(sum_dz_d[c] * rstd);
      db[c] = T(sum_dz[c]);
    }
    const Sums weighted = run_sums<double>(per_group_, [&](auto vector, int64_t) {
      using V = decltype(vector);
      return [=, weight = weight_ + channel](int64_t c, V& first, V& second) {
        first += load<V>(weight + c) * load<V>(sum_dz + c);
        second += load<V>(weight + c) * load<V>(sum_dz_d + c);
      };
    });
    return {T(-rstd * rstd * rstd * weighted.second / count), T(-rstd * weighted.first / count)};
  }

  // Sums channels [begin, end) over the images, in their order.
  void over_images(const T* of_images, T* sums, int64_t begin, int64_t end) const {
    double sum[kSumChannels] = {};
    for (int64_t image = 0; image < p_.images.n; ++image)
      add_to(sum, of_images + image * p_.images.channels + begin, end - begin);
    for (int64_t c = begin; c < end; ++c) sums[c] = T(sum[c - begin]);
  }

  const GroupNormBackward p_;
  const int64_t per_group_;
  const Stored *const dy_, *const ds_, *const x_;
  const T *const weight_, *const bias_, *const mean_, *const rstd_;
  Stored* const dx_;
  const std::unique_ptr<T[]> image_dw_, image_db_;
  const bool stream_;
};

}  // namespace

void group_norm_backward(const GroupNormBackward& p, const Parallel& parallel) {
  for_kind(p.images, [&](auto stored, auto activation) {
    Backward<decltype(stored), activation.value>(p).run(parallel);
  });
}

}  // namespace bitfast::BITFAST_ISA

// Weight standardization on the CPU. A row is read from memory once; its sums, the projection, the update and the
// result are swept over it in the cache.
#include "weight_std/weight_std.h"

#include <cmath>

#include "weight_std/rows_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kStreamBytes = 16 << 20;  // results of this size leave the caches before they are read

// Of one row: mean = centre + offset, the second being what the rounding of the first left.
template <class T>
struct Statistics {
  T centre, offset, rstd;

  template <class V>
  V centred(V w) const {
    return (w - centre) - offset;
  }
};

template <class T>
Statistics<T> statistics(const T* w, int64_t width, double eps) {
  const auto [sum] = row_sums<T, 1>(width, [&](int64_t i, auto* sums) {
    using V = std::remove_pointer_t<decltype(sums)>;
    sums[0] += load<V>(w + i);
  });
  const T centre = T(sum / double(width));
  const auto [first, second] = row_sums<T, 2>(width, [&](int64_t i, auto* sums) {
    using V = std::remove_pointer_t<decltype(sums)>;
    const V c = load<V>(w + i) - centre;
    sums[0] += c;
    sums[1] += c * c;
  });
  const double offset = first / double(width), var = second / double(width) - offset * offset;
  return {centre, T(offset), T(1 / std::sqrt(std::max(var, 0.0) + eps))};
}

// g = (d - mean - centred(w) * slope) * rstd.
template <class T>
struct Projection {
  Statistics<T> of_w;
  T mean, slope;

  template <class V>
  V operator()(V d, V w) const {
    return ((d - mean) - of_w.centred(w) * slope) * of_w.rstd;
  }
};

template <class T>
Projection<T> projection(const T* d, const T* w, int64_t width, double eps) {
  const Statistics<T> of_w = statistics(w, width, eps);
  const auto [sum, product] = row_sums<T, 2>(width, [&](int64_t i, auto* sums) {
    using V = std::remove_pointer_t<decltype(sums)>;
    const V x = load<V>(d + i);
    sums[0] += x;
    sums[1] += x * of_w.centred(load<V>(w + i));
  });
  const double rstd = of_w.rstd;
  return {of_w, T(sum / double(width)), T(rstd * rstd * product / double(width))};
}

// One operation on the rows of one tensor.
template <class T>
class RowOf {
 public:
  RowOf(const WeightTensor& tensor, int64_t first, int64_t width, const Workspace& workspace, bool past_caches)
      : t_(tensor),
        first_(first),
        width_(width),
        past_caches_(past_caches),
        w_(workspace.row<T>(0)),
        d_(workspace.row<T>(1)),
        update_(workspace.row<T>(2)),
        spare_(workspace.row<T>(3)) {}

  void standardize() const {
    const T* const w = read(t_.w, w_);
    const Statistics<T> of_w = statistics(w, width_, t_.eps);
    write(t_.w_hat, past_caches_,
          [&](auto v, int64_t i) { return of_w.centred(load<decltype(v)>(w + i)) * of_w.rstd; });
  }

  void project() const {
    const T *const w = read(t_.w, w_), *const d = read(t_.d, d_);
    const Projection<T> to_g = projection(d, w, width_, t_.eps);
    write(t_.g, past_caches_, [&](auto v, int64_t i) {
      using V = decltype(v);
      return to_g(load<V>(d + i), load<V>(w + i));
    });
  }

  void step(const SgdRule& rule) const {
    const T *const w = read(t_.w, w_), *const d = read(t_.d, d_);
    const T lr = T(rule.lr), decay = T(rule.decoupled ? 0 : rule.weight_decay);
    const T shrink = T(rule.decoupled ? rule.weight_decay : 0);
    if (t_.w_hat.data) {
      const Projection<T> to_g = projection(d, w, width_, t_.eps);
      each([&](auto v, int64_t i) {
        using V = decltype(v);
        const V old = load<V>(w + i);
        store(update_ + i, to_g(load<V>(d + i), old) + old * decay);
      });
    } else {
      each([&](auto v, int64_t i) {
        using V = decltype(v);
        store(update_ + i, load<V>(d + i) + load<V>(w + i) * decay);
      });
    }
    if (t_.m.data) add_momentum(T(rule.momentum));
    write(t_.w, false, [&](auto v, int64_t i) {
      using V = decltype(v);
      const V old = load<V>(w + i);
      return old - (load<V>(update_ + i) + old * shrink) * lr;
    });
    if (t_.a.data) move_average(T(1 - rule.ema_decay));
    if (t_.w_hat.data) standardize();
  }

 private:
  const T* read(const Rows& rows, T* buffer) const { return read_row(rows, first_, width_, buffer, spare_); }

  template <class F>
  void write(const Rows& rows, bool past_caches, F value) const {
    write_row(rows, first_, width_, past_caches, d_, spare_, value);
  }

  template <class F>
  void each(F f) const {
    for_each_vector<T>(width_, f);
  }

  // update = momentum * m + update, which is the new m.
  void add_momentum(T momentum) const {
    const T* const m = read(t_.m, d_);
    each([&](auto v, int64_t i) {
      using V = decltype(v);
      store(update_ + i, load<V>(m + i) * momentum + load<V>(update_ + i));
    });
    write(t_.m, false, [&](auto v, int64_t i) { return load<decltype(v)>(update_ + i); });
  }

  // a = a + share * (w - a), of the new w.
  void move_average(T share) const {
    const T *const w = read(t_.w, w_), *const a = read(t_.a, d_);
    each([&](auto v, int64_t i) {
      using V = decltype(v);
      const V old = load<V>(a + i);
      store(update_ + i, old + (load<V>(w + i) - old) * share);
    });
    write(t_.a, false, [&](auto v, int64_t i) { return load<decltype(v)>(update_ + i); });
  }

  const WeightTensor& t_;
  const int64_t first_, width_;
  const bool past_caches_;
  T *const w_, *const d_, *const update_, *const spare_;
};

// f(row) for every row. Results are stored past the caches if there are more of them than the caches hold.
template <class F>
void for_each_typed_row(const WeightTensor* tensors, int64_t count, const Parallel& parallel, F f) {
  int64_t elements = 0;
  for (int64_t t = 0; t < count; ++t) elements += tensors[t].elements;
  const bool past_caches = elements * int64_t(sizeof(float)) >= kStreamBytes;
  auto row = [&](const WeightTensor& tensor, int64_t first, int64_t width, const Workspace& workspace) {
    if (tensor.w.type == StorageType::kFloat64)
      f(RowOf<double>(tensor, first, width, workspace, past_caches));
    else
      f(RowOf<float>(tensor, first, width, workspace, past_caches));
  };
  for_each_row(tensors, count, parallel, row);
}

}  // namespace

void weight_standardize(const WeightTensor* tensors, int64_t count, const Parallel& parallel) {
  for_each_typed_row(tensors, count, parallel, [](const auto& row) { row.standardize(); });
}

void weight_standardize_backward(const WeightTensor* tensors, int64_t count, const Parallel& parallel) {
  for_each_typed_row(tensors, count, parallel, [](const auto& row) { row.project(); });
}

void standardized_sgd_step(const WeightTensor* tensors, int64_t count, const SgdRule& rule, const Parallel& parallel) {
  for_each_typed_row(tensors, count, parallel, [&](const auto& row) { row.step(rule); });
}

}  // namespace bitfast::BITFAST_ISA

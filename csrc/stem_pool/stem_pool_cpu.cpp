// Stem pool on the CPU. A task is one row of the result. Both layouts are images of rows of pixels of `pixel` elements;
// a contiguous tensor is n * channels images of one element a pixel, whose neighbouring windows are two elements apart.
#include "stem_pool/stem_pool.h"

#include <algorithm>
#include <vector>

#include "stem_pool/lanes_cpu.h"

namespace bitfast::BITFAST_ISA {
namespace {

constexpr int64_t kTaskElements = 32 << 10;  // below this a task is not worth a thread

struct Images {
  template <class Parameters>
  explicit Images(const Parameters& p)
      : count(p.channels_last ? p.n : p.n * p.channels),
        pixel(p.channels_last ? p.channels : 1),
        height(p.height),
        width(p.width),
        out_height((p.height + 1) / 2),
        out_width((p.width + 1) / 2) {}

  // Calls f(image, row) for `rows` rows of every image.
  template <class F>
  void for_each_row(const Parallel& parallel, int64_t rows, F f) const {
    for_each_task(parallel, count * rows, kTaskElements / (width * pixel) + 1,
                  [&](int64_t task) { f(task / rows, task % rows); });
  }

  const int64_t count, pixel, height, width, out_height, out_width;
};

// The nine inputs of a window in scan order. Those outside the image point at zeros.
template <class Stored>
struct Window {
  const Stored* taps[9];
};

// The maximum of the window `in` elements on, and who won: of equal inputs the first, and a NaN over everything, as in
// torch. In a contiguous row a vector's windows are two elements apart.
template <bool kChannelsLast, bool kIndex, class V, class Stored>
void maximum(const Window<Stored>& first, int64_t in, Stored* y, uint8_t* index) {
  V best;
  typename Integers<V>::Type winner{};
#pragma GCC unroll 9
  for (int tap = 0; tap < 9; ++tap) {
    V value;
    if constexpr (kChannelsLast || Lanes<V>::count == 1)
      value = load<V>(first.taps[tap] + in);
    else  // the last column is read with the middle one, or the row might be left
      value = tap % 3 == 2 ? load_every_other<true, V>(first.taps[tap - 1] + in)
                           : load_every_other<false, V>(first.taps[tap] + in);
    if (tap == 0) {
      best = value;
      continue;
    }
    const auto is_nan = value != value;
    if constexpr (kIndex) {
      const auto wins = (value > best) | is_nan;
      best = wins ? value : best;
      winner = wins ? decltype(winner){} + tap : winner;
    } else {
      best = value > best ? value : best;  // one instruction
      best = is_nan ? value : best;
    }
  }
  store<V>(y, best);
  if constexpr (kIndex) Integers<V>::store(index, winner);
}

template <class Stored, bool kChannelsLast, bool kIndex>
void forward(const StemPoolForward& p, const Parallel& parallel) {
  using T = Compute<Stored>;
  const Images images(p);
  const int64_t pixel = images.pixel, width = images.width;
  const std::vector<Stored> zeros(width * pixel);
  images.for_each_row(parallel, images.out_height, [&](int64_t image, int64_t oy) {
    const Stored* const x = static_cast<const Stored*>(p.x) + image * images.height * width * pixel;
    const int64_t out = (image * images.out_height + oy) * images.out_width * pixel;
    // `columns` windows from `ox` on, which leave the image at the same sides.
    auto pool = [&](int64_t ox, int64_t columns) {
      Window<Stored> first;
      for (int tap = 0; tap < 9; ++tap) {
        const int64_t iy = 2 * oy - 1 + tap / 3, ix = 2 * ox - 1 + tap % 3;
        const bool inside = iy >= 0 && iy < images.height && ix >= 0 && ix < width;
        first.taps[tap] = inside ? x + (iy * width + ix) * pixel : zeros.data();
      }
      Stored* const y = static_cast<Stored*>(p.y) + out + ox * pixel;
      uint8_t* const index = kIndex ? p.index + out + ox * pixel : nullptr;
      if constexpr (kChannelsLast) {
        for (int64_t i = 0; i < columns * pixel; i += pixel)
          for_each_vector<T>(pixel, [&](auto type, int64_t c) {
            maximum<true, kIndex, decltype(type)>(first, 2 * i + c, y + i + c, index + i + c);
          });
      } else {
        for_each_vector<T>(columns, [&](auto type, int64_t i) {
          maximum<false, kIndex, decltype(type)>(first, 2 * i, y + i, index + i);
        });
      }
    };
    pool(0, 1);
    if (width >= 4) pool(1, width / 2 - 1);
    if (width >= 3 && width % 2) pool(images.out_width - 1, 1);
  });
}

// The windows that an input is in: their gradients and winners, and which tap the input is in each.
template <class Stored>
struct Sources {
  int count = 0;
  const Stored* dy[4];
  const uint8_t* index[4];
  int tap[4];

  // What window w gives to the inputs i elements on, or to their neighbours `right` of them.
  template <class V>
  V part(int w, int64_t i, int right = 0) const {
    return Integers<V>::load(index[w] + i) == tap[w] + right ? load<V>(dy[w] + i) : V{};
  }

  template <class V, int kCount>
  V sum(int64_t i, int right = 0) const {
    V total{};
    for (int w = 0; w < kCount; ++w) total += part<V>(w, i, right);
    return total;
  }
};

// dx of a pixel.
template <int kCount, class Stored>
void pixel_gradient(const Sources<Stored>& of, int64_t channels, Stored* dx) {
  for_each_vector<Compute<Stored>>(channels, [&](auto type, int64_t i) {
    store(dx + i, of.template sum<decltype(type), kCount>(i));
  });
}

// dx of a contiguous row, from the sources of its first element. An even column is in the window of its pair of columns,
// an odd one in the next window too.
template <int kCount, class Stored>
void row_gradient(const Sources<Stored>& of, int64_t width, Stored* dx) {
  using T = Compute<Stored>;
  const int64_t pairs = (width - 1) / 2;
  for_each_vector<T>(pairs, [&](auto type, int64_t i) {
    using V = decltype(type);
    V odd{};
    for (int w = 0; w < kCount; ++w) {
      odd += of.template part<V>(w, i, 1);
      odd += of.template part<V>(w, i + 1, -1);
    }
    store_pairs(dx + 2 * i, of.template sum<V, kCount>(i), odd);
  });
  store(dx + 2 * pairs, of.template sum<T, kCount>(pairs));
  if (width % 2 == 0) store(dx + width - 1, of.template sum<T, kCount>(pairs, 1));
}

template <class Stored, bool kChannelsLast>
void backward(const StemPoolBackward& p, const Parallel& parallel) {
  const Images images(p);
  const int64_t pixel = images.pixel, width = images.width;
  images.for_each_row(parallel, images.height, [&](int64_t image, int64_t iy) {
    Stored* const dx = static_cast<Stored*>(p.dx) + (image * images.height + iy) * width * pixel;
    // Rows and columns alike: an input is in the window i / 2 and, if i is odd, in the next.
    auto sources = [&](int64_t ix) {
      Sources<Stored> of;
      for (int64_t oy = iy / 2; oy <= (iy + 1) / 2 && oy < images.out_height; ++oy)
        for (int64_t ox = ix / 2; ox <= (ix + 1) / 2 && ox < images.out_width; ++ox) {
          const int64_t at = ((image * images.out_height + oy) * images.out_width + ox) * pixel;
          of.dy[of.count] = static_cast<const Stored*>(p.dy) + at;
          of.index[of.count] = p.index + at;
          of.tap[of.count++] = int(3 * (iy - 2 * oy + 1) + ix - 2 * ox + 1);
        }
      return of;
    };
    if constexpr (kChannelsLast) {
      for (int64_t ix = 0; ix < width; ++ix) {
        const Sources<Stored> of = sources(ix);
        switch (of.count) {
          case 1: pixel_gradient<1>(of, pixel, dx + ix * pixel); break;
          case 2: pixel_gradient<2>(of, pixel, dx + ix * pixel); break;
          case 4: pixel_gradient<4>(of, pixel, dx + ix * pixel); break;
        }
      }
    } else {
      const Sources<Stored> of = sources(0);
      of.count == 1 ? row_gradient<1>(of, width, dx) : row_gradient<2>(of, width, dx);
    }
  });
}

template <class Stored>
void forward(const StemPoolForward& p, const Parallel& parallel) {
  if (p.channels_last)
    return p.index ? forward<Stored, true, true>(p, parallel) : forward<Stored, true, false>(p, parallel);
  p.index ? forward<Stored, false, true>(p, parallel) : forward<Stored, false, false>(p, parallel);
}

template <class Stored>
void backward(const StemPoolBackward& p, const Parallel& parallel) {
  p.channels_last ? backward<Stored, true>(p, parallel) : backward<Stored, false>(p, parallel);
}

}  // namespace

void stem_pool_forward(const StemPoolForward& p, const Parallel& parallel) {
  switch (p.type) {
    case StorageType::kFloat32: return forward<float>(p, parallel);
    case StorageType::kFloat64: return forward<double>(p, parallel);
    case StorageType::kBFloat16: return forward<BFloat16>(p, parallel);
  }
}

void stem_pool_backward(const StemPoolBackward& p, const Parallel& parallel) {
  switch (p.type) {
    case StorageType::kFloat32: return backward<float>(p, parallel);
    case StorageType::kFloat64: return backward<double>(p, parallel);
    case StorageType::kBFloat16: return backward<BFloat16>(p, parallel);
  }
}

}  // namespace bitfast::BITFAST_ISA

// What the stem pool needs of vectors: lanes as bytes, every other element, and pairs of elements.
#pragma once

#include "common/vector.h"

namespace bitfast::BITFAST_ISA {
namespace {

// Integers as wide as the lanes of V, kept in memory as bytes.
template <class V, int = Lanes<V>::count>
struct Integers {
  using Type = decltype(V{} > V{});
  using Lane = typename Lanes<Type>::Type;
  static constexpr int count = Lanes<V>::count;

  static Type load(const uint8_t* p) {
#if defined(__AVX512F__)  // gcc 12 takes the bytes apart
    if constexpr (count == 16) return Type(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    if constexpr (count == 8) return Type(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
    Lane lanes[count];
    for (int i = 0; i < count; ++i) lanes[i] = p[i];
    Type v;
    std::memcpy(&v, lanes, sizeof v);
    return v;
  }

  static void store(uint8_t* p, Type v) {
    Lane lanes[count];
    std::memcpy(lanes, &v, sizeof v);
    for (int i = 0; i < count; ++i) p[i] = uint8_t(lanes[i]);
  }

  // offset, offset + step, ...
  static constexpr Type series(int offset, int step) {
    Type v{};
    for (int i = 0; i < count; ++i) v[i] = offset + step * i;
    return v;
  }
};
template <class V>
struct Integers<V, 1> {
  using Type = int;
  static Type load(const uint8_t* p) { return *p; }
  static void store(uint8_t* p, Type v) { *p = uint8_t(v); }
};

// p[0], p[2], ... of two vectors of elements, or p[1], p[3], ...
template <bool kOdd, class V, class Stored>
V load_every_other(const Stored* p) {
  return __builtin_shuffle(load<V>(p), load<V>(p + Lanes<V>::count), Integers<V>::series(kOdd, 2));
}

// even[0], odd[0], even[1], odd[1], ...
template <class V, class Stored>
void store_pairs(Stored* p, V even, V odd) {
  constexpr int lanes = Lanes<V>::count;
  if constexpr (lanes == 1) {
    store<V>(p, even);
    store<V>(p + 1, odd);
  } else {
    auto order = Integers<V>::series(0, 1);
    order = order / 2 + order % 2 * lanes;
    store<V>(p, __builtin_shuffle(even, odd, order));
    store<V>(p + lanes, __builtin_shuffle(even, odd, order + lanes / 2));
  }
}

// Covers [0, count) by calls f(vector or scalar of type T, first element). Elements may be met twice.
template <class T, class F>
void for_each_vector(int64_t count, F f) {
  if (count < kLanes<T>) {
    for (int64_t i = 0; i < count; ++i) f(T{}, i);
    return;
  }
  for (int64_t i = 0; i + kLanes<T> <= count; i += kLanes<T>) f(Vector<T>{}, i);
  if (count % kLanes<T>) f(Vector<T>{}, count - kLanes<T>);
}

}  // namespace
}  // namespace bitfast::BITFAST_ISA

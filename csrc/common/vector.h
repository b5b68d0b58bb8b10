// Short vectors of float or double, and loads and stores that widen and round storage types.
// Everything lives in the namespace of the instruction set it is compiled for, so that no code is shared between them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace bitfast::BITFAST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct BFloat16 {
  uint16_t bits;
};

// The type in which values of a storage type are computed.
template <class Stored>
using Compute = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T>
using Vector [[gnu::vector_size(kVectorBytes)]] = T;

// Lane type and number of lanes of a Vector, or of a plain float or double: code is written once for both.
template <class V>
struct Lanes {
  using Type = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
  static constexpr int count = sizeof(V) / sizeof(Type);
};
template <>
struct Lanes<float> {
  using Type = float;
  static constexpr int count = 1;
};
template <>
struct Lanes<double> {
  using Type = double;
  static constexpr int count = 1;
};

template <class V>
using Bits [[gnu::vector_size(sizeof(V))]] = uint32_t;
template <class V>
using HalfBits [[gnu::vector_size(sizeof(V) / 2)]] = uint16_t;
template <class V>
using HalfFloats [[gnu::vector_size(sizeof(V) / 2)]] = float;

// Widens bfloat16 to float, and float to double where V is of double.
template <class V, class Stored>
inline V load(const Stored* p) {
  V v;
  if constexpr (std::is_same_v<Stored, float> && std::is_same_v<typename Lanes<V>::Type, double>) {
    if constexpr (Lanes<V>::count == 1) {
      v = *p;
    } else {
      HalfFloats<V> half;
      std::memcpy(&half, p, sizeof half);
      v = __builtin_convertvector(half, V);
    }
  } else if constexpr (!std::is_same_v<Stored, BFloat16>) {
    std::memcpy(&v, p, sizeof v);
  } else if constexpr (Lanes<V>::count == 1) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    std::memcpy(&v, &bits, sizeof v);
  } else {
    HalfBits<V> half;
    std::memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)  // gcc 12 makes four instructions of the conversion
    const Bits<V> bits = Bits<V>(_mm512_cvtepu16_epi32(__m256i(half))) << 16;
#elif defined(__AVX2__)
    const Bits<V> bits = Bits<V>(_mm256_cvtepu16_epi32(__m128i(half))) << 16;
#else
    const Bits<V> bits = __builtin_convertvector(half, Bits<V>) << 16;
#endif
    std::memcpy(&v, &bits, sizeof v);
  }
  return v;
}

// Rounds to nearest even; a NaN stays a NaN.
template <class U>
inline U bfloat16_bits(U bits) {
  const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded;
}

template <class V, class Stored>
inline void store(Stored* p, V v) {
  if constexpr (!std::is_same_v<Stored, BFloat16>) {
    std::memcpy(p, &v, sizeof v);
  } else if constexpr (Lanes<V>::count == 1) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    p->bits = uint16_t(bfloat16_bits(bits));
  } else {
    Bits<V> bits;
    std::memcpy(&bits, &v, sizeof bits);
    const HalfBits<V> half = __builtin_convertvector(bfloat16_bits(bits), HalfBits<V>);
    std::memcpy(p, &half, sizeof half);
  }
}

// v as it reads after it has been stored.
template <class Stored, class V>
inline V rounded(V v) {
  if constexpr (!std::is_same_v<Stored, BFloat16>) {
    return v;
  } else if constexpr (Lanes<V>::count == 1) {
    BFloat16 stored;
    store<V>(&stored, v);
    return load<V>(&stored);
  } else {
    Bits<V> bits;
    std::memcpy(&bits, &v, sizeof bits);
    bits = bfloat16_bits(bits) << 16;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  }
}

// Brings the line of `p`, which need not be readable, into the second-level cache.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// A store that leaves the line out of the caches; `p` is aligned to the bytes stored.
template <class V, class Stored>
inline void stream(Stored* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    alignas(64) Stored rounded[Lanes<V>::count];
    store<V>(rounded, v);
    if constexpr (sizeof rounded == 64)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(p), _mm512_load_si512(rounded));
    else
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_load_si256(reinterpret_cast<const __m256i*>(rounded)));
    return;
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    alignas(32) Stored rounded[Lanes<V>::count];
    store<V>(rounded, v);
    if constexpr (sizeof rounded == 32)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_load_si256(reinterpret_cast<const __m256i*>(rounded)));
    else
      _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm_load_si128(reinterpret_cast<const __m128i*>(rounded)));
    return;
  }
#endif
  store<V>(p, v);
}

// Orders streamed stores before whatever tells other threads that they are done.
inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// max(0, z) in the order of operands that hands a NaN on.
template <class V>
using HalfOf [[gnu::vector_size(sizeof(V) / 2)]] = typename Lanes<V>::Type;

// The sum of the lanes, by halves.
template <class V>
inline typename Lanes<V>::Type lane_sum(V v) {
  if constexpr (Lanes<V>::count == 2) {
    return v[0] + v[1];
  } else if constexpr (Lanes<V>::count == 4) {
    return (v[0] + v[1]) + (v[2] + v[3]);
  } else {
    HalfOf<V> halves[2];
    std::memcpy(halves, &v, sizeof v);
    return lane_sum(halves[0] + halves[1]);
  }
}

template <class V>
inline V relu(V z) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vector<float>>) return _mm512_max_ps(V{}, z);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vector<float>>) return _mm256_max_ps(V{}, z);
#endif
  return z < 0 ? V{} : z;
}

// The gradient at z, given that at relu(z).
template <class V>
inline V relu_gradient(V dy, V z) {
  return z <= 0 ? V{} : dy;
}

template <class V>
inline V silu(V z) {
  if constexpr (Lanes<V>::count == 1) {
    return z / (1 + std::exp(-z));
  } else {
    for (int i = 0; i < Lanes<V>::count; ++i) z[i] = z[i] / (1 + std::exp(-z[i]));
    return z;
  }
}

// The gradient at z, given that at silu(z).
template <class V>
inline V silu_gradient(V dy, V z) {
  V sigmoid;
  if constexpr (Lanes<V>::count == 1)
    sigmoid = 1 / (1 + std::exp(-z));
  else
    for (int i = 0; i < Lanes<V>::count; ++i) sigmoid[i] = 1 / (1 + std::exp(-z[i]));
  return dy * sigmoid * (1 + z * (1 - sigmoid));
}

}  // namespace bitfast::BITFAST_ISA

// Kernels are compiled once per instruction set, each in a namespace of that name, and chosen when they are called.
#pragma once

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace bitfast {

enum class Isa { kBaseline, kAvx2, kAvx512 };

#if defined(__x86_64__)
inline Isa best_isa() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kBaseline;
  for (bool has : {__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                   __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl")})
    if (!has) return Isa::kAvx2;
  return Isa::kAvx512;
}
#else
inline Isa best_isa() { return Isa::kBaseline; }
#endif

// The machine's best, or a lesser one that BITFAST_CPU_ISA names.
inline Isa chosen_isa() {
  static const Isa chosen = [] {
    const char* const wanted = std::getenv("BITFAST_CPU_ISA");
    if (!wanted) return best_isa();
    const char* const names[] = {"baseline", "avx2", "avx512"};
    for (int i = 0; i < 3; ++i)
      if (!std::strcmp(wanted, names[i]) && Isa(i) <= best_isa()) return Isa(i);
    throw std::runtime_error(std::string("BITFAST_CPU_ISA is '") + wanted +
                             "'; it must be one of baseline, avx2, avx512 that this machine has: unset it");
  }();
  return chosen;
}

}  // namespace bitfast

#if defined(__x86_64__)
#define BITFAST_DECLARE_KERNEL(...)   \
  namespace baseline { __VA_ARGS__; } \
  namespace avx2 { __VA_ARGS__; }     \
  namespace avx512 { __VA_ARGS__; }
#define BITFAST_KERNEL(name)                                                                 \
  (bitfast::chosen_isa() == bitfast::Isa::kAvx512 ? bitfast::avx512::name                    \
   : bitfast::chosen_isa() == bitfast::Isa::kAvx2 ? bitfast::avx2::name                      \
                                                  : bitfast::baseline::name)
#else
#define BITFAST_DECLARE_KERNEL(...) \
  namespace baseline { __VA_ARGS__; }
#define BITFAST_KERNEL(name) bitfast::baseline::name
#endif

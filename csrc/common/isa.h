// Kernels are compiled once per instruction set, each in a namespace of that name, and chosen when they are called.
#pragma once

#if defined(__x86_64__)
#define BITFAST_DECLARE_KERNEL(...)   \
  namespace baseline { __VA_ARGS__; } \
  namespace avx2 { __VA_ARGS__; }
#define BITFAST_KERNEL(name) \
  (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2::name : baseline::name)
#else
#define BITFAST_DECLARE_KERNEL(...) \
  namespace baseline { __VA_ARGS__; }
#define BITFAST_KERNEL(name) baseline::name
#endif

// The instruction set of the kernels, for programs that report it.
#include "common/isa.h"

// Its name; null if BITFAST_CPU_ISA names none that this machine has.
extern "C" __attribute__((visibility("default"))) const char* bitfast_isa() {
  const char* const names[] = {"baseline", "avx2", "avx512"};
  try {
    return names[int(bitfast::chosen_isa())];
  } catch (const std::runtime_error&) {
    return nullptr;
  }
}

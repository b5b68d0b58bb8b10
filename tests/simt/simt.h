// What tests choose of the GPU that is not there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

struct Settings {
  uint32_t schedule = 0;                 // the order of threads and blocks
  size_t shared_per_block = 227 << 10;  // bytes
  int capability = 9;                    // both those of an H200
};

void set(const Settings&);

}  // namespace simt

// torch.ops.bitfast_simt.settings: what tests choose of the GPU that is not there.
#include <torch/csrc/stable/library.h>

#include "simt.h"

namespace {

void settings(int64_t schedule, int64_t shared_per_block, int64_t capability) {
  simt::set({uint32_t(schedule), size_t(shared_per_block), int(capability)});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_simt, m) {
  m.def("settings(int schedule, int shared_per_block, int capability) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(bitfast_simt, CompositeExplicitAutograd, m) { m.impl("settings", TORCH_BOX(&settings)); }

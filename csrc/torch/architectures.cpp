// torch.ops.bitfast_cuda.architectures: the compute capabilities that the CUDA kernels of this library are compiled for.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

std::string architectures() { return BITFAST_CUDA_ARCHITECTURES; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitfast_cuda, m) { m.def("architectures() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(bitfast_cuda, CompositeExplicitAutograd, m) {
  m.impl("architectures", TORCH_BOX(&architectures));
}

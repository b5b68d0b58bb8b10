# bitfast is imported where it is used: Triton, which it imports, wants to be told of the interpreter first.
import os
from importlib.util import find_spec

import pytest
import torch

# There is no triton for macOS.
collect_ignore_glob = (
    [] if find_spec("triton") else ["*_triton.py", "*_cuda.py", "test_simt.py", "test_static_report.py"]
)


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Small tensors on many threads only wait for each other; the tests of several threads say so."""
    threads(1)


@pytest.fixture(scope="session")
def on_host():
    """The CUDA kernels, compiled for the host, take CPU tensors."""
    from simt.build import library

    os.environ.setdefault("BITFAST_SIMT", str(library()))


@pytest.fixture
def on_gpu():
    """The CUDA kernels on a GPU; a library that is built without them has none to test."""
    from bitfast.ops import _cuda

    if _cuda.missing():
        pytest.skip(_cuda.missing())


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def cuda_device(request):
    """Where CUDA kernels run: on the host, behind tests/simt, and in the lane `-m gpu` on a GPU."""
    request.getfixturevalue("on_host" if request.param == "cpu" else "on_gpu")
    return torch.device(request.param)


@pytest.fixture
def settings(on_host):
    """Sets the order in which threads and blocks run on the host, and which GPU it is; put back after the test."""
    from bitfast.ops import _cuda
    from bitfast.ops.group_norm.op import slab_objection

    assert _cuda.supports(torch.empty(0)) == ""

    def choose(schedule=0, shared_per_block=227 << 10, capability=9):
        torch.ops.bitfast_simt.settings(schedule, shared_per_block, capability)
        slab_objection.cache_clear()

    yield choose
    choose()

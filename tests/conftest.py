"""What every test runs under."""

import os

import pytest
import torch


def pytest_configure(config):
    """Triton kernels run on CPU tensors, through Triton's interpreter; with `-m gpu` they are compiled and run on the
    GPU. Triton wants to know before it is imported."""
    expression = config.option.markexpr
    on_gpu = "gpu" in expression and "not gpu" not in expression
    os.environ["TRITON_INTERPRET"] = "0" if on_gpu else "1"


@pytest.fixture(autouse=True)
def poisoned_memory():
    """`torch.empty` is filled with NaN, so that reading what was never written is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Scans and downloads are cached in a folder of the test run, also by programs that tests start."""
    os.environ["BITFAST_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, alone or in a suite."""
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets torch's number of threads; put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request):
    """Where Triton kernels run: on the CPU through the interpreter, and in the lane `-m gpu` compiled, on a GPU."""
    return torch.device(request.param)


@pytest.fixture
def quick_estimates(monkeypatch):
    """A plan's timings, which need not be right."""
    from bitfast import cost

    monkeypatch.setattr(cost, "BLOCK_SECONDS", 0)
    monkeypatch.setattr(cost, "BLOCK_MACS", 1e7)

from importlib.util import find_spec

import pytest

# There is no triton for macOS.
collect_ignore_glob = [] if find_spec("triton") else ["*_triton.py", "test_static_report.py"]


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Small tensors on many threads only wait for each other; the tests of several threads say so."""
    threads(1)

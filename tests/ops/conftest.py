import pytest


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Small tensors on many threads only wait for each other; the tests of several threads say so."""
    threads(1)

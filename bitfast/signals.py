"""Stopping on a signal: at once while nothing would be lost, else when the run says so."""

import signal
import threading
import time
from contextlib import contextmanager

from .errors import Interrupted
from .runtime import in_group, say

# Ctrl-C, what schedulers send first, and what Slurm sends with --signal=USR1 (not on Windows).
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
# A scheduler may signal every process of a job, and the launcher passes on what it gets: within so many seconds, under
# a launcher, that is one signal.
PASSED_ON = 5


class Stop:
    """Whether a signal has asked the run to stop.

    Outside of `deferred` the first signal raises Interrupted wherever the main thread is; inside, it only sets the
    flag, and who is between two steps or two batches looks at `is_set()`.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._deferred = False

    def is_set(self):
        """Whether a signal came."""
        return self._asked.is_set()

    @contextmanager
    def deferred(self):
        """While inside, a signal interrupts nothing."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number):
        self._asked.set()
        name = signal.Signals(number).name
        if not self._deferred:
            raise Interrupted(f"stopped by {name}, nothing is lost: the same command with --resume goes on")
        say(f"{name}: stopping after this step or batch, then saving; a second signal stops at once")


@contextmanager
def stop_signals():
    """Yields the Stop of SIGINT, SIGTERM and SIGUSR1; after the first one they act as before, so a second one kills;
    under a launcher, where one may come twice, after a while.

    Off the main thread, where Python takes no signals, it stays unset.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    first = None
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number, frame):
        nonlocal first
        if first is None:
            first = time.monotonic()
            if not in_group():
                restore()
            stop._on_signal(number)
        elif time.monotonic() - first > PASSED_ON:
            restore()
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()

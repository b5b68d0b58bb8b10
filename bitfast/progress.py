"""Progress lines: live on a terminal, one plain line every ten seconds elsewhere."""

import time
from collections import deque
from contextlib import contextmanager

from rich.console import Console

from .runtime import is_main, is_quiet, say

WINDOW = 20
PLAIN_EVERY_SECONDS = 10


class Progress:
    """Turns StepResults into lines with images/s, share of time spent waiting for images, and time left."""

    def __init__(self, total, show):
        self.total, self._show = total, show
        self._recent = deque(maxlen=WINDOW)

    def update(self, result):
        """Show the state after this step; returns (images_per_second, data_wait share) over the last steps."""
        self._recent.append(result)
        seconds = sum(r.seconds for r in self._recent)
        rate = sum(r.images for r in self._recent) / seconds
        wait = sum(r.wait_seconds for r in self._recent) / seconds
        left = (self.total - result.step - 1) * seconds / len(self._recent)
        self._show(
            f"step {result.step + 1}/{self.total}  loss {result.loss:.4f}  lr {result.lr:.2g}  {rate:.0f} images/s"
            f"  data-wait {wait:.0%}  ETA {_clock(left)}"
        )
        return rate, wait


@contextmanager
def progress(total):
    """A Progress over `total` steps on stderr."""
    with _line() as show:
        yield Progress(total, lambda line: show(line, line.startswith(f"step {total}/")))


@contextmanager
def live(total, done, things):
    """Yields a function that takes how many of `total` things are done, for a line such as "checked 3 of 9 images"."""
    began = time.monotonic()
    with _line() as show:

        def update(count):
            rate = count / max(time.monotonic() - began, 1e-9)
            left = _clock((total - count) / rate) if count else "?"
            show(f"{done} {count:,} of {total:,} {things}  {rate:.0f}/s  ETA {left}")

        yield update


@contextmanager
def _line():
    """Yields show(line, now=False); elsewhere than on a terminal `now` shows it whatever the time."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal and is_main() and not is_quiet():
        with console.status("starting") as status:
            yield lambda line, now=False: status.update(line)
        return
    last = time.monotonic()

    def plain(line, now=False):
        nonlocal last
        if now or time.monotonic() - last >= PLAIN_EVERY_SECONDS:
            last = time.monotonic()
            say(line)

    yield plain


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

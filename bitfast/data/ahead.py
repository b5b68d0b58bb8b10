"""Work on the rows of coming requests in threads, while the present one is used."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

AHEAD = 2  # requests


def ahead(items, work, *, threads):
    """Iterate over (item, [work(item, row) for row in range(len(item))]), up to AHEAD items before they are asked for.

    Each thread takes every threads-th row, so what comes out does not depend on their number.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="bitfast-input")
    pending = deque()

    def part(item, first):
        return [work(item, row) for row in range(first, len(item), threads)]

    def collected():
        item, parts = pending.popleft()
        results = [None] * len(item)
        for first, future in enumerate(parts):
            results[first::threads] = future.result()
        return item, results

    try:
        for item in items:
            pending.append((item, [pool.submit(part, item, first) for first in range(min(threads, len(item)))]))
            if len(pending) > AHEAD:
                yield collected()
        while pending:
            yield collected()
    finally:
        pool.shutdown(cancel_futures=True)

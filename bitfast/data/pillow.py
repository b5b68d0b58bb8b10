"""The reference engine: Pillow decodes. Also the engine where there is no DALI."""

from contextlib import closing

from bitfast.data.ahead import ahead


def read(source, transform, batches, *, largest, device, threads):
    """Iterate over the Rows in `batches`, filled. Each of the `threads` workers decodes and resamples its own rows."""
    with closing(ahead(batches, lambda batch, row: batch.decode(source, row), threads=threads)) as filled:
        for batch, _ in filled:
            yield batch

"""The DALI engine, fed with encoded images by our sampler.

On a CPU DALI decodes and our own kernel resamples (`ops.resample`): DALI's resize alone takes longer than decoding
(benchmarks/RESULTS.md). On a GPU one graph does it all. DALI decides nothing here: no reader, no shuffling, no random
operator. Whoever changes `_graph` keeps it within 2/255 of `ops.resample`.
"""

import io
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from bitfast.data import header
from bitfast.data.ahead import ahead
from bitfast.data.rows import Rows

DEPTH = 3  # chunks that DALI works on before they are asked for
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # of decoded pixels in one of them

_FILTERS = {
    "nearest": types.INTERP_NN,
    "bilinear": types.INTERP_LINEAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows of one batch that DALI decodes in one run: their encoded images, and their sizes (n, 2) as displayed."""

    batch: Rows
    rows: list[int]
    encoded: list[bytes]
    sizes: list[tuple[int, int]]
    last: bool  # of its batch


def read(source, transform, batches, *, largest, device, threads, resize=None):
    """Iterate over the Rows in `batches`, filled.

    Threads read the images, and decode those at once that DALI would decode otherwise than Pillow (`header`). A
    pipeline is unusable after an error: what was in flight then is decoded by Pillow, which knows the reason, and a new
    pipeline goes on.

    resize  whether DALI resamples too; default: on a GPU
    """
    resize = device.type == "cuda" if resize is None else resize
    fetched = ahead(batches, lambda batch, row: _fetch(source, batch, row), threads=threads)
    chunks = _chunks(fetched, CHUNK_BYTES[device.type])
    in_flight, failures = deque(), []
    placeholder = _placeholder()

    def feed():
        try:
            chunk = next(chunks)
        except BaseException as error:
            failures.append(error)
            raise
        in_flight.append(chunk)
        encoded = [np.frombuffer(content, dtype=np.uint8) for content in chunk.encoded or [placeholder]]
        return (encoded, *_anchors(chunk, transform)) if resize else (encoded,)

    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    pipeline = None
    try:
        while True:
            pipeline = pipeline or _graph(feed, transform if resize else None, largest, device, threads)
            try:
                (output,) = pipeline.run(stream)
            except StopIteration:
                return
            except RuntimeError:
                if failures and not isinstance(failures[0], StopIteration):
                    raise failures[0] from None
                pipeline, done = None, list(in_flight)
                in_flight.clear()
                for chunk in done:
                    for row, content in zip(chunk.rows, chunk.encoded, strict=True):
                        chunk.batch.decode(source, row, content)
            else:
                done = [in_flight.popleft()]
                _take(done[0], output, resize)
            yield from (chunk.batch for chunk in done if chunk.last)
    finally:
        fetched.close()


def _fetch(source, batch, row):
    """(bytes, size) of an image that is left to DALI; None once the row is filled, or known to be unreadable."""
    content = batch.fetch(source, row)
    size = header.dali_size(content) if isinstance(content, bytes) else None
    if size is not None and size[0] * size[1] <= (Image.MAX_IMAGE_PIXELS or math.inf):
        return content, size
    if content is not None:
        batch.decode(source, row, content)
    return None


def _chunks(fetched, limit_bytes):
    for batch, found in fetched:
        rows, used = [], 0
        for row, item in enumerate(found):
            if item is None:
                continue
            height, width = item[1]
            if rows and used + 3 * height * width > limit_bytes:
                yield _chunk(batch, rows, found, last=False)
                rows, used = [], 0
            rows.append(row)
            used += 3 * height * width
        yield _chunk(batch, rows, found, last=True)


def _chunk(batch, rows, found, last):
    return _Chunk(batch, rows, [found[row][0] for row in rows], [found[row][1] for row in rows], last)


def _graph(feed, transform, largest, device, threads):
    """decode, and with a transform -> box -> resize -> window, flip and normalise.

    HWC, so that the NCHW view of the output is channels_last.
    """
    on_gpu = device.type == "cuda"
    device_id = (torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None
    pipeline = Pipeline(
        batch_size=largest, num_threads=threads, device_id=device_id, prefetch_queue_depth=DEPTH, exec_dynamic=True
    )
    kinds = [(types.UINT8, 1)]
    if transform:
        kinds += [(types.FLOAT, 1), (types.FLOAT, 0), (types.FLOAT, 0), (types.INT32, 0)]
        kinds += [(types.INT32, 1)] * 2 * (transform.geometry == "inception")
    with pipeline:
        encoded, *anchors = fn.external_source(
            source=feed, num_outputs=len(kinds), dtype=[kind for kind, _ in kinds], ndim=[ndim for _, ndim in kinds]
        )
        image = fn.decoders.image(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=True,
            jpeg_fancy_upsampling=True,
        )
        pipeline.set_outputs(_resampled(image, transform, *anchors) if transform else image)
    return pipeline


def _resampled(image, transform, size, top, left, flip, corner=None, box=None):
    if corner is not None:
        image = fn.slice(image, start=corner, shape=box, axis_names="HW")
    image = fn.resize(
        image, size=size, interp_type=_FILTERS[transform.interpolation], antialias=True, subpixel_scale=True
    )
    return fn.crop_mirror_normalize(
        image,
        crop=(transform.crop, transform.crop),
        crop_pos_y=top,
        crop_pos_x=left,
        mirror=flip,
        mean=[transform.mean] * 3,
        std=[transform.std] * 3,
        dtype=types.FLOAT,
        output_layout="HWC",
    )


def _anchors(chunk, transform):
    """What `_resampled` takes per sample. DALI's offsets are fractions: round(k / margin * margin) gives k back."""
    windows = [chunk.batch.window(row, *size) for row, size in zip(chunk.rows, chunk.sizes, strict=True)]
    windows = np.array(windows or [(0, 0, 1, 1, transform.crop, transform.crop, 0, 0, 0)], dtype=np.int64)
    margins = np.maximum(windows[:, 4:6] - transform.crop, 1)
    top, left = (windows[:, 6:8] / margins).astype(np.float32).T.copy()
    anchors = windows[:, 4:6].astype(np.float32), top, left, windows[:, 8].astype(np.int32)
    corner_and_box = windows[:, 0:2].astype(np.int32), windows[:, 2:4].astype(np.int32)
    return anchors + corner_and_box if transform.geometry == "inception" else anchors


def _take(chunk, output, resized):
    if not chunk.rows:
        return
    if resized:
        chunk.batch.put_finished(chunk.rows, torch.from_dlpack(output.as_tensor()))
    else:
        chunk.batch.put(chunk.rows, [np.asarray(output[i]) for i in range(len(chunk.rows))])


def _placeholder():
    """An encoded image of one pixel: what DALI is given where a batch has nothing for it."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "JPEG")
    return file.getvalue()

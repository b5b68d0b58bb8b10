"""The reference engine: Pillow decodes and resizes, torch normalises. Also the engine where there is no DALI."""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from bitfast.data import decode

AHEAD = 2

# the Pillow filter, and how far it reaches in px of the smaller image
_FILTERS = {"bilinear": (Image.Resampling.BILINEAR, 1)}


def read(source, transform, requests, *, largest, device, threads):
    """Iterate over the normalised images of each request; `loader.images` has the contract.

    Each of the `threads` workers fills its own rows, so the result does not depend on their number. Requests are
    decoded up to AHEAD ahead of the one that is yielded.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="bitfast-pillow")
    pending = deque()
    try:
        for request in requests:
            pending.append(_submit(pool, threads, source, transform, request))
            if len(pending) > AHEAD:
                yield _collect(source, *pending.popleft(), transform, device)
        while pending:
            yield _collect(source, *pending.popleft(), transform, device)
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool, threads, source, transform, request):
    pixels = np.empty((len(request), transform.crop, transform.crop, 3), dtype=np.uint8)
    rows = [range(first, len(request), threads) for first in range(threads)]
    return pixels, [pool.submit(_fill, pixels, part, source, transform, request) for part in rows]


def _fill(pixels, rows, source, transform, request):
    """Decode some rows of a request; returns {position in the source: reason} of those that cannot be read."""
    found = {}
    for row in rows:
        index = int(request.indices[row])
        try:
            image = decode.rgb(decode.load(source, index))
        except decode.Unreadable as error:
            found[index] = str(error)
            continue
        y, x = request.crop_y[row], request.crop_x[row]
        window = np.asarray(_square(image, transform))[y : y + transform.crop, x : x + transform.crop]
        pixels[row] = window[:, ::-1] if request.flip[row] else window
    return found


def _square(image, transform):
    """The image resized to a square as DALI does it: where the filter reaches over the border, the edge is repeated.

    Pillow alone drops what lies outside, up to 18/255 apart from DALI in the outer rows of white noise (measured);
    with the border added it is 1/255 everywhere.
    """
    resample, radius = _FILTERS[transform.interpolation]
    edge = transform.resize
    if max(image.size) <= edge:
        return image.resize((edge, edge), resample)
    wide, high = (math.ceil(radius * max(1, length / edge)) for length in image.size)
    padded = Image.fromarray(np.pad(np.asarray(image), ((high, high), (wide, wide), (0, 0)), mode="edge"))
    return padded.resize((edge, edge), resample, box=(wide, high, wide + image.width, high + image.height))


def _collect(source, pixels, parts, transform, device):
    found = {index: why for part in parts for index, why in part.result().items()}
    if found:
        raise decode.unreadable(source, dict(sorted(found.items())))
    values = torch.from_numpy(pixels).to(device).float()
    return values.sub_(transform.mean).mul_(1 / transform.std).permute(0, 3, 1, 2)

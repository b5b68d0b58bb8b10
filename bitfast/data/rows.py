"""One request on its way: decoded images become the rows of its batch."""

import threading

import numpy as np
import torch

from bitfast.data import decode
from bitfast.ops import resample


class Rows:
    """The batch of one request: (B, crop, crop, 3), in host memory until `finish` hands it over.

    bad  {row: why} of the images that could not be read
    """

    def __init__(self, request, transform, dtype):
        self.request, self.transform, self.bad = request, transform, {}
        self._dtype, self._host, self._finished = dtype, None, None
        self._lock = threading.Lock()

    def __len__(self):
        return len(self.request)

    def index(self, row):
        """The position in the source."""
        return int(self.request.indices[row])

    def window(self, row, height, width):
        """What `ops.resample` takes of an image of this size for this row."""
        r = self.request
        attempts = None if r.attempts is None else r.attempts[row]
        return *self.transform.window(height, width, r.crop_y[row], r.crop_x[row], attempts), int(r.flip[row])

    def put(self, rows, images):
        """Resample decoded images, uint8 (H, W, 3), into these rows."""
        windows = [self.window(row, *image.shape[:2]) for row, image in zip(rows, images, strict=True)]
        windows = np.array(windows, dtype=np.int64).reshape(-1, 9)
        first, count = (rows[0], len(rows)) if len(rows) else (0, 0)
        adjacent = list(rows) == list(range(first, first + count))
        host = self._in_host_memory()
        out = host[first : first + count] if adjacent else torch.empty_like(host[: len(rows)])
        t = self.transform
        resample(images, windows, out, interpolation=t.interpolation, mean=t.mean, std=t.std)
        if not adjacent:
            host[torch.as_tensor(rows)] = out

    def fetch(self, source, row):
        """What the source has for a row: encoded bytes or pixels; None, and the row is bad, if it cannot be read."""
        try:
            return decode.read(source, self.index(row))
        except decode.Unreadable as error:
            self.bad[row] = str(error)
            return None

    def decode(self, source, row, content=None):
        """Fill a row by way of Pillow, from what `fetch` gave if that is at hand."""
        content = self.fetch(source, row) if content is None else content
        if content is None:
            return
        try:
            self.put([row], [decode.pixels(content)])
        except decode.Unreadable as error:
            self.bad[row] = str(error)

    def put_finished(self, rows, values):
        """Rows that an engine has resampled and normalised itself: fp32 (n, crop, crop, 3) on its device."""
        if len(rows) == len(self):
            self._finished = values
        else:
            if self._finished is None:
                self._finished = self._moved(values.device, normalise=True)
            self._finished[torch.as_tensor(rows, device=values.device)] = values

    def finish(self, device, *, normalise):
        """The (B, crop, crop, 3) batch on the device; rows of bytes are normalised there, unless they are asked for."""
        return self._moved(device, normalise) if self._finished is None else self._finished

    def _in_host_memory(self):
        """The rows, made when the first is filled: batches that only wait for their turn take no memory."""
        with self._lock:
            if self._host is None:
                shape = (len(self), self.transform.crop, self.transform.crop, 3)
                self._host = torch.empty(shape, dtype=self._dtype)
            return self._host

    def _moved(self, device, normalise):
        values = self._in_host_memory().to(device)
        if values.dtype != torch.uint8 or not normalise:
            return values
        return values.float().sub_(self.transform.mean).mul_(1 / self.transform.std)

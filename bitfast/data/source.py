"""Where images come from: files, arrays, datasets of the user, shards; one small interface."""

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict

import numpy as np

from bitfast.data import decode


class Source(ABC):
    """A sequence of images, without labels. It holds names, offsets or references, never pixels it made itself.

    len(source)            how many
    source.name(i)         str that tells a person which one: a path, "shard-000.tar:000123.jpg", "images[17]"
    source.read(i)         bytes of an image file, or uint8 (H, W, C) with C from 1 to 4 where nothing is encoded
    source.size(i)         bytes that read(i) will give, known without reading; None if only reading tells
    source.stamp(i)        (name, bytes, mtime in ns) that changes when the image does; None if nothing tells
    source.take(indices)   the Source of those, in that order

    read may be called from several threads at once, and raises OSError where the image is gone or forbidden. Sources
    can be pickled if what they refer to can.
    """

    @abstractmethod
    def __len__(self): ...

    @abstractmethod
    def name(self, i): ...

    @abstractmethod
    def read(self, i): ...

    def size(self, i):
        return None

    def stamp(self, i):
        return None

    def take(self, indices):
        return Chosen(self, np.asarray(indices, dtype=np.int64))


class Chosen(Source):
    """Some of another source's images."""

    def __init__(self, source, indices):
        self.source, self.indices = source, indices

    def __len__(self):
        return len(self.indices)

    def name(self, i):
        return self.source.name(self.indices[i])

    def read(self, i):
        return self.source.read(self.indices[i])

    def size(self, i):
        return self.source.size(self.indices[i])

    def stamp(self, i):
        return self.source.stamp(self.indices[i])

    def take(self, indices):
        return Chosen(self.source, self.indices[indices])


class Files(Source):
    """Image files; paths are made absolute."""

    def __init__(self, paths):
        self.paths = tuple(os.path.abspath(path) for path in paths)

    def __len__(self):
        return len(self.paths)

    def path(self, i):
        return self.paths[i]

    name = path

    def read(self, i):
        return read_file(self.paths[i])

    def size(self, i):
        return os.stat(self.paths[i]).st_size

    def stamp(self, i):
        status = os.stat(self.paths[i])
        return self.paths[i], status.st_size, status.st_mtime_ns

    def take(self, indices):
        return Files(self.paths[i] for i in indices)


class Named(Files):
    """Image files that are called as their paths were written."""

    def __init__(self, paths):
        self.written = tuple(map(os.fspath, paths))
        super().__init__(self.written)

    def name(self, i):
        return self.written[i]

    def take(self, indices):
        return Named(self.written[i] for i in indices)


class Arrays(Source):
    """Pixels in memory: uint8 (N, H, W, C) or (N, H, W), or a sequence of such images of any sizes."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def name(self, i):
        return f"images[{i}]"

    def read(self, i):
        return pixels(self.images[i])


class Mapped(Source):
    """The images of a map-style dataset; `get(item)` picks the image out of one of its items.

    An image may be encoded bytes, a path, a PIL image, or uint8 (H, W, C) or (H, W). Datasets are not made for threads,
    so one item is asked for at a time.
    """

    def __init__(self, dataset, get):
        self.dataset, self.get = dataset, get
        self._lock = threading.Lock()

    def __len__(self):
        return len(self.dataset)

    def name(self, i):
        return f"dataset[{i}]"

    def read(self, i):
        with self._lock:
            image = self.get(self.dataset[int(i)])
        if isinstance(image, (str, os.PathLike)):
            return read_file(image)
        return bytes(image) if isinstance(image, (bytes, bytearray)) else pixels(image)

    def __getstate__(self):
        return {"dataset": self.dataset, "get": self.get}

    def __setstate__(self, state):
        self.__init__(**state)


class Mixed(Source):
    """A list of images of any kinds: paths, which are their own names, PIL images, uint8 arrays, encoded bytes."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def name(self, i):
        image = self.images[i]
        return os.path.abspath(image) if isinstance(image, (str, os.PathLike)) else f"images[{i}]"

    def read(self, i):
        image = self.images[i]
        if isinstance(image, (str, os.PathLike)):
            return read_file(image)
        return bytes(image) if isinstance(image, (bytes, bytearray)) else pixels(image)


def read_file(path):
    """The bytes of an image file. Raises OSError, or decode.Unreadable on what is no file or too large to be one."""
    with open(path, "rb", opener=_without_waiting) as file:
        decode.require_file(os.fstat(file.fileno()))
        return file.read()


def _without_waiting(path, flags):
    """Opens a named pipe too at once, so that it can be seen to be one."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class Shards(Source):
    """Encoded images inside larger files: `length[i]` bytes from `offset[i]` on of `paths[shard[i]]`.

    Names are "SHARD:MEMBER". A shard is opened once and stays open, as long as no more than KEPT are in use.
    """

    KEPT = 256

    def __init__(self, paths, shard, members, offset, length):
        self.paths, self.members = tuple(paths), tuple(members)
        self.shard, self.offset, self.length = (np.asarray(values, np.int64) for values in (shard, offset, length))
        self._files, self._lock = OrderedDict(), threading.Lock()

    def __len__(self):
        return len(self.members)

    def name(self, i):
        return f"{self.paths[self.shard[i]]}:{self.members[i]}"

    def size(self, i):
        return int(self.length[i])

    def stamp(self, i):
        status = os.stat(self.paths[self.shard[i]])
        return f"{self.name(i)}@{self.offset[i]}+{self.length[i]}", status.st_size, status.st_mtime_ns

    def read(self, i):
        path, offset, length = self.paths[self.shard[i]], int(self.offset[i]), int(self.length[i])
        if hasattr(os, "pread"):
            return os.pread(self._file(path).fileno(), length, offset)
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def _file(self, path):
        """The open shard. One that falls out of the table is closed when its last reader has let go of it."""
        with self._lock:
            file = self._files.pop(path, None) or open(path, "rb", buffering=0)
            self._files[path] = file
            if len(self._files) > self.KEPT:
                self._files.popitem(last=False)
            return file

    def __getstate__(self):
        names = ("paths", "shard", "members", "offset", "length")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state):
        self.__init__(**state)


def pixels(image):
    """uint8 (H, W, C) of a PIL image or an array. Raises decode.Unreadable, naming what it is, on anything else."""
    if hasattr(image, "getexif"):
        return np.asarray(decode.rgb(image.copy()))
    array = np.asarray(image)
    if array.dtype == np.uint8 and array.ndim == 2:
        array = array[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or not 1 <= array.shape[2] <= 4 or 0 in array.shape:
        found = f"{array.dtype} {array.shape}" if array.dtype != object else type(image).__name__
        raise decode.Unreadable(
            f"{found} is not an image as it is expected (uint8 (H, W, C) or (H, W), a PIL image or encoded bytes): "
            "leave out transforms and scaling"
        )
    return array

"""Broken image files of every kind, and awkward names of good ones."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

# name of a damaged file -> words of its reason
JPEG = {f"jpeg cut at {percent} %.jpg": "truncated JPEG" for percent in (1, 10, 50, 90, 99)} | {
    "jpeg header only.jpg": "truncated JPEG",
    "jpeg without end.jpg": "truncated JPEG",
    "jpeg with garbage.jpg": "damaged image: broken data stream",
}
PNG = {f"png cut at {percent} %.png": "truncated PNG" for percent in (1, 10, 50, 90, 99)} | {
    "png with bad pixels.png": "damaged PNG: wrong checksum in its 'IDAT' chunk",
    "png with bad crc.png": "damaged PNG: wrong checksum in its 'IDAT' chunk",
    "png with bad header crc.png": "damaged PNG: wrong checksum in its 'IHDR' chunk",
    "png bomb.png": "image too large: ",
}
_KINDS = {
    "bmp": "truncated BMP",
    "tif": "truncated TIFF",
    "webp": "truncated WebP",
    "gif": "truncated GIF",
    "ppm": "truncated image",
}
OTHERS = {f"{kind} cut at {percent} %.{kind}": why for kind, why in _KINDS.items() for percent in (1, 50, 90)} | {
    "zero bytes.jpg": "zero bytes",
    "one byte.jpg": "not an image: starts with text",
    "two bytes.jpg": "truncated JPEG",
    "pointer.jpg": "a Git LFS pointer",
    "phone.jpg": "HEIC (convert it to JPEG)",
    "film.jpg": "a video",
    "avif header.avif": "truncated AVIF",
    "page.jpg": "not an image: an HTML page",
    "text.png": "not an image: starts with text",
    "paper.jpg": "not an image: a PDF",
    "archive.png": "not an image: a zip archive",
    "noise.jpg": "not an image: starts with unknown bytes",
    "zeros.png": "not an image: starts with unknown bytes",
    "bmp bomb.bmp": "image too large: ",
    "zero\nbytes.jpg": "zero bytes",
    "-rf.jpg": "zero bytes",
    os.fsdecode(b"zero \xe9 bytes.jpg"): "zero bytes",
}
SPECIAL = {
    "dangling link.jpg": "broken link",
    "link to itself.jpg": "too many levels of symbolic links",
    "folder.jpg": "is a directory",
    "pipe.jpg": "a named pipe",
    "endless.jpg": "a character device",
}
REASONS = JPEG | PNG | OTHERS | SPECIAL

AWKWARD = [
    "a b.jpg",
    "ünï → 写真.jpg",
    "new\nline.jpg",
    "quote\"s 'n' such.jpg",
    "-leading.jpg",
    "semi;co,lon.jpg",
    "%20 *?[x].jpg",
    os.fsdecode(b"latin \xe9.jpg"),
    "x" * 240 + ".jpg",
    "really a png.jpg",
]


def encoded(kind, seed=0, size=(64, 48)):
    """A smooth picture with some noise, as the bytes of an image file."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size)
    noisy = np.asarray(coarse) + rng.normal(0, 8, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def write_broken(folder, only=REASONS):
    """Make the broken files whose names are in `only` below a folder; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _contents().items():
        if name in only:
            (folder / name).write_bytes(content)
    makers = {
        "dangling link.jpg": lambda path: path.symlink_to("nowhere.jpg"),
        "link to itself.jpg": lambda path: path.symlink_to(path.name),
        "folder.jpg": lambda path: path.mkdir(),
        "pipe.jpg": os.mkfifo,
        "endless.jpg": lambda path: path.symlink_to("/dev/zero"),
    }
    for name, make in makers.items():
        if name in only:
            make(folder / name)
    return sorted(only)


def write_awkward(folder):
    """Good files with awkward names; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(AWKWARD):
        (folder / name).write_bytes(encoded("PNG" if "png" in name else "JPEG", seed=100 + i))
    return [folder / name for name in AWKWARD]


def _contents():
    jpeg, png = encoded("JPEG", size=(200, 150)), encoded("PNG")
    data = png.index(b"IDAT")
    whole = {
        "jpeg": ("jpg", jpeg),
        "png": ("png", png),
        "bmp": ("bmp", encoded("BMP")),
        "tif": ("tif", encoded("TIFF")),
        "webp": ("webp", encoded("WEBP")),
        "gif": ("gif", encoded("GIF")),
        "ppm": ("ppm", encoded("PPM")),
    }
    cuts = {
        f"{kind} cut at {percent} %.{suffix}": content[: max(1, len(content) * percent // 100)]
        for kind, (suffix, content) in whole.items()
        for percent in (1, 10, 50, 90, 99)
    }
    middle = len(jpeg) // 2
    return cuts | {
        "jpeg header only.jpg": jpeg[:20],
        "jpeg without end.jpg": jpeg[:-2],
        "jpeg with garbage.jpg": jpeg[:middle] + b"\xff" * 80 + jpeg[middle + 80 :],
        "png with bad pixels.png": png[: data + 60] + bytes(40) + png[data + 100 :],
        "png with bad crc.png": png[:-16] + bytes([png[-16] ^ 255]) + png[-15:],
        "png with bad header crc.png": png[:29] + bytes([png[29] ^ 255]) + png[30:],
        "png bomb.png": _png_bomb(60_000),
        "zero bytes.jpg": b"",
        "one byte.jpg": b"x",
        "two bytes.jpg": b"\xff\xd8",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "phone.jpg": b"\0\0\0\x18ftypheic" + bytes(99),
        "film.jpg": b"\0\0\0\x20ftypisom" + bytes(99),
        "avif header.avif": b"\0\0\0\x20ftypavif" + bytes(20),
        "page.jpg": b"\n<!DOCTYPE html>\n<html><body>404 Not Found</body></html>",
        "text.png": "keine Datei, nur Prosa: ä\n".encode() * 9,
        "paper.jpg": b"%PDF-1.7\n" + bytes(99),
        "archive.png": b"PK\x03\x04" + bytes(99),
        "noise.jpg": np.random.default_rng(0).bytes(5000),
        "zeros.png": bytes(5000),
        "bmp bomb.bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "zero\nbytes.jpg": b"",
        "-rf.jpg": b"",
        os.fsdecode(b"zero \xe9 bytes.jpg"): b"",
    }


def _png_bomb(edge):
    """A small PNG that says it is edge x edge px, with right checksums."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

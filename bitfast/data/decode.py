"""Decoding one image with Pillow: strictly, and with a reason in words when it cannot be read."""

import io
import os
import re
import stat
import zlib
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bitfast.errors import BadImages

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "AVIF")

_SIGNATURES = {
    b"\xff\xd8": "truncated JPEG",
    b"\x89PNG": "truncated PNG",
    b"GIF8": "truncated GIF",
    b"RIFF": "truncated WebP",
    b"II*\0": "truncated TIFF",
    b"MM\0*": "truncated TIFF",
    b"BM": "truncated BMP",
    b"%PDF": "not an image: a PDF",
    b"PK\x03\x04": "not an image: a zip archive",
    b"<!doctype html": "not an image: an HTML page",
    b"<html": "not an image: an HTML page",
    b"version https://git-lfs": "not an image: a Git LFS pointer (git lfs pull gets the image)",
}
_BRANDS = {  # of ISO media files, after their first box's length
    b"ftypavi": "truncated AVIF",
    b"ftyphe": "not an image that can be read: HEIC (convert it to JPEG)",
    b"ftypmif1": "not an image that can be read: HEIC (convert it to JPEG)",
    b"ftyp": "not an image: a video",
}
_PNG = b"\x89PNG\r\n\x1a\n"
# Uncompressed 16-bit RGBA, and a megabyte of metadata: no image within the pixel limit is a larger file.
_BYTES_PER_PIXEL, _METADATA_BYTES = 8, 1 << 20
_NO_FILES = (
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
    (stat.S_ISSOCK, "socket"),
)


class Unreadable(Exception):
    """Why an image cannot be read, in a few words on one line."""


class TooLarge(Exception):
    """More pixels than Pillow's decompression-bomb limit allows."""


_TOO_LARGE = (TooLarge, Image.DecompressionBombError)


def load(images, i):
    """The i-th image of a Source as a fully decoded PIL image, as stored (EXIF orientation not applied).

    Raises:  Unreadable
    """
    return decoded(read(images, i))


def read(images, i):
    """What the i-th image of a Source is before decoding: bytes, or uint8 (H, W, C). Raises Unreadable."""
    try:
        return images.read(i)
    except Unreadable:
        raise
    except Exception as error:  # a user's dataset may raise anything; each becomes a reason
        raise Unreadable(_reason(error, None)) from error


def decoded(content):
    """The PIL image of what `read` gave, fully decoded. Raises Unreadable."""
    if not isinstance(content, bytes):
        return Image.fromarray(content[:, :, 0] if content.shape[2] == 1 else content)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if limit is not None and pixels > limit:
                raise TooLarge(f"{pixels} pixels")
            image.load()
            image.getexif()  # damage of the EXIF part shows here and not in `rgb`
            if content.startswith(_PNG):
                _check_png(content)
        return image
    except Unreadable:
        raise
    except Exception as error:  # Pillow's decoders raise many types; each becomes a reason
        if content.startswith(_PNG) and not isinstance(error, _TOO_LARGE):
            _check_png(content)
        raise Unreadable(_reason(error, content)) from error


def require_file(status):
    """Raise Unreadable unless an os.stat_result is of a regular file, no larger than an image within the limit."""
    kind = next((text for test, text in _NO_FILES if test(status.st_mode)), None)
    if kind:
        raise Unreadable(f"not a file but a {kind}")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and status.st_size > _BYTES_PER_PIXEL * limit + _METADATA_BYTES:
        raise Unreadable(
            f"file too large: {status.st_size} bytes, more than any image of {limit} pixels (--max-pixels)"
        )


@contextmanager
def pixel_limit(pixels):
    """Within, images of more than this many pixels are refused; None leaves Pillow's limit as it is.

    The limit is Pillow's own, `PIL.Image.MAX_IMAGE_PIXELS`, and so one for the whole process.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels or before
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_png(content):
    """Raise Unreadable if a checksum is wrong or the end is missing: Pillow passes both where the pixels are there."""
    at = len(_PNG)
    while (size := int.from_bytes(content[at : at + 4])) + 12 <= len(content) - at:
        body = content[at + 4 : at + 8 + size]
        if zlib.crc32(body) != int.from_bytes(content[at + 8 + size : at + 12 + size]):
            raise Unreadable(f"damaged PNG: wrong checksum in its {body[:4].decode('latin-1')!r} chunk")
        if body.startswith(b"IEND"):
            return
        at += 12 + size
    raise Unreadable("truncated PNG")


def pixels(content):
    """uint8 (H, W, 3) of what `read` gave, as `rgb` has it. Raises Unreadable."""
    if not isinstance(content, bytes) and content.shape[2] == 3:
        return content
    image = decoded(content)
    try:
        return np.asarray(rgb(image))
    except Exception as error:  # as above: EXIF and colour conversion read more of the file
        raise Unreadable(_reason(error, content)) from error


def rgb(image):
    """The image as people see it, a PIL RGB image: EXIF orientation applied, 16 bits scaled to 8, CMYK, grey and
    palettes converted, alpha over white. Of an animation the first frame.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image):
    """round(v * 255 / 65535), the grey level that is transparent as white."""
    wide = np.asarray(image).astype(np.int64).clip(0, 65535)
    grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
    if "transparency" in image.info:
        grey[wide == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _reason(error, content):
    if isinstance(error, FileNotFoundError):
        return "broken link" if os.path.islink(error.filename) else "no such file"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    if isinstance(error, _TOO_LARGE):
        pixels = re.search(r"(\d+) pixels", str(error))
        return f"image too large: {pixels[1]} pixels, over the limit of {Image.MAX_IMAGE_PIXELS} (--max-pixels)"
    if not isinstance(content, bytes):
        return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
    head = content[:64].lstrip(b"\xef\xbb\xbf\r\n\t ") or content[:64]
    if not head:
        return "zero bytes"
    kind = _known(head.lower(), _SIGNATURES) or _known(content[4:12], _BRANDS)
    if isinstance(error, UnidentifiedImageError):
        return kind or f"not an image: starts with {_kind_of(head)}"
    if "truncated" in str(error).lower() or _is_short_riff(content):
        return kind if kind and kind.startswith("truncated") else "truncated image"
    return f"damaged image: {' '.join(str(error).split()) or type(error).__name__}"


def _known(head, kinds):
    return next((text for signature, text in kinds.items() if head.startswith(signature.lower())), None)


def _is_short_riff(content):
    return content.startswith(b"RIFF") and int.from_bytes(content[4:8], "little") + 8 > len(content)


def _kind_of(head):
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return "text" if error.start > max(0, len(head) - 4) else "unknown bytes"
    return "text" if b"\0" not in head else "unknown bytes"


def unreadable(images, found):
    """The BadImages error for images of a Source that cannot be read; found: {position: reason}."""
    (i, why), more = next(iter(found.items())), len(found) - 1
    note = f" (and {more} more)" if more else ""
    return BadImages(
        f"{shown(images.name(i))}: {why}{note}: replace or delete it, then run the same command again", found
    )


def shown(name):
    """A path or name as one printable line."""
    name = str(name)
    return name if name.isprintable() else repr(name)

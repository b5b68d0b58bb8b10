"""Decoding one image with Pillow: strictly, and with a reason in words when it cannot be read."""

import io
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bitfast.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "AVIF")

_SIGNATURES = {
    b"\xff\xd8\xff": "truncated JPEG",
    b"\x89PNG": "truncated PNG",
    b"GIF8": "truncated GIF",
    b"%PDF": "not an image: a PDF",
    b"PK\x03\x04": "not an image: a zip archive",
}


class Unreadable(Exception):
    """Why an image cannot be read, in a few words on one line."""


class TooLarge(Exception):
    """More pixels than Pillow's decompression-bomb limit allows."""


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
            pixels = image.width * image.height
            if pixels > Image.MAX_IMAGE_PIXELS:
                raise TooLarge(f"{image.width}x{image.height} px, over the limit of {Image.MAX_IMAGE_PIXELS} pixels")
            image.load()
        return image
    except Exception as error:  # Pillow's decoders raise many types; each becomes a reason
        raise Unreadable(_reason(error, content)) from error


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
    if isinstance(error, (TooLarge, Image.DecompressionBombError)):
        return f"image too large: {error}"
    if not isinstance(content, bytes):
        return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
    head = content[:64]
    if not head:
        return "zero bytes"
    kind = next((text for signature, text in _SIGNATURES.items() if head.startswith(signature)), None)
    if isinstance(error, UnidentifiedImageError):
        return kind or f"not an image: starts with {_kind_of(head)}"
    if "truncated" in str(error):
        return kind if kind and kind.startswith("truncated") else "truncated image"
    return f"damaged image: {' '.join(str(error).split()) or type(error).__name__}"


def _kind_of(head):
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return "text" if error.start > len(head) - 4 else "unknown bytes"
    return "text" if b"\0" not in head else "unknown bytes"


def unreadable(name, why, note=""):
    """The DataError for an image that cannot be read."""
    return DataError(f"{shown(name)}: {why}{note}: replace or delete it, then run the same command again")


def shown(name):
    """A path or name as one printable line."""
    name = str(name)
    return name if name.isprintable() else repr(name)

"""What the first bytes of an encoded image tell: whether DALI decodes it as Pillow does, and how large it is."""

import struct

_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, Huffman-coded
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ORIENTATION = 0x0112
_XMP_ORIENTATION = b"tiff:Orientation"
_TRANSPOSED = (5, 6, 7, 8)


def dali_size(content):
    """(height, width) as displayed, if DALI decodes these bytes to Pillow's pixels; None if Pillow has to do it.

    DALI takes JPEGs of 8 bits in one or three components and PNGs of 8 bits without transparency. It would drop alpha,
    read 16 bits otherwise, and knows neither GIF and AVIF nor an orientation in XMP; other formats are rare.
    """
    try:
        if content[:3] == b"\xff\xd8\xff":
            return _jpeg(content)
        if content[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(content)
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _jpeg(content):
    position, orientation = 2, None
    while True:
        if content[position] != 0xFF:
            return None
        marker = content[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        if marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", content, position + 4)
            if bits != 8 or components not in (1, 3) or not height * width:
                return None
            return (width, height) if orientation in _TRANSPOSED else (height, width)
        if marker in _OTHER_FRAMES or marker == 0xDA:
            return None
        if marker == 0xE1:
            segment = content[position + 4 : position + 2 + length]
            if _XMP_ORIENTATION in segment or (segment.startswith(b"Exif\0") and orientation):
                return None
            if segment.startswith(b"Exif\0"):
                orientation = _orientation(segment[6:])
        position += 2 + length


def _orientation(exif):
    """The EXIF orientation, 1 where there is none. ValueError on what readers could take differently."""
    order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(exif[:4])] if exif[:4] in (b"II*\0", b"MM\0*") else None
    if order is None:
        raise ValueError("no TIFF header")
    (start,) = struct.unpack_from(order + "L", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(count):
        tag, kind, values, value = struct.unpack_from(order + "HHLH", exif, start + 2 + 12 * entry)
        if tag == _ORIENTATION:
            if kind != 3 or values != 1 or not 1 <= value <= 8:
                raise ValueError("not an orientation")
            return value
    return 1


def _png(content):
    width, height, bits, colour = struct.unpack_from(">LLBB", content, 16)
    opaque = colour in (0, 2, 3) and b"tRNS" not in content
    turned = b"eXIf" in content or b"XML:com.adobe.xmp" in content
    return (height, width) if bits == 8 and opaque and not turned and height * width else None

"""Contact sheets: small pictures with captions in one PNG, which keeps the captions as text for report.html too."""

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ..data import decode
from ..data.loader import images
from ..errors import BadImages
from ..files import replacing

SHOWN, COLUMNS = 24, 6
EDGE, CAPTION, GAP = 144, 18, 8
PAPER, EMPTY, INK = (255, 255, 255), (225, 225, 225), (30, 30, 30)
KEY = "bitfast:captions"


@dataclass(frozen=True)
class Tile:
    """A picture, at most EDGE px wide and high, and what is written below it; `why` there is none, if it is None."""

    picture: Image.Image | None
    caption: str
    why: str = ""


def train_batch(split, transform, sampler, engine, left_out):
    """Tiles of the first images of step 0 as the network gets them: cropped, flipped and mixed, with their labels.

    left_out  positions in the split that are not to be read
    """
    whole, gone = next(iter(sampler.batch(0).micro(SHOWN))), set(left_out)
    while len(batch := whole.without(gone)):
        try:
            (x,) = images(split, transform, [batch], engine=engine)
        except BadImages as error:
            gone |= error.found.keys()
            continue
        pixels = (x * transform.std + transform.mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        return [Tile(fitted(picture), _mixture(split, batch, i)) for i, picture in enumerate(pixels)]
    return []


def photos(source, positions, captions):
    """Tiles of whole images of a Source; one that cannot be read has the reason instead."""
    tiles = []
    for i, caption in zip(positions, captions, strict=True):
        try:
            tiles.append(Tile(fitted(decode.pixels(decode.read(source, i))), caption))
        except decode.Unreadable as error:
            tiles.append(Tile(None, caption, str(error)))
    return tiles


def fitted(pixels):
    """The PIL image of uint8 (H, W, 3), aspect kept, its longer side EDGE px."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = EDGE / max(picture.size)
    size = tuple(max(1, round(scale * edge)) for edge in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def write_sheet(path, tiles):
    """Save the tiles as one PNG, row by row; replaces `path` atomically."""
    rows = -(-len(tiles) // COLUMNS)
    width, height = min(len(tiles), COLUMNS) * (EDGE + GAP) + GAP, rows * (EDGE + CAPTION + GAP) + GAP
    page, font = Image.new("RGB", (width, height), PAPER), ImageFont.load_default(12)
    draw = ImageDraw.Draw(page)
    for i, tile in enumerate(tiles):
        left, top = _corner(i)
        if tile.picture is None:
            draw.rectangle((left, top, left + EDGE, top + EDGE), EMPTY)
            draw.text((left + 6, top + 6), _cut("cannot be read", draw, font), INK, font)
        else:
            page.paste(tile.picture, (left, top))
        draw.text((left, top + EDGE + 3), _cut(tile.caption, draw, font), INK, font)
    sizes = [tile.picture.size if tile.picture else None for tile in tiles]
    captions = [[tile.caption, size, tile.why] for tile, size in zip(tiles, sizes, strict=True)]
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, json.dumps(captions))
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        page.save(temporary, format="PNG", pnginfo=info)


def read_sheet(path):
    """The tiles of a sheet; none if there is no file, or one that is no sheet any more."""
    try:
        with Image.open(path, formats=["PNG"]) as page:
            page.load()
        captions = json.loads(page.text[KEY])
        return [
            Tile(_cropped(page, i, size) if size else None, text, why) for i, (text, size, why) in enumerate(captions)
        ]
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return []


def _cropped(page, i, size):
    left, top = _corner(i)
    return page.crop((left, top, left + size[0], top + size[1]))


def _corner(i):
    row, column = divmod(i, COLUMNS)
    return GAP + column * (EDGE + GAP), GAP + row * (EDGE + CAPTION + GAP)


def _mixture(split, batch, i):
    own = ", ".join(split.names(batch.indices[i])) or "no label"
    partner = batch.partner[i]
    if batch.lam == 1 or partner == i:
        return own
    other = ", ".join(split.names(batch.indices[partner])) or "no label"
    return f"{batch.lam:.2f} {own} + {1 - batch.lam:.2f} {other}"


def _cut(text, draw, font):
    """The text on one line, as much of it as is EDGE px wide."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if draw.textlength(text, font) <= EDGE:
        return text
    while draw.textlength(text + "...", font) > EDGE:
        text = text[:-1]
    return text + "..."

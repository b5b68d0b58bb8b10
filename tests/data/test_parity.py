"""The same pixels from every back end: DALI's decoder with our resize, Pillow, and DALI's own graph (that of a GPU)."""

import numpy as np
import pytest
import torch
from PIL import Image

from bitfast.data import header
from bitfast.data.dataset import Split
from bitfast.data.loader import images, in_order
from bitfast.data.rows import Rows
from bitfast.data.sampler import Sampler
from bitfast.data.source import Files
from bitfast.data.transform import Transform
from bitfast.ops import use_impl

dali = pytest.importorskip("bitfast.data.dali")
MAX_LEVELS, MEAN_LEVELS = 2, 0.5

# What undoes an EXIF orientation, as its specification has it.
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return {"exif": exif.tobytes()}


def _files(picture, other):
    """name -> (image, options of save)."""
    grey, deep = picture.convert("L"), np.asarray(other.convert("L")).astype(np.uint16) * 251 + 77
    clear = other.copy()
    clear.putalpha(grey)
    half = grey.convert("LA")
    half.putalpha(other.convert("L"))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    files = {
        "rgb.jpg": (picture, {"quality": 90}),
        "progressive.jpg": (picture, {"quality": 85, "progressive": True}),
        "chroma444.jpg": (picture, {"quality": 95, "subsampling": 0}),
        "chroma422.jpg": (picture, {"quality": 95, "subsampling": 1}),
        "grey.jpg": (grey, {}),
        "cmyk.jpg": (picture.convert("CMYK"), {"quality": 95}),
        "xmp.jpg": (picture, {"xmp": xmp}),
        "rgb.png": (picture, {}),
        "grey.png": (grey, {}),
        "bits1.png": (picture.convert("1"), {}),
        "palette.png": (picture.convert("P"), {}),
        "palette-clear.png": (picture.convert("P"), {"transparency": 7}),
        "key.png": (picture, {"transparency": picture.getpixel((3, 3))}),
        "deep.png": (Image.fromarray(deep), {}),
        "alpha.png": (clear, {}),
        "grey-alpha.png": (half, {}),
        "turned.png": (picture, _oriented(6)),
        "rgb.webp": (picture, {"quality": 90}),
        "alpha.webp": (clear, {"lossless": True}),
        "rgb.bmp": (picture, {}),
        "grey.bmp": (grey, {}),
        "rgb.tif": (picture, {}),
        "deep.tif": (Image.fromarray(deep), {}),
        "cmyk.tif": (picture.convert("CMYK"), {}),
        "jpeg.tif": (picture, {"compression": "jpeg"}),
        "alpha.tif": (clear, {}),
        "rgb.gif": (picture.quantize(64), {}),
        "rgb.ppm": (picture, {}),
        "tiny.png": (picture.resize((5, 3)), {}),
        "wide.jpg": (picture.resize((420, 60)), {}),
    }
    files |= {f"turned{i}.jpg": (picture, _oriented(i)) for i in range(1, 9)}
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from data.conftest import make_photo

    root = tmp_path_factory.mktemp("parity")
    picture, other = (Image.fromarray(make_photo(150, 210, seed)) for seed in (1, 2))
    for name, (image, options) in _files(picture, other).items():
        image.save(root / name, **options)
    return root


@pytest.fixture
def split(folder):
    paths = sorted(folder.iterdir())
    return Split(Files(paths), np.arange(len(paths)), tuple(path.name for path in paths))


def graph(split, transform, requests):
    """What DALI makes of it where it resizes too, on the CPU."""
    batches = (Rows(request, transform, torch.uint8) for request in requests)
    cpu = torch.device("cpu")
    for batch in dali.read(split.images, transform, batches, largest=99, device=cpu, threads=2, resize=True):
        assert not batch.bad
        yield batch.finish(cpu, normalise=True).permute(0, 3, 1, 2)


def assert_same(split, got, expected):
    error = (got - expected).abs() * 127.5
    for i, name in enumerate(split.classes):
        assert error[i].max() <= MAX_LEVELS + 1e-3 and error[i].mean() <= MEAN_LEVELS, (name, error[i].max())


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("edge", [48, 160])
def test_all_agree_after_resize(split, interpolation, edge):
    spec = Transform.test(edge, interpolation)
    requests = list(in_order(len(split), 99))
    ours = [next(images(split, spec, requests, engine=engine)) for engine in ("dali", "pillow")]
    assert torch.equal(*ours)
    with use_impl("resample", "pillow"):
        assert_same(split, next(images(split, spec, requests, engine="pillow")), ours[0])
    if interpolation != "nearest":
        assert_same(split, next(graph(split, spec, requests)), ours[0])


@pytest.mark.parametrize(
    "spec", [Transform.train(60, 40), Transform.pretrain(40), Transform.short_side(50, 40)], ids=lambda s: s.geometry
)
def test_all_take_the_same_crops_and_flips(split, spec):
    sampler = Sampler(len(split), len(split), spec, 0.3, seed=5)
    batch = sampler.batch(2)
    named = Split(split.images.take(batch.indices), batch.indices, tuple(split.classes[i] for i in batch.indices))
    requests = [part for step in (2, 3) for part in sampler.batch(step).micro(10)]
    ours, same = (torch.cat(list(images(split, spec, requests, engine=engine))) for engine in ("dali", "pillow"))
    assert torch.equal(ours, same)
    plain = [part for part in Sampler(len(split), len(split), spec, seed=5).batch(2).micro(10)]
    drawn = torch.cat(list(images(split, spec, plain, engine="pillow")))
    assert_same(named, torch.cat(list(graph(split, spec, plain))), drawn)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "spec", [Transform.test(96), Transform.train(60, 40), Transform.pretrain(40), Transform.short_side(50, 40)]
)
def test_the_gpu_agrees(split, spec):
    requests = list(Sampler(len(split), len(split), spec, seed=5).batch(2).micro(10))
    gpu = torch.cat(list(images(split, spec, requests, engine="dali", device="cuda"))).cpu()
    order = np.concatenate([request.indices for request in requests])
    named = Split(split.images, split.labels, tuple(split.classes[i] for i in order))
    assert_same(named, gpu, torch.cat(list(images(split, spec, requests, engine="pillow"))))


def test_colours_are_what_people_see(split):
    """Of the cases that readers get wrong: 16 bits scaled, alpha over white, CMYK, turned photos."""
    got = (next(images(split, Transform.test(150), in_order(len(split), 99))) * 127.5 + 127.5).numpy()
    level = {name: x.transpose(1, 2, 0) for name, x in zip(split.classes, got, strict=True)}
    for name in [f"turned{i}.jpg" for i in range(1, 9)] + ["turned.png", "xmp.jpg"]:
        number = {"turned.png": 6, "xmp.jpg": 6}.get(name) or int(name[6])
        with Image.open(split.images.path(split.classes.index(name))) as image:
            upright = image.convert("RGB") if number == 1 else image.convert("RGB").transpose(_TURN[number])
        expected = np.asarray(upright.resize((150, 150), Image.Resampling.BILINEAR)).astype(float)
        assert np.abs(level[name] - expected)[4:-4, 4:-4].max() <= 2, name
    assert np.abs(level["cmyk.jpg"] - level["rgb.png"]).mean() < 6
    assert np.abs(level["deep.png"] - level["deep.tif"]).max() == 0
    with Image.open(split.images.path(split.classes.index("deep.png"))) as image:
        scaled = np.asarray(image).astype(float) * 255 / 65535
    grey = np.asarray(Image.fromarray(scaled.round().astype(np.uint8)).resize((150, 150), 2)).astype(float)
    assert np.abs(level["deep.png"][..., 0] - grey)[4:-4, 4:-4].max() <= 2
    for name in ("alpha.png", "alpha.webp", "alpha.tif"):
        with Image.open(split.images.path(split.classes.index(name))) as image:
            rgba = np.asarray(image.convert("RGBA")).astype(float)
        over = 255 - (255 - rgba[..., :3]) * rgba[..., 3:] / 255
        expected = np.asarray(Image.fromarray(over.round().astype(np.uint8)).resize((150, 150), 2)).astype(float)
        assert np.abs(level[name] - expected)[4:-4, 4:-4].max() <= 2, name


def test_batches_of_large_images_are_decoded_in_parts(split, monkeypatch):
    spec, requests = Transform.test(40), list(in_order(len(split), 16))
    whole = list(images(split, spec, requests, engine="dali"))
    monkeypatch.setattr(dali, "CHUNK_BYTES", {"cpu": 200_000})
    assert all(map(torch.equal, images(split, spec, requests, engine="dali"), whole))


def test_what_dali_fails_on_is_decoded_by_pillow_and_the_run_goes_on(split, monkeypatch):
    """A header that promises too much: DALI has no GIF."""
    spec, requests = Transform.test(40), list(in_order(len(split), 8))
    expected = list(images(split, spec, requests, engine="pillow"))
    known = header.dali_size
    monkeypatch.setattr(header, "dali_size", lambda content: (150, 210) if content[:3] == b"GIF" else known(content))
    assert all(map(torch.equal, images(split, spec, requests, engine="dali"), expected))


def test_what_goes_to_dali(folder):
    """Its part is JPEG and plain PNG; sizes are as displayed."""
    sizes = {path.name: header.dali_size(path.read_bytes()) for path in folder.iterdir()}
    plain = {"rgb.jpg", "progressive.jpg", "chroma444.jpg", "chroma422.jpg", "grey.jpg", "wide.jpg", "rgb.png"}
    plain |= {"grey.png", "palette.png", "tiny.png"} | {f"turned{i}.jpg" for i in range(1, 9)}
    assert {name for name, size in sizes.items() if size} == plain
    for name in plain:
        with Image.open(folder / name) as image:
            transposed = image.getexif().get(0x0112, 1) > 4
            assert sizes[name] == (image.size if transposed else image.size[::-1]), name


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 10, 25, 60])
def test_a_cut_header_is_left_to_pillow(folder, cut):
    for name in ("turned6.jpg", "rgb.png"):
        content = (folder / name).read_bytes()
        assert header.dali_size(content[:cut]) is None or name == "rgb.png" and cut >= 26

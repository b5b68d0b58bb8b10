"""Both engines read the same spec: same pixels, same crops and flips, same errors, and nothing left running."""

import os
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import bitfast.data.loader as loader
from bitfast.data.dataset import Split
from bitfast.data.loader import Request, images, in_order
from bitfast.data.sampler import Sampler
from bitfast.data.source import Arrays, Files, Mapped
from bitfast.data.transform import Transform
from bitfast.errors import DataError, UsageError


def split_of(paths):
    return Split(Files(paths), np.arange(len(paths)), tuple(map(str, range(len(paths)))))


def levels(batch):
    """Back to the 0..255 scale."""
    return batch * 127.5 + 127.5


@pytest.fixture
def photos(photo, save, tmp_path):
    """Photo-like files of every kind the engines must agree on."""
    picture = Image.fromarray(photo(150, 210, seed=1))
    turned = Image.Exif()
    paths = []
    for name, image, options in [
        ("rgb.jpg", picture, {"quality": 90}),
        ("chroma444.jpg", picture, {"quality": 95, "subsampling": 0}),
        ("gray.jpg", picture.convert("L"), {}),
        ("rgb.png", picture, {}),
        ("gray.png", picture.convert("L"), {}),
        ("palette.png", picture.convert("P"), {}),
        ("deep.png", Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 251 + 77), {}),
        ("noise.png", Image.fromarray(np.random.default_rng(4).integers(0, 256, (97, 203, 3), dtype=np.uint8)), {}),
        ("rgb.bmp", picture, {}),
        ("rgb.webp", picture, {"lossless": True}),
        ("rgb.tif", picture, {}),
        ("tiny.png", Image.fromarray(photo(28, 28, seed=2)), {}),
        ("wide.jpg", Image.fromarray(photo(90, 400, seed=3)), {}),
        *[(f"turned{i}.jpg", picture, {"exif": i}) for i in range(2, 9)],
    ]:
        if "exif" in options:
            turned[0x0112] = options["exif"]
            options = {"exif": turned.tobytes()}
        image.save(tmp_path / name, **options)
        paths.append(tmp_path / name)
    return split_of(paths)


def test_every_source_gives_the_same_images(photo, save, tmp_path, engine):
    pictures = np.stack([photo(40, 30, seed=seed) for seed in range(5)])
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    of_files, *others = (
        Files(paths),
        Arrays(pictures),
        Mapped([Image.fromarray(picture) for picture in pictures], lambda item: item),
        Mapped([path.read_bytes() for path in paths], lambda item: item),
        Arrays(pictures[::-1]).take([4, 3, 2, 1, 0]),
    )
    spec, order = Transform.test(24), [3, 0, 4]
    for source in others:
        for ours, theirs in ((source, of_files), (source.take(order), of_files.take(order))):
            got, expected = (
                torch.cat(list(images(Split(s, None, None), spec, in_order(len(s), 2), engine=engine)))
                for s in (ours, theirs)
            )
            assert torch.equal(got, expected)


@pytest.mark.parametrize("size", [48, 96, 160])
def test_engines_agree_after_resize(photos, size):
    pytest.importorskip("nvidia.dali")
    spec = Transform.test(size)
    dali, pillow = (next(images(photos, spec, in_order(len(photos), 99), engine=name)) for name in ("dali", "pillow"))
    error = (levels(dali) - levels(pillow)).abs()
    for path, per_image in zip(photos.images.paths, error, strict=True):
        assert per_image.max() <= 2.001 and per_image.mean() <= 0.25, (path, per_image.max(), per_image.mean())


@pytest.mark.parametrize("margin", [1, 3, 32, 33, 100])
def test_crops_and_flips_are_taken_where_asked(photo, save, tmp_path, engine, margin):
    """No resize is needed here, so the result must equal slicing, at every offset."""
    edge = 16 + margin
    picture = photo(edge, edge, seed=margin)
    Image.fromarray(picture).save(tmp_path / "x.png")
    offsets = np.arange(margin + 1)
    request = Request(np.zeros(margin + 1, dtype=np.int64), offsets, offsets[::-1], offsets % 2 == 1)
    got = next(images(split_of([tmp_path / "x.png"]), Transform.train(edge, 16), [request], engine=engine))
    for k in offsets:
        window = picture[k : k + 16, margin - k : margin - k + 16]
        expected = torch.tensor((window[:, ::-1] if k % 2 else window).copy()).permute(2, 0, 1)
        assert torch.allclose(got[k], (expected - 127.5) / 127.5, rtol=0, atol=2e-7)


def test_contract_of_the_tensors(photos, engine):
    sampler = Sampler(len(photos), 12, Transform.train(40, 32), 0.1)
    requests = [part for step in range(4) for part in sampler.batch(step).micro(8)]
    got = list(images(photos, sampler.transform, iter(requests), engine=engine))
    assert [len(x) for x in got] == [8, 4] * 4
    for x in got:
        assert x.dtype == torch.float32 and x.shape[1:] == (3, 32, 32) and x.device.type == "cpu"
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert x.min() >= -1 and x.max() <= 1
    whole = next(images(photos, sampler.transform, [sampler.batch(2)], engine=engine))
    assert torch.equal(whole, torch.cat(got[4:6]))


def test_kept_tensors_are_not_overwritten(photos, engine):
    spec = Transform.test(24)
    kept = list(images(photos, spec, in_order(len(photos), 3), engine=engine))
    again = [x.clone() for x in images(photos, spec, in_order(len(photos), 3), engine=engine)]
    assert all(map(torch.equal, kept, again))


def test_thread_count_changes_nothing(photos, engine):
    sampler = Sampler(len(photos), 7, Transform.train(40, 32), seed=2)
    runs = [
        list(images(photos, sampler.transform, map(sampler.batch, range(5)), engine=engine, threads=threads))
        for threads in (1, 2, 5)
    ]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_in_order():
    sizes = [len(request) for request in in_order(10, 4)]
    assert sizes == [4, 4, 2]
    assert np.array_equal(np.concatenate([request.indices for request in in_order(10, 4)]), np.arange(10))
    assert list(in_order(0, 4)) == []


def test_no_requests_no_images(photos, engine):
    assert list(images(photos, Transform.test(8), [], engine=engine)) == []


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("text.jpg", b"no photo at all", "not an image: starts with text"),
        ("zero.png", b"", "zero bytes"),
        ("cut.jpg", None, "truncated JPEG"),
        ("gone.jpg", ..., "no such file"),
    ],
)
def test_a_bad_file_is_named(save, tmp_path, engine, name, content, why):
    good = [save(tmp_path / f"{i}.jpg", seed=i, height=64, width=64) for i in range(12)]
    bad = tmp_path / name
    if content is None:
        bad.write_bytes(open(good[0], "rb").read()[:-300])
    elif content is not ...:
        bad.write_bytes(content)
    reader = images(split_of([*good[:9], bad, *good[9:]]), Transform.test(16), in_order(13, 4), engine=engine)
    with pytest.raises(DataError, match=f"{name}: {why}: replace or delete it") as caught:
        list(reader)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_larger_than_the_first_request_is_refused(photos, engine):
    requests = [*in_order(2, 2), *in_order(4, 4)]
    with pytest.raises(UsageError, match="4 images, but the largest was to be 2"):
        list(images(photos, Transform.test(8), requests, engine=engine))


def test_errors_of_the_request_source_come_through(photos, engine):
    def requests():
        yield from in_order(4, 4)
        raise RuntimeError("the sampler broke")

    with pytest.raises(RuntimeError, match="the sampler broke"):
        list(images(photos, Transform.test(8), requests(), engine=engine))


def os_threads():
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_closing_early_leaves_nothing_running(photos, engine):
    sampler = Sampler(len(photos), 8, Transform.train(40, 32))

    def peek():
        reader = images(photos, sampler.transform, map(sampler.batch, range(10_000)), engine=engine, threads=3)
        next(reader)
        reader.close()

    peek()
    before = os_threads()
    start = time.perf_counter()
    for _ in range(5):
        peek()
    while os_threads() > before and time.perf_counter() - start < 10:
        time.sleep(0.01)
    assert os_threads() <= before, f"{os_threads()} threads, {before} before"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bitfast")]


def test_choice_of_engine(monkeypatch, capsys):
    with pytest.raises(UsageError, match="unknown input engine 'gpu': use one of auto, dali, pillow"):
        loader.chosen_engine("gpu")
    loader.chosen_engine.cache_clear()
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    try:
        with pytest.raises(UsageError, match="pip install nvidia-dali"):
            loader.chosen_engine("dali")
        monkeypatch.setattr(sys, "platform", "linux")
        assert [loader.chosen_engine("auto") for _ in range(2)] == ["pillow"] * 2
        assert capsys.readouterr().err.count("\n") == 1
        loader.chosen_engine.cache_clear()
        monkeypatch.setattr(sys, "platform", "darwin")
        assert loader.chosen_engine("auto") == "pillow" and capsys.readouterr().err == ""
    finally:
        loader.chosen_engine.cache_clear()

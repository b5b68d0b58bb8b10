"""The scan finds every bad file by name, with a reason, and measures the good ones as displayed."""

import os
import subprocess
import sys

import numpy as np
import pytest
import zoo
from PIL import Image

from bitfast.data import decode
from bitfast.data.check import duplicates, median_size, require_readable, scan
from bitfast.data.source import Arrays, Files
from bitfast.errors import DataError


@pytest.fixture
def broken(tmp_path):
    """Paths of two good images with every file of the zoo between them."""
    names = zoo.write_broken(tmp_path / "zoo")
    good = zoo.write_awkward(tmp_path / "good")[:2]
    return [str(path) for path in (good[0], *(tmp_path / "zoo" / name for name in names), good[1])]


def test_every_bad_file_is_found_by_name_and_reason(broken):
    assert len(zoo.REASONS) >= 30
    found = scan(Files(broken), cache=False)
    assert [path for path, _ in found.bad] == broken[1:-1]
    for path, why in found.bad:
        assert zoo.REASONS[os.path.basename(path)] in why, (path, why)
        assert "\n" not in why
    assert found.sizes[[0, -1]].tolist() == [[48, 64]] * 2 and not found.sizes[1:-1].any()
    assert found.readable.sum() == 2


def test_awkward_names_are_no_damage(tmp_path):
    found = scan(Files(zoo.write_awkward(tmp_path)))
    assert not found.bad and [look.format for look in found.looks] == ["JPEG"] * 9 + ["PNG"]


def test_require_readable_names_the_first_and_counts(broken):
    require_readable(scan(Files([broken[0], broken[-1]])))
    first, count = broken[1], len(broken) - 2
    expected = rf"zero bytes \({count} of {count + 2} images .*bitfast check DATA lists them, --bad-images skip"
    with pytest.raises(DataError, match=expected) as caught:
        require_readable(scan(Files(broken)))
    assert caught.value.exit_code == 3 and str(caught.value).startswith(first)
    newline = next(path for path in broken if "\n" in path)
    with pytest.raises(DataError, match="zero bytes: replace or delete it, or --bad-images skip goes on") as caught:
        require_readable(scan(Files([newline])))
    assert "\n" not in str(caught.value)


def test_decompression_bomb_is_an_error(save, tmp_path, monkeypatch, recwarn):
    path = save(tmp_path / "bomb.png", height=40, width=50)
    for limit in (1999, 900):
        with decode.pixel_limit(limit):
            why = f"image too large: 2000 pixels, over the limit of {limit} (--max-pixels)"
            assert scan(Files([path])).bad == [(path, why)]
    assert not scan(Files([path])).bad
    with decode.pixel_limit(1999):  # known by now, but not within this limit
        assert len(scan(Files([path])).bad) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert not scan(Files([path]), cache=False).bad
    assert not recwarn.list


def test_a_file_larger_than_any_image_is_not_read(save, tmp_path):
    path = save(tmp_path / "vast.png")
    os.truncate(path, 1 << 40)
    assert "file too large: 1099511627776 bytes, more than any image" in scan(Files([path])).bad[0][1]


def test_sizes_are_as_displayed(save, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [save(tmp_path / f"turned.{kind}", height=20, width=30, exif=exif) for kind in ("jpg", "png")]
    assert scan(Files(paths)).sizes.tolist() == [[30, 20], [30, 20]]


def test_permission_denied_is_a_reason(save, tmp_path, monkeypatch):
    """Root may read everything, so the system's answer is played."""
    path, real = save(tmp_path / "secret.png"), os.open

    def refuse(name, *arguments, **options):
        if name == path:
            raise PermissionError(13, "Permission denied", path)
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert scan(Files([path]), cache=False).bad == [(path, "permission denied")]


def test_traits(photo, save, tmp_path):
    picture, exif = Image.fromarray(photo(40, 50)), Image.Exif()
    exif[0x0112] = 3
    gray = picture.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    images = {
        "plain.jpg": (picture, {}, ()),
        "turned.jpg": (picture, {"exif": exif}, ("EXIF-rotated",)),
        "deep.png": (deep, {}, ("16-bit", "grayscale")),
        "deep.tif": (deep, {}, ("16-bit", "grayscale")),
        "clear.png": (picture.convert("RGBA"), {}, ("alpha",)),
        "key.png": (picture.convert("P"), {"transparency": 3}, ("alpha",)),
        "print.jpg": (picture.convert("CMYK"), {}, ("CMYK",)),
        "gray.jpg": (gray, {}, ("grayscale",)),
        "moving.webp": (picture, {"save_all": True, "append_images": [gray.convert("RGB")]}, ("animated",)),
    }
    for name, (image, options, _) in images.items():
        image.save(tmp_path / name, **options)
    expected = [traits for _, _, traits in images.values()]
    paths = Files(tmp_path / name for name in images)
    for _ in range(2):  # the second time from the cache
        assert [look.traits for look in scan(paths).looks] == expected
    assert [scan(Arrays(photo(9, 9)[None])).looks[0][:4]] == [(9, 9, "pixels", ())]


def test_duplicates_have_equal_bytes(save, tmp_path):
    paths = [save(tmp_path / name, seed=seed) for name, seed in (("a.png", 1), ("b.png", 2), ("c.png", 1))]
    parts = {"train": scan(Files(paths)), "val": scan(Files([paths[1], paths[1] + "x"]))}
    assert duplicates(parts) == [[("train", 0), ("train", 2)], [("train", 1), ("val", 0)]]


def test_median_size():
    sizes = np.array([[10, 10], [0, 0], [5, 8], [100, 1], [30, 20]])
    assert median_size(sizes) == (10, 10)
    assert median_size(sizes[:1]) == (10, 10)


def test_a_script_without_main_guard_may_scan(photo, save, tmp_path):
    paths = [save(tmp_path / f"{i}.png", seed=i) for i in range(130)]
    assert Image.fromarray(photo(8, 8)).size == (8, 8)
    script = tmp_path / "script.py"
    lines = ["from bitfast.data.check import scan", "from bitfast.data.source import Files"]
    script.write_text("\n".join([*lines, f"print(len(scan(Files({paths!r}), workers=2).sizes))"]))
    env = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=60)
    assert run.stdout == "130\n", run.stderr

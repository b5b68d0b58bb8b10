"""The scan finds every bad file by name, with a reason, and measures the good ones as displayed."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bitfast.data.check import median_size, require_readable, scan
from bitfast.data.source import Files
from bitfast.errors import DataError


@pytest.fixture
def zoo(save, tmp_path):
    """(paths, reasons by file name) of broken files."""
    jpeg = open(save(tmp_path / "good.jpg", height=200, width=300), "rb").read()
    png = open(save(tmp_path / "good.png", height=60, width=50), "rb").read()
    broken = {
        "text.jpg": (b"hello, I am no photo\n" * 9, "not an image: starts with text"),
        "page.jpg": (b"<!DOCTYPE html><html>", "not an image: starts with text"),
        "noise.png": (b"\x00\x01\xff\xfe" * 30, "not an image: starts with unknown bytes"),
        "zero.jpg": (b"", "zero bytes"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated JPEG"),
        "almost all.jpg": (jpeg[: int(len(jpeg) * 0.95)], "truncated JPEG"),
        "header.jpg": (jpeg[:20], "truncated JPEG"),
        "half.png": (png[: len(png) // 2], "truncated PNG"),
        "crc.png": (png[:60] + bytes([png[60] ^ 255]) + png[61:], "damaged image: "),
        "anim.jpg": (b"GIF89a" + bytes(40), "a GIF, which is not supported"),
        "zip.jpg": (b"PK\x03\x04" + bytes(40), "not an image: a zip archive"),
        "new\nline.jpg": (b"", "zero bytes"),
    }
    for name, (content, _) in broken.items():
        (tmp_path / name).write_bytes(content)
    reasons = {name: why for name, (_, why) in broken.items()}
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    reasons |= {"link.jpg": "broken link", "gone.jpg": "no such file", "folder.jpg": "is a directory"}
    return [str(tmp_path / name) for name in ("good.jpg", *reasons, "good.png")], reasons


def test_every_bad_file_is_found_by_name_and_reason(zoo):
    paths, reasons = zoo
    found = scan(Files(paths))
    assert [path for path, _ in found.bad] == paths[1:-1]
    for path, why in found.bad:
        assert why.startswith(reasons[os.path.basename(path)]), (path, why)
    assert found.sizes[[0, -1]].tolist() == [[200, 300], [60, 50]] and not found.sizes[1:-1].any()


def test_require_readable_names_the_first_and_counts(zoo):
    paths, reasons = zoo
    require_readable(scan(Files([paths[0], paths[-1]])))
    with pytest.raises(
        DataError, match=r"text.jpg: not an image: starts with text \(15 of 17 files .*: replace"
    ) as caught:
        require_readable(scan(Files(paths)))
    assert caught.value.exit_code == 3
    newline = next(path for path in paths if "\n" in path)
    with pytest.raises(DataError, match="zero bytes: replace or delete it, then run the same command") as caught:
        require_readable(scan(Files([newline])))
    assert "\n" not in str(caught.value)


def test_decompression_bomb_is_an_error(save, tmp_path, monkeypatch, recwarn):
    path = save(tmp_path / "bomb.png", height=40, width=50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1999)
    assert scan(Files([path])).bad == [(path, "image too large: 50x40 px, over the limit of 1999 pixels")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    assert scan(Files([path])).bad[0][1].startswith("image too large: ")
    assert not recwarn.list


def test_sizes_are_as_displayed(save, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [save(tmp_path / f"turned.{kind}", height=20, width=30, exif=exif) for kind in ("jpg", "png")]
    assert scan(Files(paths)).sizes.tolist() == [[30, 20], [30, 20]]


def test_permission_denied_is_a_reason(save, tmp_path, monkeypatch):
    path = save(tmp_path / "secret.png")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Files, "read", refuse)
    assert scan(Files([path])).bad == [(path, "permission denied")]


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

"""bitfast bench --input-only: a rate for every stage, and the options of finetune."""

import json

import numpy as np
import pytest
from photos import write_class_folders

from bitfast.cli import main
from bitfast.recipes.bench import bench


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=12)


def test_command(photos, capsys):
    options = ["--images", "20", "--resize", "36", "--crop", "32", "--interpolation", "lanczos"]
    assert main(["bench", "--input-only", str(photos), *options]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    rates = report["images_per_second"]
    assert report["images"] == 20 and report["median_size"] == [40, 48] and "lanczos" in report["transform"]
    assert {"read", "decode (pillow)", "resize and crop", "whole pipeline (pillow)", "for the trainer"} <= set(rates)
    assert all(rate > 0 for rate in rates.values()) and all(stage in output.err for stage in rates)


def test_arrays_have_nothing_to_decode_with_dali():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 24, 3), dtype=np.uint8)
    report = bench((pixels, [0, 1] * 15), resize=20, crop=16, mixup=0.5, train_crop="inception")
    assert not any("dali" in stage for stage in report.images_per_second) and report.images == 30


@pytest.mark.parametrize(
    "options, code, words",
    [
        ([], 2, "bitfast bench --input-only DATA"),
        (["--input-only", "--images", "0"], 2, "--images must be at least 1"),
        (["--input-only", "--crop", "64", "--resize", "32"], 2, "--crop 64"),
    ],
)
def test_refuses(photos, capsys, options, code, words):
    assert main(["bench", str(photos), *options]) == code
    assert words in capsys.readouterr().err


def test_a_bad_file_is_named(tmp_path, capsys):
    root = write_class_folders(tmp_path / "fruit", per_class=3)
    (root / "apple" / "1.png").write_bytes(b"")
    assert main(["bench", str(root), "--input-only"]) == 3
    assert "1.png: zero bytes" in capsys.readouterr().err

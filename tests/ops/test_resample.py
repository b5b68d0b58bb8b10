"""Windows of resized images against dense matrices in float64, against Pillow, and against themselves."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bitfast.ops import resample, use_impl
from bitfast.ops.resample.op import FILTERS

IMPLS = ["native", "pillow"]
SIZES = [(40, 50, 24, 31), (40, 50, 40, 50), (13, 17, 29, 33), (200, 90, 7, 5), (1, 1, 9, 4), (3, 200, 16, 16)]


def kernel(name, x):
    """The filters as their papers define them."""
    x = np.abs(x)
    if name == "bilinear":
        return np.clip(1 - x, 0, None)
    if name == "bicubic":
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x < 1, near, np.where(x < 2, far, 0))
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)


def matrix(name, old, new):
    """(new, old) float64: row i makes output pixel i."""
    centre = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    if name == "nearest":
        return (np.clip(np.floor(centre + 0.5), 0, old - 1) == np.arange(old)).astype(float)
    beyond = 3 * max(1, -(-old // new)) + 3
    index = np.arange(-beyond, old + beyond)
    weights = kernel(name, (index - centre) / max(1, old / new))
    weights /= weights.sum(1, keepdims=True)
    result = np.zeros((new, old))
    for column, where in enumerate(np.clip(index, 0, old - 1)):
        result[:, where] += weights[:, column]
    return result


def truth(image, name, new):
    rows, columns = matrix(name, image.shape[0], new[0]), matrix(name, image.shape[1], new[1])
    return np.einsum("yh,hwc,xw->yxc", rows, image.astype(float), columns).clip(0, 255)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(image, window, shape, name="bilinear", dtype=torch.uint8, mean=0.0, std=1.0):
    out = torch.empty((1, *shape, 3), dtype=dtype)
    return resample([image], [window], out, interpolation=name, mean=mean, std=std)[0]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("height, width, new_height, new_width", SIZES)
def test_matches_definition(impl, name, height, width, new_height, new_width):
    image = noise(height, width)
    with use_impl("resample", impl):
        got = run(image, (0, 0, height, width, new_height, new_width, 0, 0, 0), (new_height, new_width), name)
    error = np.abs(got.numpy() - truth(image, name, (new_height, new_width)))
    assert error.max() <= {"native": 0.5001, "pillow": 1.5}[impl] and error.mean() <= 0.35
    if name == "nearest":
        assert error.max() == 0


@pytest.mark.parametrize("name", FILTERS)
def test_a_window_is_part_of_the_whole(name):
    """To the bit, also mirrored, and of a box of a larger image."""
    image = noise(70, 90)
    box = image[11:61, 20:83]
    whole = run(box.copy(), (0, 0, 50, 63, 41, 37, 0, 0, 0), (41, 37), name)
    for y, x, height, width in [(0, 0, 41, 37), (5, 3, 20, 30), (40, 36, 1, 1), (0, 20, 41, 17)]:
        part = whole[y : y + height, x : x + width]
        for flip in (0, 1):
            got = run(image, (11, 20, 50, 63, 41, 37, y, x, flip), (height, width), name)
            assert torch.equal(got, part.flip(1) if flip else part)


@pytest.mark.parametrize("impl", IMPLS)
def test_same_size_is_the_same_image(impl):
    image = noise(31, 24)
    with use_impl("resample", impl):
        for name in FILTERS:
            got = run(image, (0, 0, 31, 24, 31, 24, 4, 2, 1), (20, 16), name)
            assert np.array_equal(got, image[4:24, 2:18][:, ::-1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalised_as_torch_does(impl, dtype):
    image, window = noise(33, 40), (0, 0, 33, 40, 20, 20, 2, 2, 0)
    with use_impl("resample", impl):
        levels, got = run(image, window, (16, 16)), run(image, window, (16, 16), dtype=dtype, mean=127.5, std=127.5)
    expected = (levels.float() - 127.5) / 127.5
    assert torch.allclose(got.float(), expected, rtol=0, atol=1.5e-7 if dtype == torch.float32 else 2**-9)
    assert got.dtype == dtype


def test_large_photo_equals_pillow():
    """No frame is needed away from the border; Pillow rounds twice."""
    coarse = Image.fromarray(noise(20, 30)).resize((900, 600), Image.Resampling.BICUBIC)
    got = run(np.asarray(coarse), (0, 0, 600, 900, 160, 160, 0, 0, 0), (160, 160)).numpy().astype(int)
    expected = np.asarray(coarse.resize((160, 160), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(got - expected).max() <= 1


def test_threads_and_company_change_nothing(threads):
    images = [noise(20 + i, 30 + 3 * i, i) for i in range(9)]
    windows = [(0, 0, *image.shape[:2], 24, 24, i % 5, 1, i % 2) for i, image in enumerate(images)]
    alone = torch.stack([run(image, window, (16, 16)) for image, window in zip(images, windows, strict=True)])
    for count in (1, 2, 3):
        threads(count)
        out = torch.empty((9, 16, 16, 3), dtype=torch.uint8)
        assert torch.equal(resample(images, windows, out, interpolation="bilinear", mean=0, std=1), alone)


def test_every_instruction_set_agrees():
    code = (
        "import numpy as np, torch; from bitfast.ops import resample\n"
        "x = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)\n"
        "for name in ('bilinear', 'lanczos'):\n"
        "    out = torch.empty((1, 20, 21, 3), dtype=torch.uint8)\n"
        "    resample([x], [(0, 0, 61, 47, 24, 24, 1, 2, 1)], out, interpolation=name, mean=0, std=1)\n"
        "    print(*out.flatten().tolist())\n"
    )
    results = {}
    for isa in ("baseline", "avx2", "avx512"):
        env = {**os.environ, "BITFAST_CPU_ISA": isa, "PYTHONPATH": ":".join(filter(None, sys.path))}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        if "that this machine has" not in done.stderr:
            assert done.returncode == 0, done.stderr
            results[isa] = np.array(done.stdout.split(), dtype=int)
    for levels in results.values():
        assert np.abs(levels - results["baseline"]).max() <= 1


def test_no_images():
    assert (
        resample([], np.zeros((0, 9)), torch.empty(0, 4, 4, 3), interpolation="bilinear", mean=0, std=1).shape[0] == 0
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"window": (0, 0, 9, 9, 8, 8, 0, 0, 0)}, "not in its image"),
        ({"window": (0, 0, 8, 8, 8, 8, 5, 0, 0)}, "not in its image"),
        ({"window": (-1, 0, 8, 8, 8, 8, 0, 0, 0)}, "not in its image"),
        ({"image": np.zeros((8, 8, 4), np.uint8)}, r"must be uint8 \(H, W, 3\)"),
        ({"image": np.zeros((8, 8, 3), np.float32)}, r"must be uint8 \(H, W, 3\)"),
        ({"name": "sinc"}, "unknown interpolation 'sinc'"),
        ({"dtype": torch.float64}, "must be one of torch.uint8"),
    ],
)
def test_refuses(change, words):
    arguments = {"image": noise(8, 8), "window": (0, 0, 8, 8, 8, 8, 0, 0, 0), "shape": (4, 4)}
    with pytest.raises((ValueError, TypeError), match=words):
        run(**{**arguments, **change})

"""Generated images and folders: nothing is downloaded, everything is seeded."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

import bitfast.data.loader as loader
from bitfast.data.dataset import open_dataset
from bitfast.errors import DataError, UsageError


def make_photo(height, width, seed=0):
    """(H, W, 3) uint8 with a photo's smoothness: a blurred random field and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def save_photo(path, seed=0, height=24, width=20, **options):
    """Write such a picture, in the format of the suffix; returns the path as str."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_photo(height, width, seed)).save(path, **options)
    return str(path)


def must_refuse(match, *args, error=DataError, **options):
    """open_dataset must fail with one line that matches, and the exit code of its kind."""
    with pytest.raises(error, match=match) as caught:
        open_dataset(*args, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == {DataError: 3, UsageError: 2}[error]


@pytest.fixture
def refused():
    return must_refuse


@pytest.fixture
def photo():
    return make_photo


@pytest.fixture
def save():
    return save_photo


@pytest.fixture
def tree(tmp_path):
    """make({"cat": 3, "dog": 2}) -> root folder with that many distinct PNGs per class folder."""

    def make(counts, root=tmp_path / "photos"):
        root.mkdir(parents=True, exist_ok=True)
        for label, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True)
            for i in range(count):
                save_photo(root / name / f"{i:03d}.png", seed=1000 * label + i)
        return root

    return make


@pytest.fixture
def tars(tmp_path):
    """make({"a": 3, "b": 2}) -> folder of WebDataset shards with that many samples per class."""

    def make(counts, per_shard=4):
        root = tmp_path / "shards"
        root.mkdir()
        labels = [name for name, count in counts.items() for _ in range(count)]
        for first in range(0, len(labels), per_shard):
            with tarfile.open(root / f"{first // per_shard:03d}.tar", "w") as archive:
                for i in range(first, min(first + per_shard, len(labels))):
                    path = save_photo(tmp_path / "one.png", seed=i)
                    archive.add(path, f"{i:06d}.png")
                    label = tarfile.TarInfo(f"{i:06d}.cls")
                    label.size = len(labels[i])
                    archive.addfile(label, io.BytesIO(labels[i].encode()))
                    os.remove(path)
        return root

    return make


@pytest.fixture(params=["dali", "pillow"])
def engine(request):
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return loader.chosen_engine(request.param)

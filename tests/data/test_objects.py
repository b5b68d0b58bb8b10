"""Python objects as data: arrays, lists, map-style datasets, Hugging Face datasets."""

import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bitfast.data import check
from bitfast.data.dataset import open_dataset
from bitfast.data.listing import Fields
from bitfast.errors import UsageError


@pytest.fixture
def pictures(photo):
    return np.stack([photo(9, 8, seed=i) for i in range(6)])


LABELS = ["b", "a", "b", "a", "c", "c"]


def train_of(data, **options):
    return open_dataset(data, val_split=0, **options).train


def reads(split, pictures):
    return all(np.array_equal(split.images.read(i), picture) for i, picture in enumerate(pictures))


def encoded(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


class Dataset:
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Broken(Dataset):
    def __getitem__(self, i):
        if i == 2:
            raise OSError("disk on\nfire")
        return self.items[i]


def test_arrays_lists_and_datasets_are_the_same(pictures):
    images = [Image.fromarray(picture) for picture in pictures]
    numbers = [{"a": 0, "b": 1, "c": 2}[label] for label in LABELS]
    named = Dataset(list(zip(images, numbers, strict=True)))
    named.classes = ["a", "b", "c"]
    kept = Dataset([(image, None) for image in images])
    kept.classes, kept.targets = named.classes, numbers
    for data in (
        (pictures, LABELS),
        (pictures, np.array(LABELS)),
        (list(pictures), LABELS),
        (torch.from_numpy(pictures), LABELS),
        (images, LABELS),
        list(zip(images, LABELS, strict=True)),
        Dataset(list(zip(pictures, LABELS, strict=True))),
        Dataset([{"image": image, "label": label} for image, label in zip(images, LABELS, strict=True)]),
        named,
        kept,
        torch.utils.data.Subset(named, range(6)),
        torch.utils.data.Subset(kept, range(6)),
        torch.utils.data.TensorDataset(torch.from_numpy(pictures), torch.tensor(numbers)),
    ):
        split = train_of(data)
        assert reads(split, pictures)
        assert split.classes in (("a", "b", "c"), ("0", "1", "2")) and split.labels.tolist() == numbers
    assert train_of((pictures, LABELS)).images.name(5) == "images[5]"
    assert train_of(named).images.name(5) == "dataset[5]"


def test_gray_arrays_and_encoded_bytes(pictures):
    assert train_of((pictures[..., 0], LABELS)).images.read(1).shape == (9, 8, 1)
    split = train_of(([encoded(picture) for picture in pictures], LABELS))
    assert split.images.read(2) == encoded(pictures[2])
    scanned = check.scan(split.images)
    assert not scanned.bad and scanned.sizes.tolist() == [[9, 8]] * 6


def test_lists_of_paths(save, tmp_path):
    paths = [save(tmp_path / f"{i}.png", seed=i) for i in range(4)]
    pairs = list(zip(paths, "abab", strict=True))
    assert train_of(pairs).images.paths == train_of((paths, "abab")).images.paths == tuple(paths)


def test_nothing_of_the_user_is_changed(pictures):
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pictures[0]).save(file, "JPEG", exif=turned)
    image = Image.open(file)
    split = train_of(([image, image], ["a", "b"]))
    assert split.images.read(0).shape == (8, 9, 3) and image.size == (8, 9) and image.getexif()[0x0112] == 6
    before = pictures.copy()
    train_of((pictures, LABELS)).images.read(0)
    assert np.array_equal(before, pictures)


def test_duplicates_are_told_by_pixels(pictures):
    doubled = np.concatenate([pictures, pictures])
    data = open_dataset((doubled, [*"ab" * 3, *"ab" * 3]), val_split=0.34)
    sides = [{split.images.read(i).tobytes() for i in range(len(split))} for split in (data.train, data.val)]
    assert not sides[0] & sides[1] and len(data.val) == 4


def test_sources_can_be_pickled(pictures):
    images = [Image.fromarray(picture) for picture in pictures]
    for data in ((pictures, LABELS), list(zip(images, LABELS, strict=True))):
        again = pickle.loads(pickle.dumps(train_of(data).images.take([4, 1])))
        assert np.array_equal(again.read(1), pictures[1]) and len(again) == 2


def test_multilabel_forms(pictures):
    expected = [[1, 0], [1, 1], [0, 0], [0, 1], [0, 0], [1, 0]]
    lists = [["x"], ["x", "y"], [], ("y",), set(), {"x"}]
    matrix = np.array(expected)
    items = Dataset(list(zip(pictures, lists, strict=True)))
    for data in (
        (pictures, lists),
        (pictures, matrix),
        (pictures, matrix.astype(bool)),
        (pictures, torch.tensor(matrix)),
        (pictures, matrix.astype(float)),
        items,
        Dataset(list(zip(pictures, torch.tensor(matrix), strict=True))),
    ):
        split = train_of(data)
        assert split.multilabel and split.labels.dtype == bool and split.labels.astype(int).tolist() == expected
        assert split.classes in (("x", "y"), ("0", "1"))
    texts = ["x", "x;y", "", "y", "", "x"]
    assert train_of((pictures, texts), fields=Fields(separator=";")).labels.astype(int).tolist() == expected
    wide = np.eye(6, 12, dtype=int)
    assert train_of((pictures, wide)).classes == tuple(f"{column:02d}" for column in range(12))


def test_validation_of_another_kind(pictures, refused):
    several = open_dataset((pictures, [["x", "y"], ["x"], ["y"], [], [], []]), val=(pictures[:2], ["x", "y"]))
    assert several.val.labels.tolist() == [[True, False], [False, True]]
    refused(
        r"the val list: images\[1\] has 2 labels, but the list has one per image",
        (pictures, LABELS),
        val=(pictures[:2], [["a"], ["a", "b"]]),
    )
    refused(
        "the val list has class 'q' that the list does not", (pictures, [["x", "y"]] * 6), val=(pictures[:1], [["q"]])
    )


@pytest.mark.parametrize(
    "make, match, error",
    [
        (lambda p: (p.astype(float), LABELS), "images of float64 .6, 9, 8, 3.: give uint8", None),
        (lambda p: (p.transpose(0, 3, 1, 2).repeat(2, 3), LABELS), "put channels last", None),
        (lambda p: (p[0], ["a"] * 9), "shape .9, 8, 3., which looks like one image", None),
        (lambda p: (p, LABELS[:-1]), "the list has 6 images but 5 labels", None),
        (lambda p: (p, [0.5] * 6), r"the list has the label 0.5 \(float\)", None),
        (lambda p: (p, [["a", 1.5]] * 6), r"the list has the label 1.5 \(float\)", None),
        (lambda p: (p, [np.ones(i) for i in range(6)]), r"label arrays of shapes \(0,\), \(1,\)", None),
        (lambda p: (p, np.full((6, 2), 2)), r"has 2 in its \(N, K\) labels: these are 0 or 1", None),
        (lambda p: ([torch.rand(3, 9, 8)] * 6, LABELS), r"images\[0\]: float32 .3, 9, 8. is not an image", None),
        (lambda p: Dataset([(torch.rand(3, 9, 8), 1)] * 6), r"dataset\[0\]: float32 .* leave out transforms", None),
        (lambda p: Broken([(p[0], 1)] * 3), r"its item 2 raises OSError \(disk on fire\): repair or drop it", None),
        (lambda p: Dataset([]), "the list has no images", None),
        (lambda p: Dataset([1, 2, 3]), "its items are not .image, label.", UsageError),
        (
            lambda p: Dataset([{"image": p[0], "y": 1}] * 3),
            "columns image, y, none of which is .* label_field",
            UsageError,
        ),
        (lambda p: iter([]), "is a list_iterator: give a folder, or a pair", UsageError),
        (lambda p: 7, "is a int: give a folder", UsageError),
        (lambda p: (p, [[]] * 6), "has no label at all", None),
    ],
)
def test_what_is_wrong_is_said(pictures, refused, make, match, error):
    refused(match, make(pictures), **({"error": error} if error else {}))


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Value:
    pass


class Sequence:
    def __init__(self, feature):
        self.feature = feature


class FakeImage:
    def __init__(self, decode=True):
        self.decode = decode


FakeImage.__name__ = "Image"


class HuggingFace:
    """What bitfast uses of datasets.Dataset: decoding must be switched off before an image is read."""

    def __init__(self, columns, features):
        self.columns, self.features = columns, features
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def with_format(self, kind):
        assert kind is None
        return self

    def cast_column(self, name, feature):
        return HuggingFace(self.columns, {**self.features, name: feature})

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        assert not any(type(feature) is FakeImage and feature.decode for feature in self.features.values())
        return {name: values[key] for name, values in self.columns.items()}


def test_a_hugging_face_dataset_without_the_library(pictures, save, tmp_path, refused):
    stored = [{"bytes": encoded(picture), "path": None} for picture in pictures[:5]]
    stored.append({"bytes": None, "path": save(tmp_path / "x.png", seed=5)})
    columns = {"id": list(range(6)), "photo": stored, "kind": [1, 0, 1, 0, 2, 2]}
    features = {"id": Value(), "photo": FakeImage(), "kind": ClassLabel(["ant", "bee", "cat"])}
    data = HuggingFace(columns, features)
    split = train_of({"train": data, "validation": data})
    assert split.classes == ("ant", "bee", "cat") and split.labels.tolist() == columns["kind"]
    assert [split.images.read(i) for i in range(5)] == [item["bytes"] for item in stored[:5]]
    assert split.images.read(5) == (tmp_path / "x.png").read_bytes()
    assert len(open_dataset({"train": data, "validation": data}).val) == 6
    several = HuggingFace(
        {**columns, "kind": [[0, 1], [], [2], [1], [0], []]}, {**features, "kind": Sequence(features["kind"])}
    )
    assert train_of(several).names(0) == ("ant", "bee")
    two = HuggingFace({**columns, "coarse": columns["kind"]}, {**features, "coarse": features["kind"]})
    refused("columns id, photo, kind, coarse, none of which is a usual name of the label", two, error=UsageError)
    assert train_of(two, fields=Fields(label="coarse")).labels.tolist() == columns["kind"]
    stream = SimpleNamespace(features=features, column_names=list(columns))
    refused("is a stream without a length", stream, error=UsageError)


def test_a_dict_holds_anything_for_each_part(pictures, tree, refused):
    root = tree({"a": 1, "b": 1, "c": 1})
    data = open_dataset({"train": (pictures, LABELS), "valid": str(root)})
    assert data.val.names(2) == ("c",) and len(data.train) == 6
    assert open_dataset({"train": str(root)}, val_split=0).val is None
    refused("is a dict: give a folder", {"training_images": pictures}, error=UsageError)


def test_a_hugging_face_dataset(pictures, save, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = [save(tmp_path / f"{i}.png", seed=i) for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    data = datasets.Dataset.from_dict({"image": paths, "label": [1, 0, 1, 0, 2, 2]}, features=features)
    both = datasets.DatasetDict({"train": data, "test": data.select([1, 0])})
    opened = open_dataset(both)
    assert opened.train.classes == ("ant", "bee", "cat") and opened.val.names(1) == ("bee",)
    assert [opened.train.images.read(i) for i in range(6)] == [open(path, "rb").read() for path in paths]
    assert not check.scan(opened.train.images).bad
    held = [Image.fromarray(picture) for picture in pictures]
    in_memory = datasets.Dataset.from_dict({"image": held, "label": [1, 0, 1, 0, 2, 2]}, features=features)
    assert check.scan(train_of(in_memory).images).sizes.tolist() == [[9, 8]] * 6


def test_names_without_labels_are_no_pair():
    """Two names are no (images, labels), of which each letter would be one."""
    for names in (["a.tar", "b.tar"], ("a.jpg", "b.jpg"), ["a.jpg"] * 3):
        with pytest.raises(UsageError, match=f"{len(names)} names and no labels: give .paths, labels."):
            open_dataset(names)

"""DATA that is Python objects: lists, arrays, map-style datasets, Hugging Face datasets."""

import os
from functools import partial
from operator import itemgetter

import numpy as np

from bitfast.data.decode import Unreadable
from bitfast.data.listing import Listing, Parts
from bitfast.data.source import Arrays, Files, Mapped, Mixed
from bitfast.errors import DataError, UsageError

_IMAGES = ("image", "img", "picture", "pixel_values", "jpg", "png", "path", "file")
_LABELS = ("label", "labels", "class", "category", "target", "targets", "fine_label")


def list_objects(data, where, fields):
    """The Parts of (images, labels), of a map-style dataset of (image, label) or {"image": ..., "label": ...}, or of a
    Hugging Face dataset.

    images  paths; or uint8 (N, H, W, C) or (N, H, W); or a list of uint8 arrays, PIL images or encoded bytes
    labels  names or ints; lists of these, or 0/1 (N, K), for multi-label. The classes of (N, K) are the column numbers,
            written with equally many digits, so that their order is that of the columns

    Raises:  UsageError on another kind of object, DataError on what is wrong inside
    """
    if isinstance(data, (tuple, list)) and len(data) and all(isinstance(item, (str, os.PathLike)) for item in data):
        raise UsageError(
            f"{where} holds {len(data)} names and no labels: give (paths, labels); for shards a pattern such as "
            "'shards-*.tar'"
        )
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return Parts(_pair(*data, where))
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return Parts(_hugging_face(data, where, fields))
    if isinstance(data, dict) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UsageError(
            f"{where} is a {type(data).__name__}: give a folder, or a pair (paths, labels) or (uint8 array, labels), "
            "or a dataset that has a length and items (image, label)"
        )
    return Parts(_dataset(data, where, fields))


def _pair(images, labels, where):
    source = images_of(images, where)
    names, classes = _names(labels, where)
    if len(source) != len(names):
        what = "paths" if isinstance(source, Files) else "images"
        raise DataError(f"{where} has {len(source)} {what} but {len(names)} labels: give one label per image")
    return Listing(source, names, where, classes)


def images_of(images, where):
    """The Source of a list of paths; of uint8 (N, H, W, C) or (N, H, W); or of a list of uint8 (H, W, C) or (H, W), PIL
    images, encoded bytes and paths, of one kind or mixed. Raises DataError, saying what is expected, on other things.
    """
    if hasattr(images, "dtype") and hasattr(images, "ndim") and images.ndim > 1:
        shape = tuple(images.shape)
        if "uint8" not in str(images.dtype) or images.ndim not in (3, 4):
            raise DataError(
                f"{where} has images of {images.dtype} {shape}: give uint8 (N, H, W, C) or (N, H, W), values 0 to 255"
            )
        if images.ndim == 4 and shape[3] > 4:
            raise DataError(f"{where} has images of shape {shape}: put channels last, (N, H, W, C) with C up to 4")
        if images.ndim == 3 and shape[2] <= 4:
            raise DataError(f"{where} has shape {shape}, which looks like one image: give (N, H, W, C), or [image]")
        return Arrays(images)
    images = list(images)
    if all(isinstance(image, (str, os.PathLike)) for image in images):
        return Files(images)
    if all(isinstance(image, np.ndarray) for image in images):
        return _tried(Arrays(images), where)
    return _tried(Mixed(images), where)


def _tried(source, where):
    """The source, if its first image is one."""
    if len(source):
        try:
            source.read(0)
        except Unreadable as error:
            raise DataError(f"{where}: {source.name(0)}: {error}") from error
        except OSError:
            pass  # the scan names it
    return source


def _names(labels, where):
    """(names, classes): the labels as in a Listing."""
    if getattr(labels, "ndim", 1) == 2:
        return _from_indicators(np.asarray(labels), where)
    names = []
    for label in labels:
        if getattr(label, "ndim", None) == 1:
            rows = [np.asarray(label) for label in labels]
            shapes = {row.shape for row in rows}
            if len(shapes) > 1:
                raise DataError(
                    f"{where} has label arrays of shapes {', '.join(map(str, sorted(shapes)))}: "
                    "give 0 or 1 for each class in every one, or lists of names"
                )
            return _from_indicators(np.stack(rows), where)
        several = isinstance(label, (list, tuple, set, frozenset))
        texts = tuple(_text(item, where) for item in (sorted(label, key=str) if several else (label,)))
        names.append(texts if several else texts[0])
    return names, ()


def _text(label, where):
    if hasattr(label, "item") and getattr(label, "ndim", None) == 0:
        label = label.item()
    if not isinstance(label, (str, int)):
        raise DataError(f"{where} has the label {label!r} ({type(label).__name__}): labels are names (str) or ints")
    return str(label)


def _from_indicators(matrix, where):
    if not np.isin(matrix, (0, 1)).all():
        value = matrix[~np.isin(matrix, (0, 1))].flat[0]
        raise DataError(f"{where} has {value} in its (N, K) labels: these are 0 or 1 for each class")
    digits = len(str(matrix.shape[1] - 1))
    classes = tuple(f"{column:0{digits}d}" for column in range(matrix.shape[1]))
    return [tuple(classes[column] for column in np.flatnonzero(row)) for row in matrix], classes


def _dataset(dataset, where, fields):
    if not len(dataset):
        raise DataError(f"{where} has no images: give at least two classes of images")
    first = _item(dataset, 0, where)
    try:
        image, label = _keys(first, where, fields)
        first[image], first[label]
    except (LookupError, TypeError) as error:
        raise UsageError(
            f"{where}: its items are not (image, label) nor a dict with an image and a label ({error!r})"
        ) from error
    if isinstance(dataset, list) and all(isinstance(item[image], (str, os.PathLike)) for item in dataset):
        source = Files([item[image] for item in dataset])
    else:
        source = _tried(Mapped(dataset, itemgetter(image)), where)
    known = _known_labels(dataset)
    labels = [_item(dataset, i, where)[label] for i in range(len(dataset))] if known is None else known
    names, classes = _names(labels, where)
    return Listing(source, _by_class_names(names, dataset), where, classes)


def _item(dataset, i, where):
    try:
        return dataset[i]
    except Exception as error:  # whatever the user's code raises
        why = " ".join(str(error).split()) or "no message"
        raise DataError(f"{where}: its item {i} raises {type(error).__name__} ({why}): repair or drop it") from error


def _keys(item, where, fields):
    if isinstance(item, dict):
        return (_key(item, fields.image, _IMAGES, "image", where), _key(item, fields.label, _LABELS, "label", where))
    return 0, 1


def _key(names, wanted, usual, what, where):
    name = next((name for name in ((wanted,) if wanted else usual) if name in names), None)
    if name is None:
        asked = f"not {wanted}" if wanted else f"none of which is a usual name of the {what}"
        raise UsageError(f"{where} has the columns {', '.join(map(str, names))}, {asked}: name it with {what}_field")
    return name


def _known_labels(dataset):
    """The labels of a dataset that keeps them aside (torchvision's `targets`; a Subset of such), or None."""
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None or len(targets) != len(dataset):
        return None
    return targets


def _by_class_names(names, dataset):
    """Numbers replaced by the names in `classes` of the dataset, if it has that."""
    while hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    if getattr(dataset, "target_transform", None) is not None or not isinstance(classes, (list, tuple)):
        return names
    named = {str(number): str(name) for number, name in enumerate(classes)}
    return [_renamed(name, named) for name in names]


def _renamed(name, named):
    return tuple(named.get(part, part) for part in name) if isinstance(name, tuple) else named.get(name, name)


def _hugging_face(dataset, where, fields):
    """A datasets.Dataset, read without decoding: the column of type Image as stored bytes, ClassLabel by its names."""
    if not hasattr(dataset, "__len__"):
        raise UsageError(f"{where} is a stream without a length: load it with streaming=False, or give shards")
    features = dataset.features
    kind = {name: type(feature).__name__ for name, feature in features.items()}
    typed = [name for name in features if kind[name] == "Image"]
    image = fields.image or (typed[0] if len(typed) == 1 else None) or _key(features, None, _IMAGES, "image", where)
    labelled = [name for name in features if _class_names(features[name]) is not None]
    label = (
        fields.label or (labelled[0] if len(labelled) == 1 else None) or _key(features, None, _LABELS, "label", where)
    )
    for name, what in ((image, "image"), (label, "label")):
        _key(features, name, (), what, where)
    plain = dataset.with_format(None)
    labels = list(plain[label])
    if kind[image] == "Image":
        plain = plain.cast_column(image, type(features[image])(decode=False))
    source = _tried(Mapped(plain, partial(_stored, image)), where)
    names, classes = _names(labels, where)
    known = _class_names(features[label])
    if known is not None:
        named = {str(number): name for number, name in enumerate(known)}
        names = [_renamed(name, named) for name in names]
    return Listing(source, names, where, classes)


def _class_names(feature):
    """The names of a ClassLabel, or of a sequence of them; None for another feature."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _stored(column, item):
    value = item[column]
    if isinstance(value, dict):
        return value["path"] if value.get("bytes") is None else value["bytes"]
    return value

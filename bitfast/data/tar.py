"""WebDataset shards: tar files in which the members 000123.jpg and 000123.cls are one sample."""

import json
import os
import tarfile

from bitfast.data.decode import shown
from bitfast.data.folder import SUFFIXES, is_image, is_litter
from bitfast.data.listing import Listing
from bitfast.data.source import Shards
from bitfast.errors import DataError

_LABELS = ("cls", "txt", "json")
_KEYS = ("label", "labels", "class", "class_name", "cls", "category", "target")


def list_tars(paths, fields, where):
    """The Listing of the samples of all shards, in the order of the archives.

    A sample is what shares a name up to the first dot of its last part. Its image is the first member with an image
    suffix (or fields.image); its label the text of .cls or .txt, or in .json the value of `label` (or of
    fields.label, which may also name another suffix); a list there makes it multi-label.

    Raises:  DataError naming shard and sample, on archives that cannot be read and samples without image or label
    """
    shard, members, offsets, lengths, names = [], [], [], [], []
    for number, path in enumerate(paths):
        samples = _samples(path)
        with open(path, "rb") as file:
            for key, parts in samples.items():
                suffix = _image_suffix(parts, fields)
                if suffix is None:
                    raise DataError(f"{shown(path)}: sample {shown(key)} has no image, only {_listed(parts)}: add one")
                name, offset, length = parts[suffix]
                names.append(_label(file, path, key, parts, fields))
                shard.append(number)
                members.append(name)
                offsets.append(offset)
                lengths.append(length)
    return Listing(Shards(paths, shard, members, offsets, lengths), names, where)


def images_in(path):
    """The Source of all images in one archive, by suffix, in its order; labels are not needed. Raises DataError."""
    found = [member for member in _members(path) if is_image(member.name)]
    if not found:
        raise DataError(f"{shown(path)}: no images in this tar file: give one that holds some")
    names, offsets, lengths = zip(*((m.name, m.offset_data, m.size) for m in found), strict=True)
    return Shards([path], [0] * len(found), names, offsets, lengths)


def _samples(path):
    """{key: {suffix: (member name, offset, length)}} of one archive, without reading what the members hold."""
    samples = {}
    for member in _members(path):
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        samples.setdefault(key, {}).setdefault(suffix.lower(), (member.name, member.offset_data, member.size))
    if not samples:
        raise DataError(f"{shown(path)}: no samples in this tar file: give shards of images and labels")
    return samples


def _members(path):
    """The files of one archive as TarInfos; hidden ones and system litter left out."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and not any(is_litter(part) for part in member.name.split("/") if part != "."):
                    yield member
    except (tarfile.TarError, OSError) as error:
        why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"{shown(path)}: cannot read this tar file ({' '.join(why.split())}): give whole, uncompressed archives"
        ) from error


def _image_suffix(parts, fields):
    if fields.image:
        return fields.image.lower() if fields.image.lower() in parts else None
    return next((suffix for suffix in parts if f".{suffix}" in SUFFIXES), None)


def _label(file, path, key, parts, fields):
    wanted = fields.label
    suffix = wanted.lower() if wanted and wanted.lower() in parts else None
    suffix = suffix or next((name for name in (("json",) if wanted else _LABELS) if name in parts), None)
    if suffix is None:
        raise DataError(
            f"{shown(path)}: sample {shown(key)} has no label, only {_listed(parts)}: "
            "add .cls, .txt or .json, or name the member with --label-field"
        )
    _, offset, length = parts[suffix]
    text = os.pread(file.fileno(), length, offset) if hasattr(os, "pread") else _seek_read(file, offset, length)
    try:
        text = text.decode("utf-8-sig").strip()
        value = _from_json(json.loads(text), wanted if wanted != suffix else None) if suffix == "json" else text
    except ValueError as error:
        raise DataError(
            f"{shown(path)}: the label of sample {shown(key)} in .{suffix} is not readable ({error}): correct it"
        ) from error
    if value in ("", None):
        raise DataError(f"{shown(path)}: the label of sample {shown(key)} in .{suffix} is empty: fill it")
    return value


def _from_json(value, wanted):
    if isinstance(value, dict):
        key = wanted or next((name for name in _KEYS if name in value), None)
        if key not in value:
            raise ValueError(f"no key {key or _KEYS[0]!r}, only {', '.join(map(repr, value))}")
        value = value[key]
    if isinstance(value, list) and all(isinstance(item, (str, int)) for item in value):
        return tuple(map(str, value))
    if isinstance(value, (str, int)):
        return str(value)
    raise ValueError(f"{value!r} is no name, number or list of them")


def _seek_read(file, offset, length):
    file.seek(offset)
    return file.read(length)


def _listed(parts):
    return ", ".join(f".{shown(suffix)}" for suffix in parts)

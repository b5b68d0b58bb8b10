"""TFRecord files of tf.train.Example: as much of the two formats as images and labels need.

A file is a sequence of records: length (8 bytes, little-endian), masked crc32c of the length (4), the record, masked
crc32c of the record (4). A record is the protobuf message Example{1: Features{1: map<string, Feature>}} with
Feature{1: BytesList | 2: FloatList | 3: Int64List}, each holding its values in field 1.
Source:  tensorflow/core/example/{example,feature}.proto; protobuf's wire format
"""

import struct

from bitfast.data.decode import shown
from bitfast.data.listing import Listing
from bitfast.data.source import Shards
from bitfast.errors import DataError

IMAGES = ("image/encoded", "image", "image_raw", "jpeg", "jpg", "png")
LABELS = ("image/class/label", "label", "labels", "class", "image/class/text", "target")

_HEAD = struct.Struct("<QI")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def list_records(paths, fields, where):
    """The Listing of all records of all files, named FILE:0, FILE:1, ...

    The image is the feature `fields.image` or the first of IMAGES that is there, as encoded bytes; the label
    `fields.label` or the first of LABELS: a number or a name; several values make it multi-label.

    Raises:  DataError naming file and record, on damaged files and records without image or label
    """
    shard, members, offsets, lengths, names = [], [], [], [], []
    for number, path in enumerate(paths):
        for record, (start, message) in enumerate(_records(path)):
            at = f"{shown(path)} record {record}"
            features = _features(message, at)
            image = _chosen(features, fields.image, IMAGES, "image", at)
            label = _chosen(features, fields.label, LABELS, "label", at)
            spans = _values(message, *features[image], at) if image else []
            if len(spans) != 1 or not isinstance(spans[0], slice):
                raise DataError(f"{at}: feature {image} does not hold one encoded image: name another, --image-field")
            shard.append(number)
            members.append(str(record))
            offsets.append(start + spans[0].start)
            lengths.append(spans[0].stop - spans[0].start)
            names.append(_name(message, _values(message, *features[label], at), label, at))
    if not names:
        raise DataError(f"{where}: no records in it: give files of tf.train.Example records")
    return Listing(Shards(paths, shard, members, offsets, lengths), names, where)


def is_tfrecord(path):
    """Whether the file starts with a record's length and its checksum."""
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
    return len(head) == _HEAD.size and _masked_crc(head[:8]) == _HEAD.unpack(head)[1]


def _records(path):
    """(offset, message) of each record."""
    try:
        with open(path, "rb") as file:
            at = 0
            while head := file.read(_HEAD.size):
                if len(head) < _HEAD.size:
                    raise DataError(f"{shown(path)}: truncated after byte {at}: get the file again")
                length, crc = _HEAD.unpack(head)
                if _masked_crc(head[:8]) != crc:
                    what = "it is compressed: decompress it" if head[:2] == b"\x1f\x8b" else "get the file again"
                    raise DataError(f"{shown(path)}: no TFRecord at byte {at} (wrong checksum of the length): {what}")
                message = file.read(length)
                if len(message) < length or len(file.read(4)) < 4:
                    raise DataError(f"{shown(path)}: truncated after byte {at}: get the file again")
                yield at + _HEAD.size, message
                at += _HEAD.size + length + 4
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot read it ({error.strerror.lower()}): make it readable") from error


def _features(message, at):
    """{name: (start, stop)} of the Feature messages in an Example."""
    found = {}
    for outer in _fields(message, 0, len(message), at, 1):
        for entry in _fields(message, outer.start, outer.stop, at, 1):
            name = next(iter(_fields(message, entry.start, entry.stop, at, 1)), None)
            feature = next(iter(_fields(message, entry.start, entry.stop, at, 2)), None)
            if name is not None and feature is not None:
                found[message[name].decode("utf-8", "replace")] = feature.start, feature.stop
    return found


def _values(message, start, stop, at):
    """The values of a Feature: slices of the message for bytes, ints for int64; floats are no labels: empty."""
    values = []
    for texts in _fields(message, start, stop, at, 1):
        values += _fields(message, texts.start, texts.stop, at, 1)
    for numbers in _fields(message, start, stop, at, 3):
        for value in _fields(message, numbers.start, numbers.stop, at, 1):
            if isinstance(value, int):
                values.append(_signed(value))
                continue
            position = value.start
            while position < value.stop:
                number, position = _varint(message, position, value.stop, at)
                values.append(_signed(number))
    return values


def _fields(message, start, stop, at, wanted):
    """The values of field number `wanted`: a slice of the message where it is length-delimited, else an int."""
    found, position = [], start
    while position < stop:
        key, position = _varint(message, position, stop, at)
        kind, value = key & 7, None
        if kind == _VARINT:
            value, position = _varint(message, position, stop, at)
        elif kind == _BYTES:
            length, position = _varint(message, position, stop, at)
            value = slice(position, position + length)
            position += length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise _damaged(at)
        if position > stop:
            raise _damaged(at)
        if key >> 3 == wanted and value is not None:
            found.append(value)
    return found


def _varint(message, position, stop, at):
    value = shift = 0
    while position < stop and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise _damaged(at)


def _signed(value):
    return value - (1 << 64) if value >> 63 else value


def _damaged(at):
    return DataError(f"{at}: not a tf.train.Example: give files of such records")


def _chosen(features, wanted, usual, what, at):
    names = (wanted,) if wanted else usual
    name = next((name for name in names if name in features), None)
    if name is None:
        there = ", ".join(sorted(features)) or "no features"
        raise DataError(f"{at}: no {what} feature {' or '.join(names)} ({there}): name it with --{what}-field")
    return name


def _name(message, values, feature, at):
    texts = [message[v].decode("utf-8", "surrogateescape") if isinstance(v, slice) else str(v) for v in values]
    if not texts:
        raise DataError(f"{at}: feature {feature} holds no number and no name: name the label with --label-field")
    return texts[0] if len(texts) == 1 else tuple(texts)


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC = _crc_table()


def _masked_crc(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

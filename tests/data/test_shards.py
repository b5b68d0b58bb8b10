"""WebDataset and TFRecord shards: patterns, samples, labels, and what is damaged is named."""

import io
import json
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from bitfast.data import shards, tfrecord
from bitfast.data.dataset import open_dataset
from bitfast.data.listing import Fields
from bitfast.data.source import Shards


def picture(photo, seed):
    file = io.BytesIO()
    Image.fromarray(photo(9, 8, seed=seed)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_patterns(tmp_path, refused):
    names = ["s-008.tar", "s-009.tar", "s-010.tar", "t-a.tar", "t-b.tar"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    base = str(tmp_path)
    found = {
        "s-{008..010}.tar": names[:3],
        "s-*.tar": names[:3],
        "{s-008,t-b}.tar": ["s-008.tar", "t-b.tar"],
        "{s-0*,t-a}.tar": ["s-008.tar", "s-009.tar", "s-010.tar", "t-a.tar"],
        "[st]-0?0.tar": ["s-010.tar"],
        "{s-0{08..09},t-{b,a}}.tar": [],
    }
    for pattern, expected in list(found.items())[:-1]:
        assert shards.is_pattern(f"{base}/{pattern}")
        assert shards.expand(f"{base}/{pattern}") == [f"{base}/{name}" for name in expected], pattern
    assert not shards.is_pattern(f"{base}/s-008.tar")
    refused("s-011.tar: no such file .of .*: check the pattern", f"{base}/s-{{008..011}}.tar")
    refused("counts down", f"{base}/s-{{9..8}}.tar")
    refused("x-.*: no file matches", f"{base}/x-*.tar")


def test_tar_samples(photo, tmp_path):
    images = [picture(photo, seed) for seed in range(6)]
    write_tar(
        tmp_path / "a-0.tar",
        [
            ("d/000.png", images[0]),
            ("d/000.cls", b"7"),
            ("d/001.cls", b"8\n"),
            ("d/001.json", b'{"width": 8}'),
            ("d/001.PNG", images[1]),
            ("./d/._002.png", b"litter"),
            ("__MACOSX/d/000.png", b"litter"),
            ("d/002.jpg", images[2]),
            ("d/002.txt", "ünï".encode()),
        ],
    )
    long = "x" * 150 + "/003"
    write_tar(tmp_path / "a-1.tar", [(long + ".jpeg", images[3]), (long + ".json", b'{"label": 8, "kind": "rose"}')])
    data = open_dataset(tmp_path / "a-*.tar", val_split=0).train
    assert data.classes == ("7", "8", "ünï") and data.labels.tolist() == [0, 1, 2, 1]
    assert [data.images.read(i) for i in range(4)] == images[:4]
    assert [data.images.size(i) for i in range(4)] == [len(image) for image in images[:4]]
    assert data.images.name(1) == f"{tmp_path}/a-0.tar:d/001.PNG"
    again = pickle.loads(pickle.dumps(data.images)).take([3, 0])
    assert [again.read(i) for i in range(2)] == [images[3], images[0]]


def test_tar_label_choices(photo, tmp_path):
    image = picture(photo, 0)
    path = tmp_path / "s.tar"
    samples = [{"label": ["b", "a"], "kind": "x"}, {"label": "a", "kind": "y"}, {"label": [], "kind": "x"}]
    write_tar(
        path, [m for i, s in enumerate(samples) for m in ((f"{i}.png", image), (f"{i}.json", json.dumps(s).encode()))]
    )
    data = open_dataset(path, val_split=0).train
    assert data.multilabel and [data.names(i) for i in range(3)] == [("a", "b"), ("a",), ()]
    assert open_dataset(path, val_split=0, fields=Fields(label="kind")).train.classes == ("x", "y")
    write_tar(path, [("0.png", image), ("0.tags", b"p q"), ("1.png", image), ("1.tags", b"q")])
    data = open_dataset(path, val_split=0, fields=Fields(label="tags", separator=" ")).train
    assert data.labels.tolist() == [[True, True], [False, True]]


def test_tar_errors(photo, tmp_path, refused):
    image, path = picture(photo, 0), tmp_path / "s.tar"
    for members, match in [
        ([("0.png", image)], "s.tar: sample 0 has no label, only .png: add .cls, .txt or .json"),
        ([("0.cls", b"1")], "s.tar: sample 0 has no image, only .cls"),
        ([("0.png", image), ("0.json", b"{")], "the label of sample 0 in .json is not readable"),
        ([("0.png", image), ("0.json", b'{"a": 1}')], "no key 'label', only 'a'"),
        ([("0.png", image), ("0.cls", b" ")], "the label of sample 0 in .cls is empty"),
        ([], "no samples in this tar file"),
    ]:
        write_tar(path, members)
        refused(match, path)
    write_tar(path, [(f"{i}.{kind}", image * 50) for i in range(9) for kind in ("png", "cls")])
    path.write_bytes(path.read_bytes()[:-30_000])
    refused("s.tar: cannot read this tar file .*whole, uncompressed archives", path)
    (tmp_path / "s.tar.gz").write_bytes(b"\x1f\x8b" + bytes(30))
    refused("s.tar.gz: cannot read this tar file", tmp_path / "s.tar.gz")


def test_many_shards_do_not_exhaust_open_files(tars, monkeypatch):
    monkeypatch.setattr(Shards, "KEPT", 2)
    images = open_dataset(tars({"a": 8, "b": 8}, per_shard=2) / "*.tar", val_split=0).train.images
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    contents = [images.read(i) for i in [*range(16), 0, 15]]
    assert len(set(contents[:16])) == 16 and contents[16:] == [contents[0], contents[15]]
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 2


def varint(value):
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(value, packed=True):
    if isinstance(value, float):
        return field(2, field(1, struct.pack("<f", value)))
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], int):
        numbers = b"".join(map(varint, values))
        return field(3, field(1, numbers) if packed else b"".join(varint(8) + varint(v) for v in values))
    return field(1, b"".join(field(1, text) for text in values))


def crc32c(content):
    """Bit by bit, as the polynomial says."""
    crc = 0xFFFFFFFF
    for byte in content:
        for bit in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if (crc ^ (byte >> bit)) & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(content):
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_records(path, examples, packed=True):
    with open(path, "wb") as file:
        for example in examples:
            entries = [field(1, field(1, k.encode()) + field(2, feature(v, packed))) for k, v in example.items()]
            record = field(1, b"".join(entries))
            length = struct.pack("<Q", len(record))
            file.write(length + masked(length) + record + masked(record))


def test_crc32c_of_the_standard_check_string():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("packed", [True, False])
def test_records(photo, tmp_path, packed):
    images = [picture(photo, seed) for seed in range(4)]
    labels = [3, 300, 3, -1]
    examples = [
        {
            "image/height": 9,
            "image/encoded": image,
            "image/weight": 0.5,
            "image/class/label": label,
            "image/class/text": b"name %d" % label,
        }
        for image, label in zip(images, labels, strict=True)
    ]
    write_records(tmp_path / "x-00000-of-00002", examples[:3], packed)
    write_records(tmp_path / "x-00001-of-00002", examples[3:], packed)
    data = open_dataset(tmp_path / "x-*-of-00002", val_split=0).train
    assert data.classes == ("-1", "3", "300") and data.labels.tolist() == [1, 2, 1, 0]
    assert [data.images.read(i) for i in range(4)] == images
    assert data.images.name(3) == f"{tmp_path}/x-00001-of-00002:0"
    named = open_dataset(tmp_path / "x-*-of-00002", val_split=0, fields=Fields(label="image/class/text")).train
    assert named.classes == ("name -1", "name 3", "name 300")


def test_records_read_by_another_reader(photo, tmp_path):
    tfrec = pytest.importorskip("nvidia.dali.tfrecord")
    from nvidia.dali import Pipeline, fn

    images = [picture(photo, seed) for seed in range(3)]
    path = tmp_path / "x.tfrecord"
    write_records(path, [{"image/encoded": image, "image/class/label": 5 + i} for i, image in enumerate(images)])
    ours = open_dataset(path, val_split=0).train
    starts = [offset - 12 for offset, _ in tfrecord._records(path)] + [path.stat().st_size]
    index = tmp_path / "x.idx"
    index.write_text("".join(f"{a} {b - a}\n" for a, b in zip(starts, starts[1:], strict=False)))
    features = {
        "image/encoded": tfrec.FixedLenFeature((), tfrec.string, ""),
        "image/class/label": tfrec.FixedLenFeature([1], tfrec.int64, -1),
    }
    pipeline = Pipeline(batch_size=3, num_threads=1, device_id=None)
    with pipeline:
        read = fn.readers.tfrecord(path=str(path), index_path=str(index), features=features)
        pipeline.set_outputs(read["image/encoded"], read["image/class/label"])
    theirs, labels = pipeline.run()
    for i in range(3):
        assert bytes(np.asarray(theirs.at(i))) == ours.images.read(i) == images[i]
        assert str(int(labels.at(i)[0])) == ours.names(i)[0]


def test_records_with_several_labels(photo, tmp_path):
    image = picture(photo, 0)
    write_records(tmp_path / "x.tfrecord", [{"image": image, "label": v} for v in ([b"a", b"b"], [b"b"], [b"c"])])
    data = open_dataset(tmp_path / "x.tfrecord", val_split=0).train
    assert [data.names(i) for i in range(3)] == [("a", "b"), ("b",), ("c",)]


def test_record_errors(photo, tmp_path, refused):
    image, path = picture(photo, 0), tmp_path / "x.tfrecord"
    good = [{"image": image, "label": i} for i in range(2)]
    for examples, match in [
        (
            [*good, {"label": 1}],
            "x.tfrecord record 2: no image feature image/encoded or .* .label.: name it with --image",
        ),
        ([*good, {"image": image, "y": 1}], "record 2: no label feature .* .image, y.: name it with --label-field"),
        ([*good, {"image": image, "label": 0.5}], "record 2: feature label holds no number and no name"),
        ([*good, {"image": [image, image], "label": 1}], "record 2: feature image does not hold one encoded image"),
    ]:
        write_records(path, examples)
        refused(match, path)
    write_records(path, good)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refused("x.tfrecord: truncated after byte", path)
    second = len(whole) // 2
    path.write_bytes(whole[:second] + b"\xff" + whole[second + 1 :])
    refused(f"x.tfrecord: no TFRecord at byte {second} .wrong checksum of the length.: get the file again", path)
    length = struct.pack("<Q", 6)
    path.write_bytes(length + masked(length) + b"\xff" * 6 + masked(b"\xff" * 6))
    refused("record 0: not a tf.train.Example", path)
    path.write_bytes(b"\x1f\x8b" + whole)
    refused("x.tfrecord: .*", path)

"""A Classifier: names, probabilities and embeddings of any images, equal for every batch size, calibrated or not."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from photos import COLOURS, write_class_folders, write_model
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

import bitfast
from bitfast.calibration import fit_temperature
from bitfast.classifier import Prediction
from bitfast.errors import BadImages, DataError, UsageError, WeightsError

CLASSES = tuple(COLOURS)
ROUNDING = 3e-5  # of a probability: 26 layers in float32, whose sums depend on the batch


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=5, size=(32, 32))


@pytest.fixture(scope="module")
def paths(photos):
    return sorted(map(str, photos.rglob("*.png")))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return write_model(folder), folder


@pytest.fixture(scope="module")
def logits(network, paths):
    """In float64 by the raw network, of images that need no resize."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    images = torch.from_numpy((pixels - 127.5) / 127.5).permute(0, 3, 1, 2)
    model, _ = network
    with torch.no_grad():
        truth = pickle.loads(pickle.dumps(model)).double()(images).numpy()
    return truth


@pytest.fixture
def run(network, tmp_path):
    """A copy that may be changed."""
    shutil.copytree(network[1], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def classifier(network):
    return bitfast.load(network[1])


def test_probabilities_and_names_are_those_of_the_network(classifier, paths, logits):
    got = classifier.predict_proba(paths)
    assert got.dtype == np.float32 and got.shape == (15, 3)
    np.testing.assert_allclose(got, softmax(logits, 1), atol=ROUNDING)
    assert classifier.classes_ == CLASSES
    names = classifier.predict(paths)
    assert names.tolist() == [CLASSES[c] for c in logits.argmax(1)] and len(set(names.tolist())) > 1
    for pairs, row in zip(classifier.top_k(paths, 2), got, strict=True):
        order = np.argsort(-row)[:2]
        assert pairs == tuple((CLASSES[c], float(row[c])) for c in order)
    assert np.array_equal(classifier.predict_proba(paths), got), "deterministic"


def test_embeddings_are_what_the_head_sees(classifier, network, paths):
    got = classifier.embed(paths)
    assert got.dtype == np.float32 and got.shape == (15, network[0].num_features)
    head = network[0].head.fc
    with torch.no_grad():
        logits = got @ head.weight[:, :, 0, 0].numpy().T + head.bias.numpy()
    np.testing.assert_allclose(softmax(logits, 1), classifier.predict_proba(paths), atol=ROUNDING)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_rounding_only(network, classifier, paths, batch_size):
    other = bitfast.load(network[1], batch_size=batch_size)
    np.testing.assert_allclose(other.predict_proba(paths), classifier.predict_proba(paths), atol=ROUNDING)
    np.testing.assert_allclose(other.embed(paths), classifier.embed(paths), rtol=1e-3, atol=1e-4)


def test_images_of_all_kinds_also_mixed(classifier, paths):
    expected = classifier.predict_proba(paths[:5])
    arrays = [np.asarray(Image.open(path)) for path in paths[:5]]
    with open(paths[1], "rb") as file:
        encoded = file.read()
    mixed = [paths[0], encoded, arrays[2], Image.open(paths[3]), np.dstack([arrays[4]])]
    for images in (mixed, np.stack(arrays), np.array(paths[:5]), tuple(paths[:5])):
        np.testing.assert_allclose(classifier.predict_proba(images), expected, atol=ROUNDING)
    for one in (paths[1], encoded, Image.open(paths[1])):
        np.testing.assert_allclose(classifier.predict_proba(one), expected[1:2], atol=ROUNDING)
    assert [p.path for p in classifier.stream(mixed)] == [paths[0], *(f"images[{i}]" for i in range(1, 5))]
    x = classifier.preprocess(paths[2])
    assert x.shape == (3, 32, 32) and x.dtype == torch.float32
    np.testing.assert_allclose(x.permute(1, 2, 0), (arrays[2] - 127.5) / 127.5, atol=ROUNDING)
    with torch.no_grad():
        np.testing.assert_allclose(classifier.model(x[None]).softmax(1), expected[2:3], atol=ROUNDING)


def test_no_images_at_all(classifier):
    assert classifier.predict([]).shape == (0,) and classifier.predict_proba([]).shape == (0, 3)
    assert classifier.embed([]).shape == (0, 1024) and list(classifier.stream([])) == []


@pytest.mark.parametrize("engine", ["auto", "pillow"])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_stream_goes_on_after_bad_images(network, classifier, paths, tmp_path, engine, batch_size):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    bad = [str(tmp_path / name) for name in ("text.jpg", "empty.png", "gone.jpg")]
    mixed = [bad[0], bad[1], *paths[:3], bad[2], *paths[3:5], bad[0]]
    other = bitfast.load(network[1], engine=engine, batch_size=batch_size)
    found = list(other.stream(mixed, topk=3))
    assert [p.path for p in found] == mixed
    reasons = [p.error for p in found]
    assert [bool(why) for why in reasons] == [True, True, False, False, False, True, False, False, True]
    assert "not an image" in reasons[0] and reasons[1] == "zero bytes" and reasons[5] == "no such file"
    expected = iter(classifier.top_k(paths[:5], 3))
    for p in found:
        if not p.error:
            for (name, value), (wanted, probability) in zip(p.top, next(expected), strict=True):
                assert name == wanted and value == pytest.approx(probability, abs=ROUNDING)
        else:
            assert p == Prediction(p.path, error=p.error)
    assert all(p.error for p in other.stream(bad))
    with pytest.raises(BadImages, match="text.jpg: not an image"):
        classifier.predict(mixed)


def test_a_stream_reads_no_further_than_it_is_asked(network, paths):
    reads = []

    class Watched(bitfast.classifier.Named):
        def read(self, i):
            reads.append(i)
            return super().read(i)

    source = Watched(paths * 200)
    stream = bitfast.load(network[1], engine="pillow", batch_size=2).stream(source)
    next(stream)
    assert len(reads) < 20 and len(source) == 3000
    stream.close()


def test_a_threshold_leaves_names_out(classifier, paths):
    everything = list(classifier.stream(paths, topk=3))
    for p, above in zip(everything, classifier.stream(paths, topk=3, threshold=0.4), strict=True):
        assert above.top == tuple(pair for pair in p.top if pair[1] >= 0.4)


def test_several_labels_per_image(tmp_path, paths):
    model = write_model(tmp_path, multilabel=True)
    classifier = bitfast.load(tmp_path)
    probabilities = classifier.predict_proba(paths)
    with torch.no_grad():
        x = torch.stack([classifier.preprocess(path) for path in paths])
        np.testing.assert_allclose(probabilities, model(x).sigmoid(), atol=ROUNDING)
    names = classifier.predict(paths)
    assert names == [tuple(c for c, p in zip(CLASSES, row, strict=True) if p >= 0.5) for row in probabilities]
    for p, row in zip(classifier.stream(paths), names, strict=True):
        assert sorted(name for name, _ in p.top) == sorted(row)
    assert [len(p.top) for p in classifier.stream(paths, topk=2)] == [2] * 15


def test_a_pickled_classifier_is_the_same(classifier, paths):
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(paths), classifier.predict_proba(paths))
    assert again.classes_ == classifier.classes_


def test_evaluate_against_scikit_learn(network, photos, logits, tmp_path):
    labels = np.repeat([0, 1, 2], 5)
    metrics = bitfast.evaluate(network[1], photos).metrics()
    guess = logits.argmax(1)
    assert metrics["images"] == 15 and metrics["correct"] == (guess == labels).sum()
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guess))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, guess, average="macro"))
    assert metrics["loss"] == pytest.approx(log_loss(labels, softmax(logits, 1)), rel=1e-4)
    confidence, hit = softmax(logits, 1).max(1), guess == labels
    bins = np.ceil(confidence * 15)
    ece = sum((bins == b).sum() * abs(hit[bins == b].mean() - confidence[bins == b].mean()) for b in set(bins)) / 15
    assert metrics["ece"] == pytest.approx(ece, abs=ROUNDING)


def test_classes_of_the_data_are_matched_by_name(network, photos, tmp_path, capsys):
    whole = bitfast.evaluate(network[1], photos)
    for name in ("plum", "apple"):
        shutil.copytree(photos / name, tmp_path / "some" / name)
    some = bitfast.evaluate(network[1], tmp_path / "some")
    said = capsys.readouterr().err
    assert "note: no images of 1 of the model's 3 classes (lime)" in said
    chosen = whole.labels != 1
    np.testing.assert_allclose(some.probabilities, whole.probabilities[chosen], atol=ROUNDING)
    assert np.array_equal(some.labels, whole.labels[chosen])
    shutil.copytree(photos / "plum", tmp_path / "some" / "Limes")
    with pytest.raises(DataError, match=r"class 'Limes' that the model does not \(did you mean 'lime'\?\)"):
        bitfast.evaluate(network[1], tmp_path / "some")


@pytest.mark.parametrize("form", ["folder", "table", "dict"])
def test_a_part_of_the_data(network, photos, tmp_path, form):
    rows = []
    for i, part in enumerate(("train", "val", "test")):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(i + 1):
                shutil.copy(photos / name / f"{k}.png", tmp_path / part / name)
                rows.append(f"{part}/{name}/{k}.png,{name},{part}")
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    parts = {part: tmp_path / part for part in ("train", "val", "test")}
    data = {"folder": tmp_path, "table": tmp_path / "list.csv", "dict": parts}[form]
    assert len(bitfast.evaluate(network[1], data).labels) == 6, "the validation part"
    for count, part in enumerate(parts, 1):
        assert len(bitfast.evaluate(network[1], data, split=part).labels) == 3 * count
    with pytest.raises(DataError, match="no test part|no row is in split test"):
        bitfast.evaluate(network[1], photos, split="test")


def test_calibration_is_kept_and_used(run, paths, photos, logits, capsys, tmp_path):
    labels = logits.argmax(1)
    labels[::4] = (labels[::4] + 1) % 3  # some wrong, so that there is a best temperature
    images = (paths, [CLASSES[label] for label in labels])
    plain = json.loads((run / "model" / "config.json").read_text())
    before = bitfast.evaluate(run, images)
    after = bitfast.evaluate(run, images, calibrate=True)
    said = capsys.readouterr().err
    config = json.loads((run / "model" / "config.json").read_text())
    temperature = config["bitfast"].pop("temperature")
    assert temperature == pytest.approx(fit_temperature(logits, labels), rel=1e-3) and temperature != 1
    assert config["bitfast"].pop("calibration")["loss"] == [before.loss, after.loss] and config == plain
    assert f"temperature {temperature:.4g}, kept in {run / 'model' / 'config.json'}" in said
    assert after.loss < before.loss and after.top1 == before.top1

    classifier = bitfast.load(run)
    assert f"calibrated: temperature {temperature:.4g}" in capsys.readouterr().err
    assert classifier.temperature == temperature
    np.testing.assert_allclose(classifier.predict_proba(paths), softmax(logits / temperature, 1), atol=ROUNDING)
    assert bitfast.evaluate(run, images).metrics() == pytest.approx(after.metrics(), rel=1e-6)
    assert pickle.loads(pickle.dumps(classifier)).temperature == temperature

    bitfast.evaluate(run, images, calibrate=True)
    assert f"which replaces {temperature:.4g}" in capsys.readouterr().err
    assert bitfast.load(run).temperature == pytest.approx(temperature, rel=1e-12), "fitted to the logits themselves"

    bitfast.export(run, tmp_path / "export", format="safetensors")
    exported = bitfast.load(tmp_path / "export")
    assert exported.temperature == temperature
    np.testing.assert_allclose(exported.predict_proba(paths), classifier.predict_proba(paths), atol=ROUNDING)
    assert f"temperature {temperature:.6g}" in (tmp_path / "export" / "README.md").read_text()


def test_calibration_that_images_cannot_settle(run, paths, logits, capsys):
    images = (paths, [CLASSES[c] for c in logits.argmax(1)])
    bitfast.evaluate(run, images, calibrate=True)
    assert "note: temperature 0.05 is the limit: these 15 images alone do not determine one" in capsys.readouterr().err
    with pytest.raises(UsageError, match="resnet50x1 is no run or model folder here whose config.json could keep"):
        bitfast.evaluate("resnet50x1", images, calibrate=True)


def test_a_damaged_temperature_is_refused(run):
    path = run / "model" / "config.json"
    for value in (0, -1.0, "hot", float("nan")):
        config = json.loads(path.read_text())
        config["bitfast"]["temperature"] = value
        path.write_text(json.dumps(config))
        with pytest.raises(WeightsError, match="config.json is not as bitfast or timm writes it"):
            bitfast.load(run)


def test_a_folder_of_timm(network, tmp_path, paths, capsys):
    """Without our key: the architecture's name and `pretrained_cfg` say the same."""
    model = bitfast.resnet50x1(num_classes=3, eps=1e-8).eval()
    torch.nn.init.normal_(model.head.fc.weight)
    bitfast.save_weights(model, tmp_path / "model.safetensors")
    cfg = {"input_size": [3, 32, 32], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    config = {"architecture": "resnetv2_50x1_bit", "num_classes": 3, "num_features": 2048, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    classifier = bitfast.load(tmp_path)
    assert classifier.classes_ == ("0", "1", "2") and "no class names" in capsys.readouterr().err
    x = torch.stack([classifier.preprocess(path) for path in paths[:2]])
    with torch.no_grad():
        np.testing.assert_allclose(classifier.predict_proba(paths[:2]), model(x).softmax(1), atol=ROUNDING)


def test_a_released_model_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BITFAST_CACHE", str(tmp_path))
    model = bitfast.resnet50x1(num_classes=10)
    bitfast.save_weights(model, tmp_path / "BiT-M-R50x1-CIFAR10.npz")
    classifier = bitfast.load("BiT-M-R50x1-CIFAR10")
    assert classifier.classes_ == tuple("0123456789") and classifier.transform.crop == 128
    assert "no class names" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="runs/none is neither a run nor a model folder"):
        bitfast.load("runs/none")

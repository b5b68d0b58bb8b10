"""advise: features made where the labels can be seen or not, the rule, the table; and finetune's --tune auto."""

import json

import numpy as np
import pytest
import torch
from photos import write_class_folders

import bitfast
from bitfast import advice as rule
from bitfast.advice import Advice, StageScore, decide, measure, score_images
from bitfast.cli import main
from bitfast.errors import DataError, UsageError
from bitfast.linear import ridge
from bitfast.linear.folds import stratified
from bitfast.recipes.advise import folds_of, sample

MODEL = "resnet26x0_5"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=12)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pretrained.safetensors"
    torch.manual_seed(1)
    bitfast.save_weights(bitfast.create_model(MODEL, num_classes=7), path)
    return path


def features(labels, seen, n_stages=4, seed=0):
    """{stage: (n, 6)} noise, in which the classes are apart after the stages that see them."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(labels.max() + 1, 6)) * 3
    noise = rng.normal(size=(n_stages, len(labels), 6))
    return {s + 1: (noise[s] + (s + 1 in seen) * centers[labels]).astype(np.float32) for s in range(n_stages)}


@pytest.mark.parametrize(
    "seen, images, expected",
    [
        ((1, 2), 120, ("truncated", "small, different")),
        ((4,), 120, ("head", "small, similar")),
        ((1, 2, 3, 4), 120, ("head", "small, similar")),
        ((2,), rule.LARGE_FROM, ("all", "large, different")),
        ((4,), rule.LARGE_FROM, ("all", "large, similar")),
    ],
)
def test_the_four_situations(seen, images, expected):
    labels = np.arange(120) % 4
    _, scores, chance, count = measure(features(labels, seen), labels, 4, stratified(labels, 0))
    tune, stages, situation, reason = decide(scores, images)
    assert (tune, situation) == expected and count == 120 and chance <= 0.3
    assert stages in seen if tune == "truncated" else stages is None
    assert all((score.score > 0.8) == (score.stage in seen) for score in scores)


def test_scores_and_errors_by_their_definitions():
    labels = np.arange(90) % 3
    x = features(labels, (1,))
    x[2] = x[1] * 0.2 + x[2]
    fold = stratified(labels, 0)
    right = {s: ridge.held_out(x[s].astype(float), np.eye(3)[labels], fold).argmax(1) == labels for s in x}
    for score in measure(x, labels, 3, fold)[1]:
        own, last = right[score.stage].astype(float), right[4].astype(float)
        assert score.score == pytest.approx(own.mean())
        assert score.standard_error == pytest.approx(own.std() / np.sqrt(90))
        assert score.gain == pytest.approx((own - last).mean())
        assert score.gain_standard_error == pytest.approx((own - last).std() / np.sqrt(90))


def test_balanced_is_the_mean_of_the_classes_recalls():
    labels = np.repeat([0, 1, 2], [60, 20, 10])
    x, fold = features(labels, (2, 3)), stratified(labels, 0)
    metric, scores, chance, _ = measure(x, labels, 3, fold, balanced=True)
    assert metric == "balanced accuracy" and chance == pytest.approx(1 / 3, abs=0.05)
    plain = measure(x, labels, 3, fold)
    assert plain[0] == "accuracy" and plain[2] == pytest.approx(60 / 90)
    weights = (90 / 3 / np.array([60, 20, 10]))[labels]
    guess = ridge.held_out(x[1].astype(float), np.eye(3)[labels], fold, weights).argmax(1)
    recalls = [(guess[labels == c] == c).mean() for c in range(3)]
    assert scores[0].score == pytest.approx(np.mean(recalls))


def test_a_class_with_one_image_is_not_scored_and_one_shot_cannot_be():
    labels = np.append(np.arange(20) % 2, 2)
    assert measure(features(labels, (4,)), labels, 3, stratified(labels, 0))[3] == 20
    labels = np.arange(5)
    with pytest.raises(DataError, match="one training image.*--tune head"):
        measure(features(labels, ()), labels, 5, stratified(labels, 0))


def test_ranking_precision_by_its_definition():
    rng = np.random.default_rng(0)
    outputs, labels = rng.integers(0, 6, (40, 5)).astype(float), rng.random((40, 5)) < 0.4
    labels[0], labels[1] = False, True
    expected = []
    for output, own in zip(outputs, labels, strict=True):
        of_each = [(own & (output >= output[c])).sum() / (output >= output[c]).sum() for c in np.flatnonzero(own)]
        expected.append(np.mean(of_each) if len(of_each) else 1.0)
    np.testing.assert_allclose(score_images(outputs, labels), expected)


def test_multilabel_is_measured():
    rng = np.random.default_rng(0)
    labels = rng.random((80, 3)) < 0.4
    x = {s: rng.normal(size=(80, 5)).astype(np.float32) for s in (1, 2)}
    x[1][:, :3] += 4 * labels
    metric, scores, chance, _ = measure(x, labels, 3, stratified(labels, 0))
    assert metric == "ranking precision" and scores[0].score > 0.95 > scores[1].score and 0.5 < chance < 0.9
    assert decide(scores, 80)[:2] == ("truncated", 1)


def test_equal_images_are_in_one_fold_and_samples_keep_proportions():
    labels = np.arange(40) % 2
    contents = [bytes([i % 20]) for i in range(40)]
    fold = folds_of(labels, contents, 0)
    np.testing.assert_array_equal(fold[:20], fold[20:])
    labels = np.repeat([0, 1, 2], [800, 190, 10])
    chosen = sample(labels, 100, 0)
    assert np.bincount(labels[chosen]).tolist() == [80, 19, 1]
    np.testing.assert_array_equal(sample(labels, 5000, 0), np.arange(1000))


def test_advise_on_photos(photos, weights, capsys):
    advice = bitfast.advise(photos, MODEL, weights, crop=32)
    assert [score.stage for score in advice.scores] == [1, 2, 3, 4] and advice.images == advice.measured == 33
    assert [score.features for score in advice.scores] == [128, 256, 512, 1024]
    assert advice.chance == pytest.approx(1 / 3, abs=0.1) and advice.scores[0].score > 0.8
    assert bitfast.advise(photos, MODEL, weights, crop=32) == advice
    assert "all of them from" in capsys.readouterr().err
    assert Advice.from_dict(json.loads(advice.to_json())) == advice
    assert main(["advise", str(photos), "-m", MODEL, "--weights", str(weights), "--crop", "32", "--json"]) == 0
    assert Advice.from_dict(json.loads(capsys.readouterr().out)).scores == advice.scores
    assert main(["advise", str(photos), "-m", MODEL, "--weights", str(weights), "--crop", "32"]) == 0
    table = capsys.readouterr().out
    assert "after stage" in table and advice.situation in table and f"--tune {advice.tune}" in table
    assert "<table>" in advice._repr_html_() and "bitfast finetune" in advice._repr_html_()


def test_without_weights_there_is_nothing_to_measure(photos, capsys):
    advice = bitfast.advise(photos, MODEL)
    assert (advice.tune, advice.situation, advice.scores) == ("scratch", "no weights", ())
    assert "--weights" in str(advice)


@pytest.mark.parametrize("options, words", [({"images": 0}, "at least 1"), ({"crops": 3}, "did you mean 'crop'")])
def test_mistakes(photos, options, words):
    with pytest.raises(UsageError, match=words):
        bitfast.advise(photos, MODEL, **options)


def test_html_is_escaped():
    score = StageScore(1, 8, 0.5, 0.1, 0.0, 0.0)
    advice = Advice("head", None, "small, similar", "<b>", "accuracy", (score,), 0.5, 9, 9, 2, "a & b")
    assert "&lt;b&gt;" in advice._repr_html_() and "a &amp; b" in advice._repr_html_()

"""BiTClassifier among scikit-learn's tools: clone, cross-validation, grid search, pipelines, joblib."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from photos import write_class_folders
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

import bitfast
from bitfast import BiTClassifier
from bitfast.errors import DataError, UsageError

SMALL = dict(model="resnet26x0_5", steps=6, batch_size=8, resize=36, crop=32, lr=0.02)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=4)
    return sorted(map(str, root.rglob("*.png")))


@pytest.fixture(scope="module")
def y():
    return np.repeat([10, 2, 33], 4)


@pytest.fixture(scope="module")
def fitted(paths, y):
    return BiTClassifier(**SMALL).fit(paths, y)


def test_fit_predict_score(fitted, paths, y):
    assert fitted.classes_.tolist() == [2, 10, 33] and fitted.classifier_.classes_ == ("10", "2", "33")
    probabilities = fitted.predict_proba(paths)
    assert probabilities.shape == (12, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    guess = fitted.predict(paths)
    assert guess.dtype == y.dtype and np.array_equal(guess, fitted.classes_[probabilities.argmax(1)])
    assert fitted.score(paths, y) == accuracy_score(y, guess) > 0.9
    weights = np.linspace(0, 1, 12)
    assert fitted.score(paths, y[::-1], weights) == pytest.approx(accuracy_score(y[::-1], guess, sample_weight=weights))


def test_the_fit_is_the_fine_tune(fitted, paths, y, tmp_path):
    run = bitfast.finetune((paths, [str(label) for label in y]), out=tmp_path / "run", val_split=0.0, **SMALL)
    np.testing.assert_array_equal(bitfast.load(run.out).predict_proba(paths)[:, [1, 0, 2]], fitted.predict_proba(paths))


def test_arrays_names_and_silence(paths, capsys):
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    names = np.repeat(["apple", "lime", "plum"], 4)
    estimator = BiTClassifier(**SMALL).fit(images, names)
    output = capsys.readouterr()
    assert output.err == "" and output.out == ""
    assert estimator.classes_.tolist() == ["apple", "lime", "plum"] and estimator.predict(images)[0] == "apple"
    BiTClassifier(**SMALL, verbose=1).fit(images, names.tolist())
    assert "device: " in capsys.readouterr().err


def test_parameters_as_scikit_learn_asks(fitted, paths, y):
    estimator = BiTClassifier(**SMALL)
    assert {name: estimator.get_params()[name] for name in SMALL} == SMALL
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params() and not hasattr(copied, "classes_")
    assert estimator.set_params(lr=0.5) is estimator and estimator.lr == 0.5
    with pytest.raises(ValueError, match="no parameter 'learning_rate'"):
        estimator.set_params(learning_rate=1)
    assert is_classifier(estimator) and get_tags(estimator).target_tags.required
    assert repr(BiTClassifier(steps=3)) == "BiTClassifier(steps=3)"
    check_is_fitted(fitted)
    with pytest.raises(UsageError, match="call fit"):
        estimator.predict(paths)
    with pytest.raises(DataError, match="one label per image"):
        estimator.fit(paths, np.stack([y, y], 1))


def test_grid_search_in_processes(paths, y, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    search = GridSearchCV(
        BiTClassifier(**{**SMALL, "steps": 2}), {"lr": [0.0, 0.02]}, cv=2, n_jobs=2, error_score="raise"
    )
    search.fit(paths, y)
    assert search.cv_results_["mean_test_score"][0] == pytest.approx(1 / 3), "without a step all are the first class"
    assert np.array_equal(search.predict(paths), search.best_estimator_.predict(paths))


def test_cross_validation_of_a_pipeline(paths, y):
    pipeline = make_pipeline(FunctionTransformer(), BiTClassifier(**{**SMALL, "steps": 2}))
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    scores = cross_val_score(pipeline, paths, y, cv=folds, error_score="raise")
    expected = []
    for train, test in folds.split(paths, y):
        chosen = pipeline.fit([paths[i] for i in train], y[train])
        expected.append(chosen.score([paths[i] for i in test], y[test]))
    assert scores.tolist() == expected


def test_a_pickled_estimator_needs_no_run_folder(fitted, paths):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(paths), fitted.predict_proba(paths))


def test_scikit_learn_is_not_needed():
    code = (
        "import sys; sys.modules['sklearn'] = None; import bitfast; e = bitfast.BiTClassifier(steps=3);"
        " print(e.set_params(lr=0.1).get_params()['steps'], e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 BiTClassifier(steps=3, lr=0.1)\n"

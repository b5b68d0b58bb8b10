"""Ridge and logistic regression: against scikit-learn, and against fits that leave one out one by one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeCV

from bitfast.linear import logistic, ridge
from bitfast.linear.folds import ALWAYS_TRAINED, parts, stratified
from bitfast.linear.scaling import Scaling

SHAPES = [(60, 8, 3), (30, 50, 4), (40, 12, 2)]


def problem(n, features, classes, seed=0):
    """Standardized features, correlated and of which one is constant, with labels that follow them in part."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) @ rng.normal(size=(features, features)) + 3
    x[:, -1] = 0.7
    labels = (x[:, :classes] + rng.normal(size=(n, classes))).argmax(1)
    labels[:classes] = np.arange(classes)
    return Scaling.of(x)(x), labels


@pytest.mark.parametrize("n, features, classes", SHAPES)
def test_ridge_is_ridge_cv(n, features, classes):
    x, labels = problem(n, features, classes)
    targets = np.eye(classes)[labels]
    model = ridge.fit(x, targets)
    expected = RidgeCV(ridge.ALPHAS).fit(x, targets)
    assert model.alpha == pytest.approx(expected.alpha_, rel=1e-12)
    np.testing.assert_allclose(model.weight, expected.coef_.T, atol=1e-9)
    np.testing.assert_allclose(model.bias, expected.intercept_, atol=1e-9)
    np.testing.assert_allclose(model(x), expected.predict(x), atol=1e-9)


@pytest.mark.parametrize("n, features, classes", SHAPES)
def test_errors_are_those_of_leaving_each_image_out(n, features, classes):
    """With weights, by as many least-squares fits as there are images."""
    x, labels = problem(n, features, classes)
    targets, weights = np.eye(classes)[labels], np.random.default_rng(1).uniform(0.2, 3, n)
    alphas = (0.3, 30.0)
    expected = np.zeros(len(alphas))
    for k, alpha in enumerate(alphas):
        for i in range(n):
            rest = np.arange(n) != i
            root = np.sqrt(weights[rest])[:, None]
            rows = np.vstack([root * np.column_stack([x[rest], np.ones(n - 1)]), np.sqrt(alpha) * np.eye(features + 1)])
            rows[-1] = 0  # the bias is free
            wanted = np.vstack([root * targets[rest], np.zeros((features + 1, classes))])
            fitted = np.linalg.lstsq(rows, wanted)[0]
            expected[k] += weights[i] * np.square(targets[i] - np.append(x[i], 1) @ fitted).mean()
    got = ridge.fit(x, targets, alphas, weights).errors
    np.testing.assert_allclose(got, expected / weights.sum(), rtol=1e-8)


def test_held_out_images_change_nothing_that_predicts_them():
    x, labels = problem(40, 12, 3)
    targets, fold = np.eye(3)[labels], stratified(labels, 0)
    before = ridge.held_out(x, targets, fold)
    mine = fold == 2
    x_other, targets_other = x.copy(), targets.copy()
    targets_other[mine] = 1 - targets[mine]
    np.testing.assert_array_equal(ridge.held_out(x, targets_other, fold)[mine], before[mine])
    x_other[mine] += 100 * np.random.default_rng(0).normal(size=x[mine].shape)
    changed = ridge.held_out(x_other, targets, fold)[mine]
    for row, image in zip(changed, x_other[mine], strict=True):
        rest = Scaling.of(x[~mine])
        np.testing.assert_allclose(row, ridge.fit(rest(x[~mine]), targets[~mine])(rest(image)), atol=1e-9)


@pytest.mark.parametrize("alpha", [100.0, 1.0, 0.1])
@pytest.mark.parametrize("n, features, classes", SHAPES)
def test_softmax_is_scikit_learns(n, features, classes, alpha):
    x, labels = problem(n, features, classes)
    model = logistic.fit(x, labels, classes, alpha)
    expected = LogisticRegression(C=1 / alpha, tol=1e-12, max_iter=100_000)
    if classes == 2:  # its one logit with |w|^2 is our two of opposite sign with twice |w / 2|^2
        expected = LogisticRegression(C=2 / alpha, tol=1e-12, max_iter=100_000)
    expected.fit(x, labels)
    p = np.exp(model(x) - model(x).max(1, keepdims=True))
    np.testing.assert_allclose(p / p.sum(1, keepdims=True), expected.predict_proba(x), atol=1e-5)
    if classes > 2:
        np.testing.assert_allclose(model.weight, expected.coef_.T, atol=1e-5)


def test_sigmoids_are_scikit_learns_one_by_one():
    x, _ = problem(50, 10, 3)
    labels = x[:, :3] + 0.5 * np.random.default_rng(0).normal(size=(50, 3)) > 0
    model = logistic.fit(x, labels, 3, 2.0)
    for c in range(3):
        expected = LogisticRegression(C=1 / 2.0, tol=1e-12, max_iter=100_000).fit(x, labels[:, c])
        np.testing.assert_allclose(model.weight[:, c], expected.coef_[0], atol=1e-5)
        np.testing.assert_allclose(model.bias[c], expected.intercept_[0], atol=1e-5)


def test_the_penalty_chosen_has_the_least_held_out_loss():
    """By scikit-learn, fold by fold."""
    x, labels = problem(40, 6, 3)
    fold = stratified(labels, 0, folds=3)
    alpha, losses = logistic.choose_alpha(x, labels, 3, fold)
    expected = []
    for each in logistic.ALPHAS:
        total = 0.0
        for train, held in parts(fold):
            scale = Scaling.of(x[train])
            model = LogisticRegression(C=1 / each, tol=1e-10, max_iter=100_000).fit(scale(x[train]), labels[train])
            total -= np.log(model.predict_proba(scale(x[held]))[np.arange(len(held)), labels[held]]).sum()
        expected.append(total / len(x))
    assert alpha == logistic.ALPHAS[int(np.argmin(expected))]
    np.testing.assert_allclose(losses, expected[: len(losses)], rtol=1e-4)
    assert logistic.choose_alpha(x, labels, 3, fold) == (alpha, losses)


def test_separable_and_far_from_unit_scale():
    """Any penalty has a minimum, and scaling is undone: the outputs are those for the features themselves."""
    labels = np.repeat([0, 1, 2], 5)
    x = np.eye(3)[labels] * [1e-3, 1.0, 1e4] + 5
    scale = Scaling.of(x)
    model = logistic.fit(scale(x), labels, 3, 0.01)
    assert (model(scale(x)).argmax(1) == labels).all()
    weight, bias = scale.unscaled(model.weight, model.bias)
    np.testing.assert_allclose(x @ weight + bias, model(scale(x)), atol=1e-8)


def test_folds_are_stratified_seeded_and_even():
    labels = np.repeat([0, 1, 2, 3], [23, 10, 2, 1])
    fold = stratified(labels, 0)
    for label in (0, 1, 2):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (fold[labels == 3] == ALWAYS_TRAINED).all() and (fold[labels != 3] != ALWAYS_TRAINED).all()
    sizes = np.bincount(fold[fold >= 0], minlength=5)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(stratified(labels, 0), fold)
    assert (stratified(labels, 1) != fold).any()
    assert sorted(np.concatenate([held for _, held in parts(fold)])) == list(range(35))


def test_folds_of_several_labels_spread_the_rarest():
    labels = np.zeros((40, 3), bool)
    labels[:, 0] = True
    labels[:10, 1] = labels[5:10, 2] = True
    labels[-3:] = False
    fold = stratified(labels, 0)
    assert np.bincount(fold[5:10], minlength=5).tolist() == [1] * 5
    assert set(fold) <= set(range(5))

"""A pretraining run, folded and fused, has the losses of the recipe written a second time in plain torch.

Networks fall apart in training: with ten times the learning rates here, weights that differ by 1e-10 have losses that
differ by 1e-3 after eleven steps, whoever trains them. So the rates are low, and the exact comparison is in float64.
"""

import pytest
import torch
from golden import official, upstream
from photos import write_class_folders

import bitfast
from bitfast.data.dataset import open_dataset
from bitfast.data.loader import images
from bitfast.data.sampler import Sampler
from bitfast.data.transform import Transform
from bitfast.folder import load_model
from bitfast.run import RunFolder
from bitfast.variants import VARIANTS
from bitfast.weights.official import to_name

MODEL, STEPS, BATCH = "resnet26x0_5", 24, 16
STAIRS = dict(cosine=False, boundaries=(8, 16, 22), decoupled=False, clip_norm=0, area=0.08)
RECIPES = {
    "bit-s": dict(STAIRS, sigmoid=False),
    "bit-m": dict(STAIRS, sigmoid=True),
    "big-vision": dict(cosine=True, boundaries=(), sigmoid=True, decoupled=True, clip_norm=1.0, area=0.05),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", size=(72, 80))


def trained(photos, recipe, out, crop=32, **options):
    """A run, and its losses."""
    options |= dict(steps=STEPS, batch_size=BATCH, crop=crop, warmup_steps=4, head_bias=-2.0, val_split=0.0)
    run = bitfast.pretrain(photos, MODEL, recipe, out, cache="off", **options)
    return run, [record["loss"] for record in RunFolder(run.out).records()]


def expected(photos, recipe, crop=32, **rule):
    """The losses of the same run by the plain implementation in float64, and the tensors it has trained."""
    tensors, rule = initial(head_bias=-2.0), RECIPES[recipe] | rule
    batches = seen(photos, crop, rule.pop("area"))
    return upstream.train(tensors, VARIANTS[MODEL][0], batches, warmup=4, **rule), tensors


def seen(photos, crop, area):
    """(images, labels) of every step: the same crops and flips."""
    split = open_dataset(photos, val_split=0.0).train
    transform = Transform.pretrain(crop, area=(area, 1.0))
    requests = [Sampler(len(split), BATCH, transform, seed=0).batch(step) for step in range(STEPS)]
    stream = images(split, transform, requests, engine="pillow")
    return [(x.double(), torch.as_tensor(split.labels[r.indices])) for x, r in zip(stream, requests, strict=True)]


def initial(head_bias):
    """The run's network before its first step, under official names, in float64."""
    depths, width = VARIANTS[MODEL]
    torch.manual_seed(0)
    state = bitfast.ResNetV2(depths, width, num_classes=3).state_dict()
    state["head.fc.bias"].fill_(head_bias)
    values = {key: state[to_name(key)].numpy() for key in official.seeded_weights(depths, width, num_classes=3)}
    return official.to_tensors({k: v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for k, v in values.items()})


@pytest.fixture
def float64(monkeypatch):
    """Runs in float64, where rounding does not grow into the first digits within a few steps."""
    monkeypatch.setattr("bitfast.recipes.loop.compute_dtype", lambda device: torch.float64)
    monkeypatch.setattr("bitfast.train.compute_dtype", lambda device: torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_whole_schedule_in_float64(recipe, photos, tmp_path, float64):
    """With a weight decay that shows."""
    run, losses = trained(photos, recipe, tmp_path / "run", lr=0.003, weight_decay=0.05)
    truth, tensors = expected(photos, recipe, peak=0.003, weight_decay=0.05)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(truth), rtol=1e-6, atol=0)
    assert min(truth) < 0.75 * truth[0], "a network that learns"
    state = load_model(run.out).network.state_dict()
    for key, tensor in tensors.items():
        tensor = tensor.detach().permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.detach()
        assert (state[to_name(key)] - tensor).norm() <= 1e-6 * tensor.norm(), key


def test_recipe_of_the_paper_in_float32(photos, tmp_path):
    """Nothing given but sizes: learning rate 0.03 * 16 / 256, weight decay 1e-4."""
    _, losses = trained(photos, "bit-s", tmp_path / "run", crop=64)
    truth, _ = expected(photos, "bit-s", crop=64, peak=0.03 * BATCH / 256, weight_decay=1e-4)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(truth, dtype=torch.float32), rtol=1e-3, atol=0)

"""A pretraining run, folded, fused and in float32, has the losses of the recipe written in plain torch, in float64."""

import pytest
import torch
from golden import official, upstream
from photos import write_class_folders

import bitfast
from bitfast.data.dataset import open_dataset
from bitfast.data.loader import images
from bitfast.data.sampler import Sampler
from bitfast.data.transform import Transform
from bitfast.run import RunFolder
from bitfast.variants import VARIANTS
from bitfast.weights.official import to_name

MODEL, STEPS, BATCH, CROP, PEAK = "resnet26x0_5", 24, 16, 32, 0.1
COUPLED = dict(cosine=False, boundaries=(8, 16, 22), decoupled=False, clip_norm=0)
RECIPES = {
    "bit-s": dict(COUPLED, sigmoid=False, weight_decay=1e-4, area=0.08),
    "bit-m": dict(COUPLED, sigmoid=True, weight_decay=1e-4, area=0.08),
    "big-vision": dict(
        cosine=True, boundaries=(), sigmoid=True, weight_decay=1e-3, decoupled=True, clip_norm=1.0, area=0.05
    ),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit")


def seen(photos, area):
    """(images, labels) of every step: the same crops and flips, their pixels in float64."""
    split = open_dataset(photos, val_split=0.0).train
    transform = Transform.pretrain(CROP, area=(area, 1.0))
    requests = [Sampler(len(split), BATCH, transform, seed=0).batch(step) for step in range(STEPS)]
    stream = images(split, transform, requests, engine="pillow")
    return [(x.double(), torch.as_tensor(split.labels[r.indices])) for x, r in zip(stream, requests, strict=True)]


def initial(head_bias):
    """The run's network before its first step, under official names, in float64."""
    depths, width = VARIANTS[MODEL]
    torch.manual_seed(0)
    state = bitfast.ResNetV2(depths, width, num_classes=3).state_dict()
    state["head.fc.bias"].fill_(head_bias)
    values = {key: state[to_name(key)] for key in official.seeded_weights(depths, width, num_classes=3)}
    return official.to_tensors({k: v.permute(2, 3, 1, 0) if v.dim() == 4 else v for k, v in values.items()})


@pytest.mark.parametrize("decay", [None, 0.05], ids=["its decay", "a decay that shows"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_of_every_step(recipe, decay, photos, tmp_path):
    options = dict(steps=STEPS, batch_size=BATCH, crop=CROP, lr=PEAK, warmup_steps=4, val_split=0.0, cache="off")
    run = bitfast.pretrain(photos, MODEL, recipe, tmp_path / "run", head_bias=-2.0, weight_decay=decay, **options)
    got = [record["loss"] for record in RunFolder(run.out).records()]

    rule = dict(RECIPES[recipe])
    batches = seen(photos, rule.pop("area"))
    truth = initial(head_bias=-2.0)
    if decay is not None:
        rule["weight_decay"] = decay
    expected = upstream.train(truth, VARIANTS[MODEL][0], batches, peak=PEAK, warmup=4, **rule)

    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=1e-4, atol=0)
    assert min(expected) < 0.9 * expected[0], "the losses of a network that learns"
    trained = bitfast.folder.load_model(run.out).network.state_dict()
    for key, tensor in truth.items():
        own = trained[to_name(key)].double()
        tensor = tensor.detach().permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.detach()
        assert (own - tensor).norm() <= 1e-3 * tensor.norm(), key

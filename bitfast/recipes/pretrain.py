"""pretrain(): images -> a network trained from scratch with BiT's upstream recipe, ready for finetune(weights=...)."""

import torch

from ..config import PretrainConfig
from ..pretrain_rule import RECIPES
from ..pretrain_settings import settle
from ..runtime import say
from ..weights import load_weights
from . import recipe as recipes


def pretrain(data=None, model="resnet50x1", recipe="bit-s", out=None, **options):
    """Pretrain a BiT network on images and return a Result; its run folder is what finetune's `weights` take.

    data     as for finetune: folder, table, shards or Python objects; images with several labels too
    model    name of the network
    recipe   "bit-s", "bit-m" or "bit-l" of the paper, or "big-vision"; bitfast.pretrain_rule has the table
    out      run folder to create, default runs/<data>-<model>-<time>
    options  any further field of PretrainConfig; with resume=True only those that should be checked against the run

    Initialization: convolutions kaiming-normal over fan-out, from the seed; norms 1 and 0; head 0, its bias head_bias.
    `weights` continue from a pretrained network instead, under such a new head.
    With dry_run=True nothing is written and the Plan is returned, as by `bitfast.plan`.
    Raises   as finetune
    Source   BiT paper 1912.11370 section 3.1
    """
    named = {"data": data, "model": model, "recipe": recipe, "out": out}
    return recipes.call(PRETRAIN, named, options)


def run(config, data=None, val=None):
    """Carry out a PretrainConfig; Python objects `data` and `val` stand in for config.data and config.val."""
    return recipes.run(PRETRAIN, config, data, val)


def _initialize(model, config, weights):
    """The network as it was made, or pretrained weights, under a zero head with the recipe's bias."""
    bias = RECIPES[config.recipe].head_bias if config.head_bias is None else config.head_bias
    if weights is not None:
        load_weights(model, weights)
        torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.constant_(model.head.fc.bias, bias)
    say(f"weights: {weights or 'none, from scratch'}, new head of {model.num_classes} classes, bias {bias:g}")


PRETRAIN = recipes.Recipe(PretrainConfig, settle, _initialize)

"""finetune(): a folder of images -> a trained, evaluated, saved classifier, with BiT-HyperRule."""

import torch

from ..config import FinetuneConfig
from ..runtime import say
from ..settings import settle
from ..weights import load_weights
from . import recipe


def finetune(data=None, model="resnet50x1", weights=None, out=None, **options):
    """Fine-tune a BiT network on images and return a Result.

    data     folder with one sub-folder of images per class (or train/ and val/ of such), a .csv or .tsv, shards, or
             Python objects: (paths, labels), (uint8 array, labels), a map-style dataset; data.dataset.open_dataset
             has the list. `val` takes the same
    model    name of the network
    weights  released name, file, model folder or run folder; None trains from scratch
    out      run folder to create, default runs/<data>-<model>-<time>
    options  any further field of FinetuneConfig; with resume=True only those that should be checked against the run.
             A run on images that have no path is resumed with the same objects as data (and val)

    With dry_run=True nothing is written and the Settings are returned.
    On a CPU the process is told to keep freed memory (with memory="save" to give it back), and the banner says so:
    bitfast.runtime.keep_freed_memory, return_freed_memory.
    Raises   UsageError, DataError, WeightsError, OutOfMemory, Interrupted; see bitfast.errors for the exit codes
    """
    return recipe.call(FINETUNE, data, model, weights, out, options)


def run(config, data=None, val=None):
    """Carry out a FinetuneConfig; Python objects `data` and `val` stand in for config.data and config.val."""
    return recipe.run(FINETUNE, config, data, val)


def _initialize(model, config, weights):
    """Pretrained weights under a zero head, as BiT does for every transfer."""
    if weights is None:
        say(f"weights: none, training {config.model} from scratch (--weights NAME or FILE starts from pretrained ones)")
        return
    load_weights(model, weights)
    torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.zeros_(model.head.fc.bias)
    say(f"weights: {weights}, head of {model.num_classes} classes zero-initialized")


FINETUNE = recipe.Recipe(FinetuneConfig, settle, _initialize)

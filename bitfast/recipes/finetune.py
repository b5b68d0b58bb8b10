"""finetune(): a folder of images -> a trained, evaluated, saved classifier, with BiT-HyperRule."""

from dataclasses import replace
from functools import partial

import torch

from ..config import FinetuneConfig
from ..errors import UsageError
from ..runtime import say
from ..settings import settle
from ..weights import load_weights
from . import recipe
from .advise import measured
from .probe import head_recipe


def finetune(data=None, model="resnet50x1", weights=None, out=None, **options):
    """Fine-tune a BiT network on images and return a Result.

    data     folder with one sub-folder of images per class (or train/ and val/ of such), a .csv or .tsv, shards, or
             Python objects: (paths, labels), (uint8 array, labels), a map-style dataset; data.dataset.open_dataset
             has the list. `val` takes the same
    model    name of the network
    weights  released name, file, model folder or run folder; None trains from scratch
    out      run folder to create, default runs/<data>-<model>-<time>
    options  any further field of FinetuneConfig; with resume=True only those that should be checked against the run,
             or changed, if allow_change=(name, ...) has them
             A run on images that have no path is resumed with the same objects as data (and val)

    With dry_run=True nothing is written and the Plan is returned, as by `plan`.
    On a CPU the process is told to keep freed memory (with memory="save" to give it back), and the banner says so:
    bitfast.runtime.keep_freed_memory, return_freed_memory.
    Raises   UsageError, DataError, WeightsError, OutOfMemory, Interrupted; see bitfast.errors for the exit codes
    """
    named = {"data": data, "model": model, "weights": weights, "out": out}
    return recipe.call(FINETUNE, named, options)


def plan(data=None, model="resnet50x1", weights=None, *, measure=False, **options):
    """The Plan of a `finetune` with the same arguments: every value and its origin, memory, time and disk.

        print(bitfast.plan("photos/"))       # a table; in a notebook the value itself; to_dict() for programs

    The images are looked at; nothing is written and no weights are downloaded. The time is estimated from the network's
    multiply-adds and a block of each of its stages timed here, in a few seconds.
    measure  run real steps on random images instead: at least three micro-batches, or 20 seconds of them
    Raises   as `finetune`
    """
    named = {"data": data, "model": model, "weights": weights}
    return recipe.call(FINETUNE, named, {**options, "dry_run": True}, measure=measure)


def run(config, data=None, val=None, *, measure=False):
    """Carry out a FinetuneConfig; Python objects `data` and `val` stand in for config.data and config.val."""
    return recipe.run(FINETUNE, config, data, val, measure=measure)


def _initialize(model, config, weights):
    """Pretrained weights under a zero head, as BiT does for every transfer."""
    if weights is None:
        say(f"weights: none, training {config.model} from scratch (--weights NAME or FILE starts from pretrained ones)")
        return
    load_weights(model, weights)
    torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.zeros_(model.head.fc.bias)
    say(f"weights: {weights}, head of {model.num_classes} classes zero-initialized")


def _decide(config, split, image_size, weights, advice):
    """The recipe that config.tune asks for, and the Advice it rests on, if that had to be asked for."""
    automatic = config.tune == "auto"
    if advice is None and (automatic or (config.tune == "truncated" and config.stages is None)):
        if config.weights and weights is None:
            raise UsageError(
                f"--tune {config.tune} measures with the weights {config.weights}, which are not on this machine yet:"
                " plan with --tune all or head, or start the run"
            )
        advice = measured(config, split, image_size, weights)
        say(str(advice))
    tune = advice.tune if automatic else config.tune
    origin = f"advise: {advice.situation}" if automatic else "you" if config.tune != "all" else "default"
    if automatic:
        say(f"tune: {tune}, as advised")
    if tune == "head":
        return head_recipe(None, ("tune", "head, on the final features", origin)), advice
    if tune == "truncated":
        kept = config.stages or advice.stages or advice.best_earlier.stage
        origin = "advise: the best of the earlier stages" if not automatic and config.stages is None else origin
        return head_recipe(kept, ("tune", f"truncated: head after stage {kept}", origin)), advice
    what = "all: every weight" if config.weights else "scratch: every weight, no pretraining"
    return replace(FINETUNE, settle=partial(_settle, ("tune", what, origin))), advice


def _settle(row, *arguments):
    settings = settle(*arguments)
    return replace(settings, rows=(*settings.rows[:2], row, *settings.rows[2:]))


FINETUNE = recipe.Recipe(FinetuneConfig, settle, _initialize, decide=_decide)

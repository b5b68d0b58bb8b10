"""Commands that look and change nothing: info, models, plan."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from .config import FinetuneConfig, Flag, Positional
from .runtime import say
from .tables import show


@dataclass(frozen=True)
class InfoConfig:
    """What is on this machine: versions, CPU and GPUs, kernels, weights; or what a run or model folder holds."""

    path: Positional[str | None] = None
    """Run folder or model folder; default this machine. models: as bitfast models."""
    json: Flag[bool] = False
    """One line of JSON instead of the table."""


@dataclass(frozen=True)
class ModelsConfig:
    """The networks: parameters, multiply-adds, feature width, and their released weights."""

    pattern: Positional[str] = "*"
    """Names to list, of networks or weights, with * and ?; quote it."""
    json: Flag[bool] = False
    """One line of JSON instead of the table."""


@dataclass(frozen=True)
class PlanConfig(FinetuneConfig):
    """Say what finetune would do with the same options: every value and its origin, memory, time, disk."""

    resume: tyro.conf.Suppress[bool] = False
    dry_run: tyro.conf.Suppress[bool] = True
    measure: Flag[bool] = False
    """Time real steps on random images, for some 20 s or more, instead of estimating."""
    json: Flag[bool] = False
    """One line of JSON instead of the table."""


def info(config):
    if config.path == "models" and not Path(config.path).exists():
        return models(ModelsConfig(json=config.json))
    from .recipes.info import info

    _print(info(config.path), config)


def models(config):
    from .recipes.models import models

    _print(models(config.pattern), config)


def plan(config):
    config.validate()
    from .recipes.finetune import run

    _print(run(config, measure=config.measure), config)
    say("nothing was trained or written; bitfast finetune with the same options starts")


def _print(found, config):
    if config.json:
        print(found.to_json())
    else:
        show(found)

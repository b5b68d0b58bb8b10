"""bitfast: Big Transfer (BiT, arXiv 1912.11370), fast and practical. Names are loaded on first use."""

import importlib

__version__ = "0.1.0"

_HOME = {
    "ResNetV2": "model",
    "create_model": "create",
    "resnet26x0_5": "create",
    "resnet50x1": "create",
    "resnet101x1": "create",
    "resnet50x3": "create",
    "resnet101x3": "create",
    "resnet152x2": "create",
    "resnet152x4": "create",
    "resnet50x1_distilled": "create",
    "resnet152x2_teacher": "create",
    "resnet152x2_teacher_384": "create",
    "list_models": "create",
    "load_weights": "weights",
    "save_weights": "weights",
    "released_names": "weights",
    "fold": "folding",
    "accelerate": "acceleration",
    "StandardizedSGD": "optim",
    "FinetuneConfig": "config",
    "finetune": "recipes.finetune",
    "PretrainConfig": "config",
    "pretrain": "recipes.pretrain",
    "plan": "recipes.finetune",
    "advise": "recipes.advise",
    "info": "recipes.info",
    "Run": "report",
    "check": "recipes.check",
    "load": "classifier",
    "evaluate": "classifier",
    "BiTClassifier": "estimator",
    "export": "exporting",
}
_MODULES = ("hyperrule", "pretrain_rule")
__all__ = [*_HOME, *_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])

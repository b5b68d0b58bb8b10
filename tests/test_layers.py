"""Imports inside bitfast point down: a module may import its own tier and those below it."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bitfast"

TIERS = [
    {
        "errors",
        "numerics",
        "hyperrule",
        "config",
        "config_file",
        "runtime",
        "files",
        "variants",
        "settings",
        "progress",
        "signals",
    }
    | {"timm_config", "feature_info", "released", "tables", "pretrain_rule", "pretrain_settings", "averaging"}
    | {"data.transform", "data.sampler", "data.streams"},
    {"ops"},
    {"nn"},
    {"model"},
    {"folding", "optim", "weights", "features", "acceleration"} | {"distributed", "gradients", "sharding"},
    {"create"},
    {"data", "train", "multilabel", "calibration", "evaluation", "checkpoint", "memory", "cost", "folder", "run"}
    | {"linear", "stage_features", "advice"},
    {"recipes", "report", "exporting"},
    {"classifier", "estimator", "predict", "demo", "cli", "cli_info"},
]


def tier(module):
    """The tier of `bitfast.<module>`, by the longest name in TIERS that holds it."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for level, names in enumerate(TIERS):
            if name in names:
                return level
    return None


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """(line, module inside bitfast or top-level name of another package, at module level) of every import."""
    found = []
    package = ".".join(("bitfast", *path.relative_to(PACKAGE).parent.parts))

    def visit(node, at_module_level):
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                origin = resolve_name("." * child.level + (child.module or ""), package)
                names = [f"{origin}.{alias.name}" for alias in child.names]
            found.extend((child.lineno, name, at_module_level) for name in names)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, at_module_level and not function)

    visit(ast.parse(path.read_text()), True)
    return found


# The package's own front door and `python -m bitfast` import from anywhere.
EVERYWHERE = ("", "__main__")
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent.name != "assets" and module_name(p) not in EVERYWHERE)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path):
    own = tier(module_name(path))
    assert own is not None, f"give bitfast.{module_name(path)} a tier in TIERS"
    for line, name, _ in imported_modules(path):
        if name.startswith("bitfast.") and name != "bitfast.__version__":
            target = tier(name.removeprefix("bitfast."))
            assert target is not None and target <= own, f"{path}:{line} imports {name}, which is above it"


@pytest.mark.parametrize("path", [p for p in MODULES if tier(module_name(p)) == 0], ids=module_name)
def test_lowest_tier_imports_without_torch(path):
    for line, name, at_module_level in imported_modules(path):
        assert not (at_module_level and name.split(".")[0] == "torch"), f"{path}:{line} imports torch"

"""bitfast info and bitfast models: what is here, without asking the network."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from photos import write_class_folders

import bitfast
from bitfast.cli import main
from bitfast.errors import DataError
from bitfast.variants import VARIANTS

PARAMETERS = {  # with 1000 classes, in millions
    "resnet50x1": 25.55,
    "resnet101x1": 44.54,
    "resnet50x3": 217.32,
    "resnet101x3": 387.93,
    "resnet152x2": 236.34,
    "resnet152x4": 936.53,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(self, address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BITFAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "distill").mkdir(parents=True)
    for name in ("BiT-M-R50x1", "distill/R50x1_224"):
        (tmp_path / "cache" / f"{name}.npz").write_bytes(b"")
    (tmp_path / "cache" / "BiT-M-R101x1.npz.part").write_bytes(b"")
    return tmp_path / "cache"


def answer(capsys, *arguments):
    """The JSON object that a command prints."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_this_machine(capsys, cache):
    facts = answer(capsys, "info")
    assert facts["bitfast"] == bitfast.__version__ and facts["packages"]["torch"] == torch.__version__
    assert facts["weights_present"] == ["BiT-M-R50x1", "distill/R50x1_224"]
    assert facts["native_library"]["loaded"] and facts["native_library"]["isa"] in ("baseline", "avx2", "avx512")
    assert facts["ops"].keys() == {choice.op for choice in bitfast.ops.report(facts["device"])}
    cuda = facts["cuda_kernels"]
    assert bool(cuda["built_for"]) != ("BITFAST_CUDA=ON pip install -e . builds them" in cuda["why_not"])
    assert facts["loader"] in ("dali", "pillow") and facts["cores"] >= 1
    assert 0 < facts["memory_bytes"]["available"] <= facts["memory_bytes"]["total"]
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for words in (
        torch.__version__,
        facts["cpu"],
        "kernels for",
        "CUDA kernels",
        "weights here",
        "BiT-M-R50x1",
        str(cache),
    ):
        assert words in text, words


def test_the_instruction_set_is_the_one_that_runs():
    code = "from bitfast.ops._library import native_isa; print(native_isa())"
    assert _python(code, BITFAST_CPU_ISA="baseline").stdout.strip() == "baseline"
    done = _python("import bitfast; print(bitfast.info().facts['native_library']['why_not'])", BITFAST_CPU_ISA="neon")
    assert "BITFAST_CPU_ISA is 'neon', which this machine lacks" in done.stdout


def test_without_the_library_it_says_so():
    done = _python("import bitfast; print(bitfast.info())", BITFAST_LIBRARY="/nowhere/lib.so")
    assert "the native library is not built" in done.stdout and "reference" in done.stdout


def _python(code, **env):
    path = ":".join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path} | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_and_its_model_folder(capsys, tmp_path):
    photos = write_class_folders(tmp_path / "fruit", per_class=4)
    out = tmp_path / "run"
    quick = ["--model", "resnet26x0_5", "--steps", "2", "--batch-size", "4", "--crop", "32"]
    assert main(["finetune", str(photos), "--out", str(out), *quick]) == 0
    facts = answer(capsys, "info", out)
    assert (facts["state"], facts["steps_done"], facts["steps"]) == ("finished", 2, 2)
    assert facts["data"] == str(photos) and facts["training_images"] == 9
    assert facts["trained_model"]["classes"] == ["apple", "lime", "plum"]
    model = answer(capsys, "info", out / "model")
    assert model["model"] == "resnet26x0_5" and model["metrics"] == facts["result"]["metrics"]
    (out / "result.json").unlink()
    assert main(["info", str(out)]) == 0
    assert f"not finished, 2 of 2 steps (bitfast finetune --resume {out})" in capsys.readouterr().out


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="neither a run nor a model folder"):
        bitfast.info(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(DataError, match="cannot be read as a run or model folder"):
        bitfast.info(tmp_path)


def test_models(capsys, cache):
    models = {entry["name"]: entry for entry in answer(capsys, "models")["models"]}
    assert list(models) == list(VARIANTS)
    for name, millions in PARAMETERS.items():
        assert round(models[name]["parameters"] / 1e6, 2) == millions
    assert models["resnet50x1"]["features"] == 2048 and models["resnet152x4"]["features"] == 8192
    assert models["resnet26x0_5"]["weights"] == []
    weights = {entry["name"]: entry for model in models.values() for entry in model["weights"]}
    assert tuple(sorted(weights)) == tuple(sorted(bitfast.released_names()))
    assert [name for name, entry in weights.items() if entry["present"]] == ["BiT-M-R50x1", "distill/R50x1_224"]
    assert "resnetv2_50x1_bit.goog_in21k" in weights["BiT-M-R50x1"]["timm"]
    assert weights["BiT-M-R50x1"]["classes"] == 21843


@pytest.mark.parametrize(
    ("pattern", "names", "weights"),
    [
        ("*50x3", ["resnet50x3"], ["BiT-S-R50x3", "BiT-M-R50x3", "BiT-M-R50x3-ILSVRC2012"]),
        ("bit-m-r101*", ["resnet101x1", "resnet101x3"], None),
        ("*.goog_in21k_ft_in1k", list(PARAMETERS), None),
        ("BiT-M-R50x1", ["resnet50x1"], ["BiT-M-R50x1"]),
    ],
)
def test_models_by_pattern(capsys, pattern, names, weights):
    models = answer(capsys, "models", pattern)["models"]
    assert [entry["name"] for entry in models] == names
    if weights is not None:
        assert [entry["name"] for entry in models[0]["weights"]] == weights


def test_info_models_is_models(capsys):
    assert main(["info", "models"]) == main(["models"]) == 0
    shown = capsys.readouterr().out
    assert shown[: len(shown) // 2] == shown[len(shown) // 2 :] and "resnet152x4" in shown


def test_models_that_are_none(capsys):
    assert main(["models", "*vit*"]) == 2
    assert "no model matches '*vit*'" in capsys.readouterr().err


def test_help_of_every_command_needs_no_torch():
    """Its time over that of an empty program; generous, for machines that do other things too."""
    from bitfast.cli import COMMANDS

    code = "import sys\nfrom bitfast.cli import main\nfor name in {}:\n try: main(name)\n except SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    expected = {"info", "models", "check", "plan", "finetune", "eval", "predict", "export", "bench"}
    assert expected <= set(COMMANDS)

    def seconds(code):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return time.monotonic() - began

    seconds(code.format([[name, "--help"] for name in COMMANDS]))
    empty = min(seconds("pass") for _ in range(3))
    assert min(seconds(code.format([["finetune", "--help"]])) for _ in range(3)) < 0.5 + 5 * empty

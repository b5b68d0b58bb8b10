"""The command line: answers, exit codes, and one line for every mistake."""

import json
import subprocess
import sys
import time

import pytest
from photos import write_class_folders
from PIL import Image

from bitfast.cli import main

QUICK = ["--model", "resnet26x0_5", "--steps", "2", "--batch-size", "4", "--resize", "36", "--crop", "32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "fruit", per_class=6)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fruit"
    assert main(["finetune", str(photos), "--out", str(out), *QUICK]) == 0
    return out


def fails(capsys, arguments, code, *words):
    """Run the command; it must exit with `code` and one line on stderr's end that has all the words."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    output = capsys.readouterr()
    assert output.out == ""
    errors = [line for line in output.err.splitlines() if line.startswith("bitfast: error: ")]
    assert len(errors) == 1 and output.err.rstrip().endswith(errors[0])
    for word in words:
        assert str(word) in errors[0], errors[0]


def test_no_such_folder(capsys):
    fails(capsys, ["finetune", "nowhere", *QUICK], 3, "nowhere", "no such folder", "check the path")


def test_one_class(capsys, tmp_path):
    root = write_class_folders(tmp_path / "one", classes=["apple"])
    fails(capsys, ["finetune", root, *QUICK], 3, root, "one class only", "apple", "add a second class")


def test_empty_class_folder(capsys, tmp_path):
    root = write_class_folders(tmp_path / "data", per_class=2)
    (root / "void").mkdir()
    fails(capsys, ["finetune", root, *QUICK], 3, root / "void", "no images", "add images or delete")


def test_text_named_jpg(capsys, tmp_path):
    root = write_class_folders(tmp_path / "data", per_class=2)
    (root / "apple" / "note.jpg").write_text("not a picture")
    fails(capsys, ["finetune", root, *QUICK], 3, root / "apple" / "note.jpg", "not an image")


def test_truncated_jpeg(capsys, tmp_path):
    root = write_class_folders(tmp_path / "data", per_class=2)
    path = root / "plum" / "cut.jpg"
    Image.effect_noise((200, 200), 60).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:3000])
    fails(capsys, ["finetune", root, *QUICK], 3, path, "truncated")


def test_validation_class_unknown_to_train(capsys, tmp_path):
    write_class_folders(tmp_path / "data" / "train", per_class=2)
    val = write_class_folders(tmp_path / "data" / "val", per_class=1)
    (val / "lime").rename(val / "Limes")
    fails(capsys, ["finetune", tmp_path / "data", *QUICK], 3, "'Limes'", "did you mean 'lime'?")


def test_crop_larger_than_resize(capsys, photos):
    fails(capsys, ["finetune", photos, "--resize", "64", "--crop", "128"], 2, "--crop 128", "--resize 64")


def test_missing_weights_file(capsys, photos, tmp_path):
    fails(capsys, ["finetune", photos, *QUICK, "--weights", tmp_path / "no.npz"], 3, "no.npz", "no such")


def test_weights_of_another_network(capsys, photos, tmp_path, trained):
    arguments = ["finetune", photos, "--weights", trained, "--model", "resnet50x1", "--out", tmp_path / "out"]
    fails(capsys, [*arguments, *QUICK[2:]], 3, trained / "model", "it holds a resnet26x0_5", "--model resnet26x0_5")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_none(capsys, photos, tmp_path):
    (tmp_path / "w.npz").write_text("no")
    fails(capsys, ["finetune", photos, *QUICK, "--weights", tmp_path / "w.npz"], 3, tmp_path / "w.npz")


def test_unknown_model(capsys, photos):
    fails(capsys, ["finetune", photos, "--model", "resnet50"], 2, "'resnet50'", "did you mean resnet50x1?")


def test_output_folder_in_use(capsys, photos, trained, tmp_path):
    before = sorted(trained.rglob("*"))
    fails(capsys, ["finetune", photos, "--out", trained, *QUICK], 2, trained, "in use", "--resume", "another --out")
    assert sorted(trained.rglob("*")) == before
    (tmp_path / "mine.txt").write_text("precious")
    fails(capsys, ["finetune", photos, "--out", tmp_path, *QUICK], 2, tmp_path, "not empty")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_too_large_for_memory(capsys, photos):
    huge = ["--model", "resnet50x1", "--steps", "1", "--crop", "30000", "--batch-size", "1"]
    fails(capsys, ["finetune", photos, *huge, "--dry-run"], 4, "GB", "--crop")


def test_no_data(capsys):
    fails(capsys, ["finetune"], 2, "no DATA given")


def test_unknown_command(capsys):
    fails(capsys, ["finetun", "x"], 2, "did you mean finetune?")


def test_model_folder_that_is_none(capsys, tmp_path):
    fails(capsys, ["eval", tmp_path], 3, tmp_path, "neither a run nor a model folder")


def test_unknown_flag_suggests_and_exits_2(capsys):
    fails(capsys, ["finetune", "x", "--batch-sise", "3"], 2, "--batch-sise", "did you mean -b, --batch-size", "--help")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["finetune", "x", "--loader", "foo"], ["invalid choice 'foo'", "--loader", "dali", "finetune --help"]),
        (["finetune", "x", "--steps", "abc"], ["--steps", "abc"]),
        (["finetune", "x", "--steps"], ["Missing value", "--steps"]),
        (["check"], ["Missing from bitfast check", "bitfast check --help"]),
    ],
)
def test_mistakes_in_options_are_one_line(capsys, arguments, words):
    fails(capsys, arguments, 2, *words)


def test_dry_run_shows_origins_and_writes_nothing(capsys, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", str(photos), "--model", "resnet26x0_5", "--batch-size", "16", "--dry-run"]) == 0
    output = capsys.readouterr()
    assert not list(tmp_path.iterdir()) and "nothing was trained" in output.err
    rows = {line.split("  ")[1].strip(): line for line in output.out.splitlines() if line.startswith("  ")}
    assert rows["batch size"].endswith("you")
    assert rows["base lr"].endswith('rule ("code")') and "0.003" in rows["base lr"]
    assert "160 px" in rows["resize"] and "128 px" in rows["crop"]
    assert "--preset paper would change" in output.out


def test_eval_of_own_split_and_of_a_folder(capsys, photos, trained):
    capsys.readouterr()
    assert main(["eval", str(trained)]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own == json.loads((trained / "result.json").read_text())["metrics"]
    assert main(["eval", str(trained), str(photos)]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 18


def test_banner_says_what_the_allocator_does(capsys, photos, trained, tmp_path):
    for arguments in (
        ["finetune", photos, "--out", tmp_path / "run", *QUICK],
        ["eval", trained],
        ["predict", trained, photos],
    ):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        assert capsys.readouterr().err.count("allocator: glibc") == 1


def test_eval_with_a_class_the_model_lacks(capsys, trained, tmp_path):
    root = write_class_folders(tmp_path / "data", per_class=1)
    (root / "plum").rename(root / "pear")
    fails(capsys, ["eval", trained, root], 3, "'pear'")


def test_predict_rows(capsys, photos, trained, tmp_path):
    (tmp_path / "bad, name.jpg").write_text("x")
    good = photos / "apple" / "0.png"
    capsys.readouterr()
    assert main(["predict", str(trained), str(good), str(tmp_path / "bad, name.jpg"), "--topk", "2"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header == "path,label,prob,label_2,prob_2,error"
    assert first.startswith(f"{good},") and first.endswith(",")
    assert second.startswith('"') and "not an image" in second
    assert main(["predict", str(trained), str(photos), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 18 and all(line["top"][0]["label"] in ("apple", "lime", "plum") for line in lines)


def test_predict_missing_file(capsys, trained):
    fails(capsys, ["predict", trained, "gone.jpg"], 3, "gone.jpg", "no such file")


def test_help_is_quick_and_imports_no_torch():
    code = "import sys; from bitfast.cli import main; main(['finetune', '--help'])"
    check = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--examples-per-class" in done.stdout and "BiT-HyperRule" in done.stdout
    assert time.monotonic() - began < 5


def test_crops_filters_and_cache_are_options_with_an_origin(photos, capsys):
    options = ["--train-crop", "inception", "--min-area", "0.3", "--test-crop", "center", "--interpolation", "bicubic"]
    assert main(["finetune", str(photos), "--dry-run", "--cache", "off", *QUICK, *options]) == 0
    plan = capsys.readouterr().out
    assert "Inception crop (area 0.3-1, ratio 0.75-1.33) -> resize 32x32 (bicubic, antialias)" in plan
    assert "short side to 36 (bicubic, antialias) -> central crop 32" in plan
    for name in ("random crop", "test crop", "interpolation", "cache"):
        assert any(line.startswith(f"  {name} ") and line.endswith("  you") for line in plan.splitlines()), name
    fails(capsys, ["finetune", photos, *QUICK, "--min-area", "0"], 2, "--min-area must be above 0")
    fails(capsys, ["finetune", photos, *QUICK, "--max-ratio", "0.5"], 2, "--max-ratio must be")
    fails(capsys, ["finetune", photos, *QUICK, "--train-crop", "inception", "--no-crop"], 2, "exclude each other")


@pytest.mark.parametrize("crop", ["random", "inception"])
def test_a_cache_changes_no_number(photos, tmp_path, capsys, crop):
    losses = []
    for cache in ("off", "ram"):
        out = tmp_path / cache
        options = ["--out", str(out), "--cache", cache, "--train-crop", crop, "--test-crop", "center"]
        assert main(["finetune", str(photos), *QUICK, *options]) == 0
        said = capsys.readouterr().err
        assert ("in memory" in said) == (cache == "ram")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
        losses[-1].append(json.loads((out / "result.json").read_text())["metrics"]["loss"])
    assert losses[0] == losses[1]

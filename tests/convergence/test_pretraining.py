"""A small pretraining on real images learns, and beats no pretraining after transfer to classes it has not seen."""

from statistics import median

import pytest

from benchmarks.recipes import bench_pretrain


@pytest.mark.slow
def test_beats_no_pretraining(tmp_path):
    """The experiment of docs/results.md, three seeds."""
    rows = bench_pretrain.race(tmp_path, seeds=3)
    top1 = {name: [row["top1"] for row in rows if row["provider"] == name] for name in bench_pretrain.PROVIDERS}
    assert all(row["images"] == 1000 and row["train_images"] == 50 for row in rows if row["provider"] != "upstream")
    assert min(top1["upstream"]) > 0.6, "25 classes: chance is 4 %"
    assert all(p > s for p, s in zip(top1["pretrained"], top1["from scratch"], strict=True))
    assert median(top1["pretrained"]) > median(top1["from scratch"]) + 0.05

"""docs/results.md, its plots and the README's table are what the result files make them, with their sources."""

import json

import pytest

from benchmarks import pages
from benchmarks.pages import __main__ as command
from benchmarks.suite import PARTS, ROOT

TRAINING = {
    "bitfast": (100.0, 1.0, 0.9),
    "timm": (150.0, 1.5, 1.35),
    "official": (160.0, 1.6, 1.44),
    "BN twin channels_last": (90.0, 0.9, 0.81),
    "convolutions alone": (111.0, 1.11, 1.0),
}


def training_record():
    rows = [
        {
            "case": "training resnet50x1 128 px b32 float32",
            "provider": provider,
            "median_ms": ms,
            "quartile_ms": [ms - 1, ms + 1],
            "images_per_s": 32e3 / ms,
            "ours_faster": ours,
            "ours_faster_range": [ours - 0.1, ours + 0.1],
            "of_convolutions": floor,
            "of_convolutions_range": [floor - 0.05, floor + 0.05],
        }
        for provider, (ms, ours, floor) in TRAINING.items()
    ]
    facts = {"command": "python -m x", "time": "2026-01-02T03:04:05", "torch": "2.13.0", "commit": "0123456789abcdef"}
    facts |= {
        "changed": False,
        "machine": "2 cores",
        "cpu_capability": "AVX2",
        "threads": 2,
        "absent": ["timm compile"],
    }
    return facts | {"rows": rows}


@pytest.fixture
def results(tmp_path):
    (tmp_path / "bench_desk_train.json").write_text(json.dumps(training_record()))
    return tmp_path


def test_the_pages_are_what_the_files_say():
    stale = [path for path, text in pages.pages().items() if (ROOT / path).read_text(encoding="utf-8") != text]
    assert not stale, f"run python -m benchmarks.pages: {stale}"


def test_no_plot_is_left_over():
    made = {path.name for path in pages.pages() if path.suffix == ".svg"}
    assert {path.name for path in (ROOT / "docs/plots").glob("*")} == made


def test_a_table_compares_with_the_best_peer_that_is_a_bit(results):
    text = pages.pages(results)[pages.PAGE]
    row = next(line for line in text.splitlines() if line.startswith("| resnet50x1 128 px b32"))
    assert row == (
        "| resnet50x1 128 px b32 | 100 [99.0, 101] | 150 | 160 | 90.0 | 111"
        " | 1.50 x [1.40, 1.60] | 0.90 [0.850, 0.950] |"
    )
    assert "`python -m x` -> [bench_desk_train.json]" in text and "absent: timm compile" in text


def test_the_readme_has_the_same_figures(results):
    readme = pages.pages(results)[pages.README]
    assert "| training resnet50x1 128 px b32 | 150 ms, timm | 100 ms | 1.50 x [1.40, 1.60] |" in readme
    before, after = (ROOT / pages.README).read_text(encoding="utf-8").split(pages.START)
    assert readme.startswith(before) and readme.endswith(after.split(pages.END)[1])


def test_the_same_numbers_make_the_same_plot(results):
    first, second = (pages.pages(results) for _ in range(2))
    assert first == second
    assert "bitfast" in first[pages.PAGE.parent / "plots" / "desk_train.svg"]


def test_check_names_what_is_stale_and_writes_nothing(results, monkeypatch, capsys):
    monkeypatch.setattr(command, "pages", lambda: {pages.PAGE: "other"})
    before = (ROOT / pages.PAGE).read_bytes()
    assert command.main(["--check"]) == 1
    assert "docs/results.md: not what the result files say" in capsys.readouterr().out
    assert (ROOT / pages.PAGE).read_bytes() == before


def test_a_file_that_is_not_named_as_the_suite_names_it(tmp_path):
    (tmp_path / "bench_Desk.json").write_text("{}")
    with pytest.raises(ValueError, match="bench_MACHINE_PART.json"):
        pages.pages(tmp_path)


def test_every_part_of_the_suite_has_a_place_on_the_page():
    assert set(PARTS) == set(pages.PARTS)

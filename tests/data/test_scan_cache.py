"""Looks are remembered while size and mtime stay, by several processes at once, and no damage of the cache matters."""

import os
import sqlite3
import subprocess
import sys

import pytest

from bitfast.data.check import scan
from bitfast.data.source import Files

MANY = 150


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scan" / "looks-1.sqlite"


@pytest.fixture
def paths(save, tmp_path):
    return [save(tmp_path / "images" / f"{i}.png", seed=i) for i in range(5)]


def test_unchanged_files_are_not_read_again(cache, paths):
    first = scan(Files(paths))
    again = scan(Files([*paths[:3], paths[0] + "gone", *paths[3:]]))
    assert (first.recalled, again.recalled) == (0, 5)
    assert again.looks[:3] + again.looks[4:] == first.looks
    assert scan(Files(paths), cache=False).recalled == 0
    assert sorted(os.listdir(os.path.dirname(paths[0]))) == [f"{i}.png" for i in range(5)]


def test_another_size_or_mtime_is_looked_at(cache, paths, save):
    scan(Files(paths))
    status = os.stat(paths[0])
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    status = os.stat(paths[1])
    content = open(paths[1], "rb").read()
    open(paths[1], "wb").write(content[:-1])
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    again = scan(Files(paths))
    assert again.recalled == 3 and again.bad == [(paths[1], "truncated PNG")]


def test_what_is_unreadable_is_looked_at_each_time(cache, paths):
    content = open(paths[0], "rb").read()
    open(paths[0], "wb").write(content[:40])
    status = os.stat(paths[0])
    assert len(scan(Files(paths)).bad) == 1
    open(paths[0], "wb").write(content)
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not scan(Files(paths)).bad


@pytest.mark.parametrize("damage", ["text", "cut", "facts", "folder", "other table"])
def test_a_damaged_cache_costs_only_time(cache, paths, damage, capsys):
    expected = scan(Files(paths)).looks
    if damage == "text":
        cache.write_text("no database at all" * 100)
    elif damage == "cut":
        os.truncate(cache, 4096)  # one page of two
    elif damage == "facts":
        with sqlite3.connect(cache) as database:
            database.execute("UPDATE looks SET facts = '[1, 2'")
    elif damage == "other table":
        with sqlite3.connect(cache) as database:
            database.execute("DROP TABLE looks")
            database.execute("CREATE TABLE looks (name BLOB)")
    else:
        cache.unlink()
        cache.mkdir()
    again = scan(Files(paths))
    assert again.looks == expected and again.recalled == 0
    said = capsys.readouterr().err
    assert said.count("\n") <= 2 and str(cache) in said
    if damage in ("text", "cut", "facts"):
        assert scan(Files(paths)).recalled == len(paths)


def test_processes_share_it(cache, save, tmp_path):
    paths = [save(tmp_path / "many" / f"{i}.png", seed=i, height=8, width=8) for i in range(MANY)]
    script = (
        "import sys; from bitfast.data.check import scan; from bitfast.data.source import Files;"
        " print(len(scan(Files(sys.argv[1:])).bad))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in running:
        assert process.communicate() == ("0\n", "")
    assert scan(Files(paths)).recalled == MANY

"""Downloads against a local HTTP server: whole, resumed, refused, damaged, twice at once."""

import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from bucket import Bucket

import bitfast
from bitfast.errors import WeightsError
from bitfast.weights import download, resolve

NAME = "BiT-M-R50x1"


@pytest.fixture(scope="module")
def archive():
    """An .npz of about 3 MB, more than one block of the download."""
    buffer = io.BytesIO()
    np.savez(buffer, **{"resnet/a": np.random.default_rng(0).normal(size=400_000)})
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def bucket(archive, cache, monkeypatch):
    server = Bucket()
    server.files[f"/bit/{NAME}.npz"] = archive
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/bit/")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.open.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def failure(cache):
    """The one-line message of a resolve that must fail and leave no finished file."""

    def attempt(name=NAME):
        with pytest.raises(WeightsError) as caught:
            resolve(name)
        assert "\n" not in str(caught.value)
        assert not (cache / f"{name}.npz").exists()
        return str(caught.value)

    return attempt


def part(cache):
    return cache / f"{NAME}.npz.part"


def test_download_then_cache_hit(bucket, cache, archive, lines):
    path = resolve(NAME)
    assert path == cache / f"{NAME}.npz" and path.read_bytes() == archive
    record = (cache / f"{NAME}.npz.sha256").read_text()
    assert f"# {len(archive)} bytes from http://127.0.0.1" in record
    assert f"{hashlib.sha256(archive).hexdigest()}  {NAME}.npz\n" in record
    assert not part(cache).exists()
    first, last = lines()
    assert first.startswith(f"{NAME}: 0 of 3 MB here, downloading http://127.0.0.1") and f"3 MB in {path}" in last
    assert resolve(NAME) == path and lines() == []
    assert bucket.requests == [(f"/bit/{NAME}.npz", None)]


def test_progress(bucket, cache, monkeypatch, lines):
    monkeypatch.setattr(download, "PROGRESS_S", 0.0)
    resolve(NAME)
    assert any(line.startswith(f"{NAME}: 1 of 3 MB, ") and line.endswith(" MB/s") for line in lines())


def test_names_with_a_folder(bucket, cache, archive):
    bucket.files["/bit/distill/R50x1_224.npz"] = archive
    assert resolve("distill/R50x1_224") == cache / "distill" / "R50x1_224.npz"


def test_a_file_placed_by_hand_needs_no_server(cache, monkeypatch, archive):
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", "http://127.0.0.1:9")
    cache.mkdir()
    (cache / f"{NAME}.npz").write_bytes(archive)
    assert resolve(NAME).read_bytes() == archive


def test_mirror_folder(cache, monkeypatch, archive, tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / f"{NAME}.npz").write_bytes(archive)
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", (tmp_path / "mirror").as_uri())
    assert resolve(NAME).read_bytes() == archive


def test_broken_connection_is_resumed(bucket, cache, archive):
    bucket.cuts = [1_000_000, 500_000]
    assert resolve(NAME).read_bytes() == archive
    assert [wanted for _, wanted in bucket.requests] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_call_resumes(bucket, cache, archive, failure):
    bucket.cuts = [100_000] * download.TRIES
    message = failure()
    assert f"broke off {download.TRIES} times" in message and "is kept and the same command continues it" in message
    assert part(cache).stat().st_size == 100_000 * download.TRIES
    assert resolve(NAME).read_bytes() == archive
    assert bucket.requests[-1][1] == f"bytes={100_000 * download.TRIES}-"


def test_server_without_ranges_starts_over(bucket, cache, archive):
    bucket.ranges, bucket.cuts = False, [1_000_000]
    assert resolve(NAME).read_bytes() == archive
    assert [wanted for _, wanted in bucket.requests] == [None, "bytes=1000000-"]


def test_complete_part_needs_no_more_bytes(bucket, cache, archive):
    cache.mkdir()
    part(cache).write_bytes(archive)
    assert resolve(NAME).read_bytes() == archive
    assert bucket.requests == [(f"/bit/{NAME}.npz", f"bytes={len(archive)}-")]


def test_part_longer_than_the_file_starts_over(bucket, cache, archive):
    cache.mkdir()
    part(cache).write_bytes(archive + b"more")
    assert resolve(NAME).read_bytes() == archive
    assert bucket.requests[-1][1] is None


def test_not_found(bucket, cache, failure):
    name = "BiT-M-R152x4"
    message = failure(name)
    url = f"{os.environ['BITFAST_WEIGHTS_URL']}{name}.npz"
    assert message == (
        f"{name} is not on this machine and could not be downloaded (HTTP 404 Not Found): fetch {url} elsewhere "
        f"and put it at {cache / name}.npz, or pass the path of a file"
    )


def test_offline(cache, monkeypatch, failure):
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", "http://127.0.0.1:9")
    message = failure()
    assert f"{NAME} is not on this machine and could not be downloaded (" in message and "refused" in message
    monkeypatch.setenv("BITFAST_WEIGHTS_URL", "http://no-such-host.invalid")
    assert f"fetch http://no-such-host.invalid/{NAME}.npz elsewhere and put it at {cache / NAME}.npz" in failure()


def test_server_that_never_answers(bucket, monkeypatch, failure):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    bucket.open.clear()
    assert "(timed out)" in failure()


def test_garbage(bucket, cache, failure, archive):
    url = f"/bit/{NAME}.npz"
    damaged = bytearray(archive)
    damaged[len(archive) // 2] ^= 0xFF
    for content in (b"<html>please log in</html>" * 50, archive[:-100], bytes(damaged)):
        bucket.files[url] = content
        assert "did not give a weights archive" in failure()
        assert not part(cache).exists()
    bucket.files[url] = archive
    assert resolve(NAME).read_bytes() == archive


def test_changed_file_in_the_cache(bucket, cache):
    path = resolve(NAME)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="when it was downloaded; delete it to download it again"):
        resolve(NAME)
    (cache / f"{NAME}.npz.sha256").unlink()
    assert resolve(NAME) == path


def test_cache_that_cannot_be_written(bucket, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match="cannot write to .*cache.*set BITFAST_CACHE to another folder"):
        resolve(NAME)


def test_a_second_caller_waits_for_the_first(bucket, cache, lines):
    bucket.open.clear()
    found = []
    callers = [threading.Thread(target=lambda: found.append(resolve(NAME))) for _ in range(2)]
    callers[0].start()
    assert bucket.asked.wait(30)
    callers[1].start()
    said = []
    while not any("another process is downloading it, waiting" in line for line in said):
        said += lines()
    bucket.open.set()
    for caller in callers:
        caller.join()
    assert found == [cache / f"{NAME}.npz"] * 2 and len(bucket.requests) == 1


def test_two_processes_at_once(bucket, cache, archive, tmp_path):
    bucket.open.clear()
    command = [sys.executable, "-c", f"from bitfast.weights import resolve; print(resolve({NAME!r}))"]
    source, log = Path(bitfast.__file__).parents[1], tmp_path / "log"
    with log.open("w") as errors:
        runs = [subprocess.Popen(command, cwd=source, stdout=subprocess.PIPE, stderr=errors, text=True) for _ in "ab"]
    deadline = time.monotonic() + 60
    while "another process is downloading it, waiting" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    bucket.open.set()
    outputs = [run.communicate(timeout=60)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], log.read_text()
    assert outputs == [str(cache / f"{NAME}.npz")] * 2 and len(bucket.requests) == 1
    assert (cache / f"{NAME}.npz").read_bytes() == archive

"""Downloading one released .npz into the cache: resumable, verified, atomic, safe for several processes."""

import hashlib
import http
import http.client
import os
import re
import time
import urllib.error
import urllib.request
import zipfile
import zlib

from filelock import FileLock, Timeout

from ..errors import WeightsError
from ..runtime import say

TIMEOUT_S = 20
TRIES = 4
PAUSE_S = 1.0
PROGRESS_S = 3.0
_BLOCK_BYTES = 1 << 20


class _Unreachable(Exception):
    """The server could not be asked, or refused."""


class _Broken(Exception):
    """The connection ended before the file did."""


def download(name, url, target):
    """`target`, downloaded from `url` unless it is there.

    The bytes gather in `<target>.part`, which a later call continues; the finished file is read through (the checksums
    inside the archive) before it gets its name, and `<target>.sha256` records what came: size, source, sha256. A target
    whose size is not the recorded one is refused. One process downloads, others wait for it.
    Raises WeightsError.
    """
    if target.exists():
        return _recorded(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(name, target):
            if not target.exists():
                _download(name, url, target)
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot write to {target.parent} ({error.strerror or error}); "
            "free some space there, or set BITFAST_CACHE to another folder"
        ) from error
    return target


def _download(name, url, target):
    part = target.with_name(target.name + ".part")
    try:
        _gather(name, url, part)
    except _Unreachable as error:
        raise WeightsError(
            f"{name} is not on this machine and could not be downloaded ({error}): fetch {url} elsewhere "
            f"and put it at {target}, or pass the path of a file"
        ) from error
    except _Broken as error:
        raise WeightsError(
            f"{name}: the download broke off {TRIES} times ({error}); {part} is kept and "
            f"the same command continues it, or fetch {url} elsewhere and put it at {target}"
        ) from error
    fault = _fault(part)
    if fault:
        part.unlink()
        raise WeightsError(
            f"{name}: {url} did not give a weights archive ({fault}); try again, "
            f"or fetch it elsewhere and put it at {target}"
        )
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    size = part.stat().st_size
    record = _record(target)
    record.write_text(f"# {size} bytes from {url}\n{digest}  {target.name}\n", encoding="utf-8")
    os.replace(part, target)
    say(f"{name}: {size / 1e6:.0f} MB in {target}")


def _gather(name, url, part):
    for attempt in range(1, TRIES + 1):
        try:
            return _fetch(name, url, part)
        except _Broken:
            if attempt == TRIES:
                raise
        except _Unreachable:
            if attempt in (1, TRIES):
                raise
        time.sleep(PAUSE_S * attempt)


def _fetch(name, url, part):
    """One request for what `part` lacks. Raises _Unreachable before the first byte, _Broken after."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "bitfast", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _Unreachable(f"HTTP {error.code} {error.reason}") from error
        if _total(error.headers) == have:
            return
        part.unlink()
        raise _Broken("the kept part is longer than the file") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _Unreachable(getattr(reason, "strerror", None) or reason) from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        total = _total(response.headers)
        of_total = f" of {total / 1e6:.0f}" if total else ""
        say(f"{name}: {have / 1e6:.0f}{of_total} MB here, downloading {url}")
        began = shown = time.monotonic()
        start = have
        with part.open("ab" if have else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                have += len(block)
                now = time.monotonic()
                if now - shown >= PROGRESS_S:
                    shown = now
                    say(f"{name}: {have / 1e6:.0f}{of_total} MB, {(have - start) / 1e6 / (now - began):.1f} MB/s")
    if total is not None and have != total:
        raise _Broken(f"{have} of {total} bytes")


def _blocks(response):
    while True:
        try:
            block = response.read(_BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block


def _total(headers):
    """Size of the whole file by Content-Range or Content-Length, None if the server does not say."""
    if whole := re.search(r"/(\d+)$", headers.get("Content-Range", "")):
        return int(whole[1])
    length = headers.get("Content-Length")
    return int(length) if length else None


def _fault(path):
    """What keeps `path` from being a whole .npz, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged:
                return f"{damaged} is damaged"
            if not archive.namelist() or not all(entry.endswith(".npy") for entry in archive.namelist()):
                return "it holds other things than arrays"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return str(error)
    return None


def _record(target):
    return target.with_name(target.name + ".sha256")


def _recorded(target):
    """`target`, if its size is the one written down when it was downloaded (if it was)."""
    record = _record(target)
    written = re.match(r"# (\d+) bytes", record.read_text(encoding="utf-8")) if record.exists() else None
    size = target.stat().st_size
    if written and size != int(written[1]):
        raise WeightsError(
            f"{target} has {size} bytes, {written[1]} when it was downloaded; delete it to download it again, "
            f"or delete {record.name} to use it as it is"
        )
    return target


def _lock(name, target):
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"{name}: another process is downloading it, waiting")
        return lock.acquire()

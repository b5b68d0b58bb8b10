"""Where caches are, and writing files so that a kill at any instant leaves the old one or the new one, never half."""

import os
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError


def cache_folder():
    """Folder of downloads and of what scans found: $BITFAST_CACHE, $XDG_CACHE_HOME/bitfast or ~/.cache/bitfast."""
    if folder := os.environ.get("BITFAST_CACHE"):
        return Path(folder).expanduser()
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder).expanduser() / "bitfast"
    return Path.home() / ".cache" / "bitfast"


@contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; on a clean exit it is flushed to disk and takes `path`'s name."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(path):
    """Flush the names in a folder to disk, where the system has that."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def require_free(path, force=False):
    """UsageError if something is at `path` that would be overwritten; with `force` a file may be."""
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder: choose another name for the file")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} is there already and is not overwritten: choose another name, or add --force")


def write_text(path, text):
    """Replace the file at `path` by `text`, atomically. UTF-8; file names that are not keep their bytes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

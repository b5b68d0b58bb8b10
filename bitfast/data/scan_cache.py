"""What scans found in readable files, kept between runs in the user's cache folder and never beside the images.

One SQLite file, so that runs at the same time share it. An entry holds as long as the file's size and mtime do. What
could not be read is not kept: those files are few, and their reason may go away without the file changing.
"""

import json
import os
import sqlite3
from contextlib import contextmanager

from bitfast.files import cache_folder
from bitfast.runtime import say

# Part of the name: another layout, or another meaning of what is kept, is another file.
_VERSION = 1
_PATIENCE_SECONDS = 10
_PART = 500
_TABLE = (
    "CREATE TABLE IF NOT EXISTS looks (name BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, facts TEXT) WITHOUT ROWID"
)


class ScanCache:
    """Facts by stamp, a (name, bytes, mtime in ns). Where it cannot be used it says so, knows and keeps nothing."""

    def __init__(self, path):
        self.path, self._connection = path, None
        if path is not None:
            self._try(self._connect)

    def recall(self, stamps):
        """{stamp: list of facts} of those that are known and unchanged."""
        return self._try(self._recall, stamps) or {}

    def keep(self, found):
        """Add or replace the facts of {stamp: list of facts}, in one transaction."""
        if found:
            self._try(self._keep, found)

    def close(self):
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _try(self, work, *arguments):
        if self._connection is None and work != self._connect:
            return None
        try:
            return work(*arguments)
        except (OSError, sqlite3.Error, ValueError) as error:
            self.close()
            damaged = not isinstance(error, OSError | sqlite3.OperationalError)
            say(f"scan cache {self.path}: {error}: {'begun anew' if damaged else 'this scan goes on without it'}")
            if damaged:
                self.path.unlink(missing_ok=True)
                self._connect()
            return None

    def _connect(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, timeout=_PATIENCE_SECONDS, isolation_level=None)
        self._connection.execute(_TABLE)

    def _recall(self, stamps):
        by_name, known = {os.fsencode(stamp[0]): stamp for stamp in stamps}, {}
        names = list(by_name)
        for start in range(0, len(names), _PART):
            part = names[start : start + _PART]
            query = f"SELECT name, size, mtime, facts FROM looks WHERE name IN ({','.join('?' * len(part))})"
            for name, size, mtime, facts in self._connection.execute(query, part):
                stamp = by_name[name]
                if stamp[1:] == (size, mtime):
                    known[stamp] = json.loads(facts)
        return known

    def _keep(self, found):
        rows = [(os.fsencode(name), size, mtime, json.dumps(facts)) for (name, size, mtime), facts in found.items()]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("REPLACE INTO looks VALUES (?, ?, ?, ?)", rows)
        self._connection.execute("COMMIT")


@contextmanager
def scan_cache(wanted=True):
    """The user's ScanCache, closed at the end; one that knows nothing if it is not wanted."""
    cache = ScanCache(cache_folder() / "scan" / f"looks-{_VERSION}.sqlite" if wanted else None)
    try:
        yield cache
    finally:
        cache.close()

"""Links that one shard of the frontier found for another: a small SQLite file per receiver, written by all others.

At least once: the sender commits here before it commits the page that held the links, and the receiver deletes only
what it has committed. The receiver knows which addresses it has seen, so that nothing is fetched twice. (Killing any
process loses nothing. A power cut may undo the last second of one file and not of another; links of that second are
then found again only on other pages.)
"""

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from livelm.sources.web.frontier_store import connect, explained

MAX_ROWS = 1_000_000
"""Links that may wait for one receiver; it has stopped or is far too slow when there are more."""
TIMEOUT_S = 30.0
"""A sender holds the file for milliseconds; one that is stopped in between would hold up all others."""

Link = tuple[int, str]
"""Depth and address."""


class Inbox:
    """The links that wait for one shard. Any number of processes may send, one receives."""

    def __init__(self, path: Path) -> None:
        """Open or create it. Raises SourceError or StorageError when that is impossible."""
        self.path = path
        self._db = connect(path, timeout_s=TIMEOUT_S)
        self._prepare()

    @explained
    def _prepare(self) -> None:
        self._begin_log()
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA secure_delete = OFF")
        self._db.execute("PRAGMA journal_size_limit = 16777216")
        self._db.execute("CREATE TABLE IF NOT EXISTS link(id INTEGER PRIMARY KEY, depth INTEGER, text TEXT)")

    @explained
    def send(self, links: Sequence[Link]) -> int:
        """Durably add links; returns how many had room."""
        self._db.execute("BEGIN IMMEDIATE")
        accepted = links[: max(0, MAX_ROWS - self._count())]
        self._db.executemany("INSERT INTO link(depth, text) VALUES (?, ?)", accepted)
        self._db.execute("COMMIT")
        return len(accepted)

    @explained
    def receive(self, limit: int) -> list[tuple[int, int, str]]:
        """The oldest links, up to `limit`, without taking them out: number, depth, address."""
        return self._db.execute("SELECT * FROM link ORDER BY id LIMIT ?", (limit,)).fetchall()

    @explained
    def remove(self, upto: int) -> None:
        """Forget the links numbered up to `upto`."""
        self._db.execute("DELETE FROM link WHERE id <= ?", (upto,))

    @explained
    def count(self) -> int:
        """How many links wait."""
        return self._count()

    def close(self) -> None:
        """Let the file go; safe to call twice."""
        self._db.close()

    def _begin_log(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:  # SQLite does not wait by itself when two processes make this change
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _count(self) -> int:
        first, last = self._db.execute("SELECT (SELECT min(id) FROM link), (SELECT max(id) FROM link)").fetchone()
        return 0 if first is None else last - first + 1  # numbers have no holes between the first and the last

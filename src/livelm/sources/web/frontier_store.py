"""The frontier on disk: one SQLite file per shard, with one writer and one transaction between two commits."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from livelm.errors import LivelmError, SourceError, StorageError

SCHEMA = 2
"""2: hosts have `tdmrep`."""
MARK = 0x6C6C6D46
"""SQLite's application id of our files: "llmF"."""
SEEN_ROWS = 256
"""More rows of seen keys than this are put together when the file is opened."""
SEEN_KEYS = 1 << 20
"""Keys in one row after that: 8 MB."""

# The links of one page to one site wait in one row, one a line: at 153 links a page a row for each is 5 times slower.
# Rows are only ever appended, for scattered writes took twice the time at 2 million addresses; which rows belong to a
# site is held in memory, 8 bytes a row. Nothing is indexed by address: `seen` is a log that is held in memory, too.
TABLES = """
CREATE TABLE state(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE seen(id INTEGER PRIMARY KEY, keys BLOB NOT NULL, paths BLOB NOT NULL);
CREATE TABLE site(id INTEGER PRIMARY KEY, name TEXT NOT NULL, n_urls INTEGER NOT NULL, n_waiting INTEGER NOT NULL,
                  n_taken INTEGER NOT NULL, next_at REAL NOT NULL);
CREATE TABLE waiting(number INTEGER PRIMARY KEY, site INTEGER NOT NULL, depth INTEGER NOT NULL, tries INTEGER NOT NULL,
                     lines TEXT NOT NULL, etag TEXT, last_modified TEXT);
CREATE TABLE revisit(due_at REAL NOT NULL, number INTEGER NOT NULL, depth INTEGER NOT NULL, text TEXT NOT NULL,
                     etag TEXT, last_modified TEXT, PRIMARY KEY(due_at, number)) WITHOUT ROWID;
CREATE TABLE outbox(number INTEGER PRIMARY KEY, document BLOB NOT NULL);
CREATE TABLE host(origin TEXT PRIMARY KEY, robots BLOB, status INTEGER, fetched_at REAL NOT NULL, crawl_delay_s REAL,
                  failures INTEGER NOT NULL, tdmrep BLOB);
CREATE INDEX host_by_age ON host(fetched_at);
"""

Waiting = tuple[int, int, int, int, str, str | None, str | None]
"""Number, site, depth, tries, addresses (one a line), etag, last_modified."""
Revisit = tuple[float, int, int, str, str | None, str | None]
"""Due at, number, depth, text, etag, last_modified."""
SiteRow = tuple[int, str, int, int, int, float]
"""Id, name, addresses accepted, addresses waiting, lines of its first row that are done, next time (Unix)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """What is remembered of one origin (scheme, host, port) between visits and restarts."""

    robots: bytes | None
    """The body of its robots.txt; None when there was none to read."""
    status: int | None
    """The answer to the request for it; None when it could not be reached."""
    fetched_at: float
    """Unix time in seconds."""
    crawl_delay_s: float | None = None
    failures: int = 0
    """Failed requests on end."""
    tdmrep: bytes | None = None
    """The body of its tdmrep.json, empty when there was none to read; None: it was not asked for yet."""


class _Stored(Protocol):
    path: Path

    def close(self) -> None: ...


S = TypeVar("S", bound=_Stored)
P = ParamSpec("P")
R = TypeVar("R")


def explained(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Turn what SQLite raises into SourceError (damaged, in use) or StorageError (the disk), and close the file.

    After a write that failed, half a page may be in the open transaction: nothing more must be committed.
    """

    @wraps(method)
    def call(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.Error as error:
            self.close()
            raise explain(self.path, error) from error

    return call


def connect(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    """Open or create a database whose transactions are begun and ended by hand. Raises StorageError."""
    try:
        return sqlite3.connect(path, isolation_level=None, timeout=timeout_s)
    except sqlite3.Error as error:
        raise explain(path, error) from error


def explain(path: Path, error: sqlite3.Error) -> LivelmError:
    """The error to raise instead."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return SourceError(f"the frontier {str(path)!r} is in use by another crawl. Stop it, or choose another folder.")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return SourceError(f"the frontier {str(path)!r} is damaged ({error}). Begin the crawl in a new folder.")
    return StorageError(
        f"the frontier {str(path)!r} cannot be stored: {error}. Everything up to the last commit is intact: "
        "make room or repair the disk, and continue."
    )


class Store:
    """The tables of one shard. Not safe for several threads; every write waits for `commit`."""

    def __init__(self, path: Path, *, cache_bytes: int) -> None:
        """Open or create the file and lock it. Raises SourceError when it is foreign, newer, damaged or in use."""
        self.path = path
        self._writing = False
        self._db = connect(path, timeout_s=1.0)
        try:
            self._prepare(cache_bytes)
        except BaseException:
            self.close()
            raise

    @explained
    def _prepare(self, cache_bytes: int) -> None:
        run = self._db.execute
        run("PRAGMA locking_mode = EXCLUSIVE")  # one writer, even by mistake; the system lets go when it is killed
        mark, version = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        n_tables = run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if mark != MARK and (mark or n_tables):
            raise SourceError(f"{str(self.path)!r} is not a frontier of livelm. Choose another folder.")
        if version > SCHEMA:
            raise SourceError(
                f"the frontier {str(self.path)!r} has schema {version}, this livelm knows {SCHEMA}. Use a newer livelm."
            )
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")  # a power cut may undo the last commits, and their pages are read again
        run(f"PRAGMA cache_size = -{cache_bytes >> 10}")
        run("PRAGMA wal_autocheckpoint = 8192")  # 32 MB: pages that change often are copied once
        run(f"PRAGMA journal_size_limit = {64 << 20}")
        run("PRAGMA secure_delete = OFF")  # Debian's SQLite overwrites what is deleted, in vain
        run("BEGIN IMMEDIATE")  # also takes the lock now, not at the first link
        if not n_tables:
            for statement in TABLES.split(";")[:-1]:
                run(statement)
            run(f"PRAGMA application_id = {MARK}")
        elif version < SCHEMA:
            run("ALTER TABLE host ADD COLUMN tdmrep BLOB")
        run(f"PRAGMA user_version = {SCHEMA}")
        run("COMMIT")

    @explained
    def load_state(self) -> dict[str, int]:
        """What `save_state` kept; empty for a new file."""
        row = self._db.execute("SELECT value FROM state WHERE name = 'frontier'").fetchone()
        return {} if row is None else json.loads(row[0])

    @explained
    def save_state(self, state: dict[str, int]) -> None:
        """Keep some numbers."""
        self._change("INSERT OR REPLACE INTO state VALUES ('frontier', ?)", (json.dumps(state),))

    @explained
    def load_seen(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All keys of addresses and of paths with queries; puts many small rows together on the way."""
        rows = self._db.execute("SELECT keys, paths FROM seen ORDER BY id").fetchall()
        keys = np.frombuffer(b"".join(row[0] for row in rows), np.int64)
        paths = np.frombuffer(b"".join(row[1] for row in rows), np.int64)
        if len(rows) > SEEN_ROWS + max(len(keys), len(paths)) // SEEN_KEYS:
            self._change("DELETE FROM seen")
            for start in range(0, max(len(keys), len(paths)), SEEN_KEYS):
                part = slice(start, start + SEEN_KEYS)
                self._change(
                    "INSERT INTO seen(keys, paths) VALUES (?, ?)", (keys[part].tobytes(), paths[part].tobytes())
                )
            self.commit()
        return keys, paths

    @explained
    def append_seen(self, keys: bytes, paths: bytes) -> None:
        """Add to the log: packed 64-bit numbers."""
        if keys or paths:
            self._change("INSERT INTO seen(keys, paths) VALUES (?, ?)", (keys, paths))

    @explained
    def load_sites(self) -> list[SiteRow]:
        """All sites."""
        return self._db.execute("SELECT id, name, n_urls, n_waiting, n_taken, next_at FROM site ORDER BY id").fetchall()

    @explained
    def save_sites(self, rows: Iterable[SiteRow]) -> None:
        """Insert or replace."""
        self._change_many("INSERT OR REPLACE INTO site VALUES (?, ?, ?, ?, ?, ?)", rows)

    @explained
    def put_waiting(self, rows: Sequence[Waiting]) -> None:
        """Add addresses to fetch."""
        self._change_many("INSERT INTO waiting VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    @explained
    def list_waiting(self, after: int, limit: int) -> list[tuple[int, int]]:
        """Number and site of up to `limit` rows numbered above `after`, in order."""
        query = "SELECT number, site FROM waiting WHERE number > ? ORDER BY number LIMIT ?"
        return self._db.execute(query, (after, limit)).fetchall()

    @explained
    def find_waiting(self, number: int) -> Waiting | None:
        """One row."""
        return self._db.execute("SELECT * FROM waiting WHERE number = ?", (number,)).fetchone()

    @explained
    def remove_waiting(self, number: int) -> None:
        """All addresses of the row are done."""
        self._change("DELETE FROM waiting WHERE number = ?", (number,))

    @explained
    def put_revisit(self, row: Revisit) -> None:
        """Fetch an address again at some time."""
        self._change("INSERT INTO revisit VALUES (?, ?, ?, ?, ?, ?)", row)

    @explained
    def first_revisit_at(self) -> float | None:
        """When the next address is to be fetched again, Unix time."""
        return self._db.execute("SELECT min(due_at) FROM revisit").fetchone()[0]

    @explained
    def take_revisits(self, now: float, limit: int) -> list[Revisit]:
        """Take out up to `limit` addresses that are due again."""
        rows = self._db.execute(
            "SELECT * FROM revisit WHERE due_at <= ? ORDER BY due_at, number LIMIT ?", (now, limit)
        ).fetchall()
        self._change_many("DELETE FROM revisit WHERE due_at = ? AND number = ?", [row[:2] for row in rows])
        return rows

    @explained
    def put_document(self, number: int, document: bytes) -> None:
        """Add to the outbox."""
        self._change("INSERT INTO outbox VALUES (?, ?)", (number, document))

    @explained
    def documents(self, after: int, upto: int, limit: int) -> list[tuple[int, bytes]]:
        """Those numbered in (`after`, `upto`], in order."""
        return self._db.execute(
            "SELECT * FROM outbox WHERE number > ? AND number <= ? ORDER BY number LIMIT ?", (after, upto, limit)
        ).fetchall()

    @explained
    def measure_outbox(self, upto: int) -> tuple[int, int]:
        """How many documents are numbered up to `upto`, and their bytes."""
        query = "SELECT count(*), coalesce(sum(length(document)), 0) FROM outbox WHERE number <= ?"
        return self._db.execute(query, (upto,)).fetchone()

    @explained
    def remove_documents(self, upto: int) -> None:
        """Forget the documents numbered up to `upto`."""
        self._change("DELETE FROM outbox WHERE number <= ?", (upto,))

    @explained
    def put_host(self, origin: str, memory: HostMemory) -> None:
        """Insert or replace."""
        self._change(
            "INSERT OR REPLACE INTO host VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                origin,
                memory.robots,
                memory.status,
                memory.fetched_at,
                memory.crawl_delay_s,
                memory.failures,
                memory.tdmrep,
            ),
        )

    @explained
    def find_host(self, origin: str) -> HostMemory | None:
        """What is known of an origin."""
        query = "SELECT robots, status, fetched_at, crawl_delay_s, failures, tdmrep FROM host WHERE origin = ?"
        row = self._db.execute(query, (origin,)).fetchone()
        if row is None:
            return None
        robots, status, fetched_at, crawl_delay_s, failures, tdmrep = row
        return HostMemory(
            robots=robots,
            status=status,
            fetched_at=fetched_at,
            crawl_delay_s=crawl_delay_s,
            failures=failures,
            tdmrep=tdmrep,
        )

    @explained
    def put_tdmrep(self, origin: str, body: bytes) -> None:
        """Add the tdmrep.json of an origin to what is known of it."""
        self._change("UPDATE host SET tdmrep = ? WHERE origin = ?", (body, origin))

    @explained
    def remove_hosts(self, before: float) -> None:
        """Forget the origins that were asked before that Unix time."""
        self._change("DELETE FROM host WHERE fetched_at < ?", (before,))

    @explained
    def commit(self) -> None:
        """Make everything since the last commit durable, all or nothing."""
        if self._writing:
            self._db.execute("COMMIT")
            self._writing = False

    @explained
    def sync(self) -> None:
        """Commit, and bring everything to the disk itself: not even a power cut undoes it."""
        self.commit()
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Forget what was not committed and let the file go; safe to call twice."""
        with suppress(sqlite3.Error):  # closed already, or the disk refuses: whoever opens the file next rolls back
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self._db.close()

    def _change(self, statement: str, values: tuple[object, ...] = ()) -> None:
        self._begin()
        self._db.execute(statement, values)

    def _change_many(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._begin()
        self._db.executemany(statement, rows)

    def _begin(self) -> None:
        if not self._writing:
            self._db.execute("BEGIN IMMEDIATE")
            self._writing = True

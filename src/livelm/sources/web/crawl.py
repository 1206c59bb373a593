"""The web as a source: start addresses in, the text of pages out, politely and in a way that survives any crash."""

import json
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from filelock import AcquireReturnProxy, FileLock, Timeout

from livelm.config import Settings
from livelm.errors import ConfigError, SourceError, StorageError
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.item import Item, unpack
from livelm.sources.web.spares import Spares
from livelm.sources.web.urls import Url, parse_url
from livelm.sources.web.workers import Workers
from livelm.types import Cursor, Document, Json

NAME = "crawl"
"""The name in documents and cursors."""
VERSION = 1
POLL_S = 0.2
RATE_S = 10.0
"""The rate of pages is over the last so many seconds."""


class Crawl:
    """Pages of one or several sites, as they are read.

    What is known lies in the folder given to `keep` (or in a temporary one, which `close` removes): the frontier, and
    every document until `commit` says that it is durable elsewhere. Reading with the same folder goes on where the
    crawl was, whatever had stopped it: no finished page is lost or read twice.
    """

    Config: ClassVar[type[Settings]] = CrawlSettings
    replayable = False

    def __init__(self, target: str, settings: CrawlSettings) -> None:
        """`target` holds the start addresses, separated by blanks. Raises ConfigError when one is none."""
        self._seeds = [_seed(text) for text in target.split()]
        if not self._seeds:
            raise ConfigError("no start address is given. Write crawl:https://example.org/.")
        self._settings = settings
        self.bounded = settings.frontier.revisit_s == 0 or settings.max_pages > 0
        self._folder: Path | None = None
        self._spares = Spares()
        self._workers: Workers | None = None
        self._closed = threading.Event()
        self._reading = threading.Lock()
        self._identity = ""
        self._wait_s = 0.0
        self._rates: deque[tuple[float, int]] = deque()

    def prepare(self) -> None:
        """Start the processes, which need half a second before they can do anything."""
        self._spares.start(self._settings.processes)

    def keep(self, folder: Path) -> None:
        """Use this folder for the frontier and for documents that nobody has yet."""
        self._folder = folder

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield pages until the frontier runs dry, `max_pages` is reached, or `close`.

        Raises SourceError for a foreign cursor, a folder in use, workers that keep dying, and when not one of the
        start addresses could be read; StorageError when the disk refuses.
        """
        for item, after in self.items(cursor):
            yield Document(text=item.text, id=item.url, source=NAME, at=item.at, url=item.url), after

    def items(self, cursor: Cursor | None) -> Iterator[tuple[Item, Cursor]]:
        """What `read` yields, with all that is known of each page. Raises what `read` raises."""
        return (delivery for delivery in self.watch(cursor) if delivery is not None)

    def watch(self, cursor: Cursor | None) -> Generator[tuple[Item, Cursor] | None, None, None]:
        """What `items` yields, and None whenever nothing came for `POLL_S`. Raises what `read` raises."""
        folder = self._folder or Path(tempfile.mkdtemp(prefix="livelm-crawl-"))
        try:
            with _locked(folder):
                yield from self._deliver(folder, cursor)
        finally:
            if self._folder is None:
                shutil.rmtree(folder, ignore_errors=True)

    def commit(self, cursor: Cursor) -> None:
        """Everything up to `cursor` is durable elsewhere: the outboxes may forget it."""
        workers = self._workers
        if workers is None or cursor.at.get("crawl") != self._identity:
            return  # not reading (any more); the next crawl is told again
        place = _parse(cursor, self._identity, None)
        for shard, number in enumerate(place.numbers):
            workers.forget(shard, number)

    def observe(self) -> dict[str, Json]:
        """Counters since the crawl was opened, gauges as of now, and `drops` by reason. Never blocks."""
        workers = self._workers
        if workers is None:
            return {}
        counts, gauges, drops = workers.counts()
        now, n_pages = time.monotonic(), counts["pages"]
        self._rates.append((now, n_pages))
        while len(self._rates) > 1 and now - self._rates[0][0] > RATE_S:
            self._rates.popleft()
        begin, n_before = self._rates[0]
        return {
            "pages": n_pages,
            "documents": counts["documents"],
            "pages_per_s": round((n_pages - n_before) / (now - begin), 2) if now > begin else 0.0,
            "requests": counts["requests"],
            "redirects": counts["redirects"],
            "wire_bytes": counts["wire_bytes"],
            "tdm_files": counts["tdm_files"],
            "tdm_files_invalid": counts["tdm_files_invalid"],
            "restarts": counts["restarts"],
            "queued": gauges["queued"],
            "hosts": gauges["hosts"],
            "in_flight": gauges["in_flight"],
            "known_urls": gauges["known"],
            "outbox_documents": gauges["outbox"],
            "wait_for_web_s": round(self._wait_s, 3),
            "wait_for_learner_s": round(workers.full_s, 3),
            "drops": dict(drops.most_common()),
        }

    def close(self) -> None:
        """End `read` within a second; whatever is in flight is fetched again by the next crawl of the folder."""
        self._closed.set()
        self._spares.close()
        if (workers := self._workers) is not None:
            workers.stop()

    def describe(self) -> str:
        """One line for people."""
        start = self._seeds[0].text + (f" and {len(self._seeds) - 1} more" if len(self._seeds) > 1 else "")
        end = "ends by itself" if self.bounded else "never ends"
        return f"crawl, {start}: {end}, cannot be read again (kept in the spool)"

    def _deliver(self, folder: Path, cursor: Cursor | None) -> Iterator[tuple[Item, Cursor] | None]:
        manifest = _manifest(folder, self._settings)
        self._identity = manifest["crawl"]
        place = _parse(cursor, self._identity, manifest["n_shards"])
        seeds = [seed.text for seed in self._seeds]
        workers = self._workers = Workers(folder, self._settings, seeds, list(place.numbers), place.n, self._spares)
        most = self._settings.max_pages
        try:
            workers.start()
            while not self._closed.is_set() and not (most and place.n >= most):
                begin = time.monotonic()
                delivery = workers.take(POLL_S)
                self._wait_s += time.monotonic() - begin
                if delivery is not None and not self._closed.is_set():
                    shard, number, document = delivery
                    place = place.after(shard, number)
                    yield unpack(document), place.cursor(self._identity)
                elif workers.ended:
                    break
                else:
                    yield None
            if not place.n and not self._closed.is_set():
                raise self._nothing(workers)
        finally:
            workers.stop()
            self._spares.close()

    def _nothing(self, workers: Workers) -> SourceError:
        _, _, drops = workers.counts()
        why = ", ".join(f"{reason} {n}" for reason, n in drops.most_common(5)) or "no answer"
        hint = ""
        if drops["refused_address"]:
            hint = " Private addresses and unusual ports must be named in the setting `allow`."
        return SourceError(f"not one page of {self._seeds[0].text} could be read ({why}).{hint}")


class _Place:
    """How far each shard was delivered, and how many documents that are."""

    __slots__ = ("n", "numbers")

    def __init__(self, numbers: tuple[int, ...], n: int) -> None:
        self.numbers, self.n = numbers, n

    def after(self, shard: int, number: int) -> "_Place":
        return _Place((*self.numbers[:shard], number, *self.numbers[shard + 1 :]), self.n + 1)

    def cursor(self, identity: str) -> Cursor:
        return Cursor(NAME, {"crawl": identity, "shards": list(self.numbers), "n": self.n})


def _parse(cursor: Cursor | None, identity: str, n_shards: int | None) -> _Place:
    if cursor is None:
        return _Place((0,) * (n_shards or 1), 0)
    if cursor.source == NAME:
        match dict(cursor.at):
            case {"crawl": str(crawl), "shards": [*numbers], "n": int(n)} if crawl == identity:
                if all(type(number) is int for number in numbers) and n_shards in (None, len(numbers)):
                    return _Place(tuple(numbers), n)
    raise SourceError(
        f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to this crawl: its folder was "
        "exchanged, or the run was reading something else."
    )


def _seed(text: str) -> Url:
    url = parse_url(text)
    if url is None:
        advice = f"Write https://{text}." if "://" not in text else "It must begin with http:// or https://."
        raise ConfigError(f"{text!r} is no web address that can be crawled. {advice}")
    return url


def _manifest(folder: Path, settings: CrawlSettings) -> dict[str, Any]:
    """Who this crawl is, kept in its folder; the number of shards is that of the day it began."""
    path = folder / "crawl.json"
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        values = {"version": VERSION, "crawl": uuid4().hex, "n_shards": settings.processes}
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(values), "utf-8")
        fresh.replace(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{str(path)!r} is damaged ({error}). Begin the crawl in a new folder.") from None
    if values["version"] > VERSION:
        raise SourceError(f"{str(path)!r} is version {values['version']}; upgrade livelm.")
    return values


def _locked(folder: Path) -> AcquireReturnProxy:
    """The folder, made, and locked until the end of a `with`, so that no second crawl uses it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "crawl.lock", timeout=0).acquire()
    except Timeout:
        raise SourceError(f"another crawl uses {str(folder)!r}. Stop it, or choose another folder.") from None
    except OSError as error:
        raise StorageError(f"{str(folder)!r} cannot be used for a crawl: {error.strerror or error}.") from None

"""Drive a crawl into a sink: what `livelm crawl URL ... --to TARGET` does. The same command goes on after any crash."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from livelm.config import Budget
from livelm.errors import ConfigError, SourceError
from livelm.sources.brokers.message import Publisher
from livelm.sources.web.crawl import Crawl
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.item import Item
from livelm.sources.web.sinks import Broker, Sink, open_file
from livelm.types import Cursor

FLUSH_S = 2.0
FLUSH_PAGES = 512
FLUSH_BYTES = 8 << 20
"""Pages are written after so many seconds, pages or bytes, whichever comes first."""
PROGRESS_S = 1.0

Progress = dict[str, Any]
"""What `Crawl.observe` says, and `written`, `text_bytes`, `elapsed_s`, `done`."""
OpenPublisher = Callable[[str], Publisher]


def harvest(
    urls: Sequence[str],
    target: str,
    settings: CrawlSettings,
    folder: Path,
    *,
    budget: Budget | None = None,
    open_publisher: OpenPublisher | None = None,
) -> Iterator[Progress]:
    """Crawl from `urls` into `target` until nothing is left, the budget is used, or the caller stops asking.

    `folder` keeps the frontier and how far the target was written. `target` is a `.jsonl.zst`, a `.warc.gz`, or,
    through `open_publisher`, the address of a broker. Yields once a second, and at the end with `done` true. Raises
    ConfigError, SourceError and StorageError.
    """
    if not urls:
        raise ConfigError("no start address is given. Write livelm crawl https://example.org/ --to pages.jsonl.zst.")
    if target.endswith(".warc.gz"):
        settings = settings.model_copy(update={"fetch": settings.fetch.model_copy(update={"keep_raw": True})})
    crawl = Crawl(" ".join(urls), settings)
    crawl.keep(folder)
    ledger = _Ledger(folder / "sink.json", target)
    sink = _open(target, ledger.place, open_publisher)
    try:
        yield from _Harvest(crawl, sink, ledger, budget or Budget()).run()
    finally:
        crawl.close()
        sink.close()


class _Ledger:
    """How far a target was written, and which pages that are, in one file that is replaced as a whole."""

    def __init__(self, path: Path, target: str) -> None:
        self._path = path
        self._target = target if "://" in target else str(Path(target).absolute())
        self.place: dict[str, Any] | None = None
        self.cursor: Cursor | None = None
        self.n_written = self.n_bytes = 0
        try:
            values = json.loads(path.read_text("utf-8"))
            before, self.place, at = values["target"], values["place"], values["cursor"]
            self.n_written, self.n_bytes = values["written"], values["text_bytes"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(f"{str(path)!r} is damaged ({error}). Begin the crawl in a new folder.") from None
        if before != self._target:
            raise ConfigError(
                f"the crawl in {str(path.parent)!r} writes to {before!r}, not to {target!r}. Give it the same "
                "target, or begin another in a new folder."
            )
        self.cursor = None if at is None else Cursor("crawl", at)

    def note(self, place: dict[str, Any], cursor: Cursor | None, n_new: int, n_bytes: int) -> None:
        """Make durable that the target holds everything up to `cursor`."""
        self.place, self.cursor = place, cursor
        self.n_written, self.n_bytes = self.n_written + n_new, self.n_bytes + n_bytes
        values = {"target": self._target, "place": place, "cursor": None if cursor is None else dict(cursor.at)}
        values |= {"written": self.n_written, "text_bytes": self.n_bytes}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)


class _Harvest:
    def __init__(self, crawl: Crawl, sink: Sink, ledger: _Ledger, budget: Budget) -> None:
        self._crawl, self._sink, self._ledger, self._budget = crawl, sink, ledger, budget
        self._waiting: list[Item] = []
        self._waiting_bytes = 0
        self._begin = self._flushed_at = time.monotonic()
        self._n_bytes = 0

    def run(self) -> Iterator[Progress]:
        if self._ledger.place is None:
            self._ledger.note(self._sink.place, None, 0, 0)  # the file is ours from now on, though still empty
        after, said_at = self._ledger.cursor, self._begin
        with closing(self._crawl.watch(after)) as deliveries:
            for delivery in deliveries:
                now = time.monotonic()
                if delivery is not None:
                    item, after = delivery
                    self._take(item)
                if self._is_due(now):
                    self._flush(after)
                if now - said_at >= PROGRESS_S:
                    said_at = now
                    yield self._progress(done=False)
                if self._is_used(now):
                    break
            self._flush(after)
        yield self._progress(done=True)

    def _take(self, item: Item) -> None:
        self._waiting.append(item)
        self._waiting_bytes += len(item.text) + len(item.raw or b"")
        self._n_bytes += len(item.text)

    def _is_due(self, now: float) -> bool:
        n = len(self._waiting)
        return n >= FLUSH_PAGES or self._waiting_bytes >= FLUSH_BYTES or (n > 0 and now - self._flushed_at >= FLUSH_S)

    def _is_used(self, now: float) -> bool:
        seconds, n_bytes = self._budget.seconds, self._budget.n_bytes
        return (seconds is not None and now - self._begin >= seconds) or (
            n_bytes is not None and self._n_bytes >= n_bytes
        )

    def _flush(self, after: Cursor | None) -> None:
        """First the pages, then how far they go, then the outbox may forget them: a crash in between repeats a step."""
        if self._waiting and after is not None:
            self._sink.write(self._waiting)
            self._ledger.note(
                self._sink.place, after, len(self._waiting), sum(len(item.text) for item in self._waiting)
            )
            self._crawl.commit(after)
            self._waiting.clear()
            self._waiting_bytes = 0
        self._flushed_at = time.monotonic()

    def _progress(self, *, done: bool) -> Progress:
        about = {"written": self._ledger.n_written, "text_bytes": self._ledger.n_bytes}
        return self._crawl.observe() | about | {"elapsed_s": round(time.monotonic() - self._begin, 3), "done": done}


def _open(target: str, place: dict[str, Any] | None, open_publisher: OpenPublisher | None) -> Sink:
    if "://" not in target:
        return open_file(Path(target).expanduser(), place)
    if open_publisher is None:
        raise ConfigError(f"--to {target!r}: this scheme cannot be written to.")
    return Broker(open_publisher(target), "crawl")

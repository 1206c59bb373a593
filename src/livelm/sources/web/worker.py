"""One worker process of a crawl: the loop of one shard, from claim to document.

Everything happens in one event loop. Many pages are fetched at once, but text is read of one page at a time, with a
turn of the loop after each, so that connections are served in between.
"""

import asyncio
import gc
import json
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from livelm.errors import LivelmError
from livelm.sources.web.black_box import BlackBox
from livelm.sources.web.channel import FRAME, LOGGER, LogToCrawl, Order, Report, read_order, write_report
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.duplicates import Duplicates
from livelm.sources.web.fetch import Fetcher
from livelm.sources.web.filters import DropLog
from livelm.sources.web.frontier import Frontier
from livelm.sources.web.hosts import Hosts
from livelm.sources.web.reading import Reader
from livelm.sources.web.turns import Turns
from livelm.sources.web.urls import Url, parse_url, shard_of
from livelm.sources.web.visit import Visits

COMMIT_S = 0.5
COMMIT_PAGES = 200
"""A commit comes after so many seconds or finished pages, whichever is first."""
REPORT_S = 0.5
SEND_DOCUMENTS = 32
"""Documents taken from the outbox at once."""
UNREAD_BYTES = 64 << 20
"""No new page is claimed while bodies of so many bytes wait for their text to be read."""
SAVE_S = 60.0
"""Between two saves of what only makes the crawl better (known duplicates, samples of drops)."""
GRACE_S = 2.0
"""A worker whose crawl is gone has so long to end by itself."""
LINE_BYTES = 16 << 20
"""Longest order; the first one holds all start addresses."""

log = logging.getLogger(__name__)


class Worker:
    """The crawl of one shard, for the life of one process."""

    def __init__(self, order: Order, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Open the shard. Raises SourceError or StorageError when its files cannot be used."""
        self._orders, self._documents = reader, writer
        self._settings = settings = CrawlSettings.model_validate_json(json.dumps(order.settings))
        folder, shard = Path(order.folder), order.shard
        self._duplicates_path = folder / f"duplicates-{shard}.bin"
        self._drops_path = folder / f"drops-{shard}.jsonl"
        self._sent, self._n_unsent, self._caught_up = order.after, 0, False
        self._quota = sys.maxsize if order.quota is None else order.quota
        seeds = [url for text in order.seeds if (url := parse_url(text)) is not None]
        self._frontier = Frontier(folder / f"frontier-{shard}.sqlite", settings.frontier, shard, order.n_shards)
        self._frontier.add([url for url in seeds if shard_of(url, order.n_shards) == shard], 0)
        self._turns = Turns(folder / "addresses.lock" if order.n_shards > 1 else None)
        self._box = BlackBox(folder / f"reading-{shard}")
        self._drops = DropLog()
        self._duplicates = _load_duplicates(self._duplicates_path, settings)
        self._fetcher = Fetcher(settings.fetching())
        self._visits = Visits(
            settings=settings,
            frontier=self._frontier,
            fetcher=self._fetcher,
            hosts=Hosts(settings, self._frontier, self._fetcher),
            turns=self._turns,
            reader=Reader(settings, self._duplicates, _sites(seeds)),
            drops=self._drops,
            box=self._box,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._committed = asyncio.Event()
        self._due = asyncio.Event()
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._n_finished = self._round = self._activity = 0
        self._has_committed = False

    async def run(self) -> None:
        """Work until told to stop, or until the crawl is gone. Raises what made going on impossible."""
        async with self._fetcher:
            jobs = [
                self._dispatch(),
                self._commit_often(),
                self._send(),
                self._obey(),
                self._report(),
                self._save_often(),
            ]
            tasks = [asyncio.create_task(self._guard(job)) for job in jobs]
            await self._stopping.wait()
            for task in [*tasks, *self._tasks]:
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)
        if self._failure is None:
            self._commit()
            self._save()
            write_report(self._state())  # the crawl adds it up once this process is gone
        self._frontier.close()
        self._turns.close()
        self._box.close()
        if self._failure is not None:
            raise self._failure

    async def _guard(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopping.set()

    async def _dispatch(self) -> None:
        """Claim whatever is due while there is room for it."""
        while True:
            self._changed.clear()
            if self._is_full():
                await self._changed.wait()
                continue
            claim = self._frontier.claim(time.time())
            if claim is not None:
                task = asyncio.create_task(self._visits.visit(claim))
                self._tasks.add(task)
                task.add_done_callback(self._end)
                if len(self._tasks) % 16 == 0:
                    await asyncio.sleep(0)
                continue
            due_s = self._frontier.next_due(time.time())
            with suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_S if due_s is None else min(due_s, COMMIT_S)):
                    await self._changed.wait()

    def _is_full(self) -> bool:
        settings, visits = self._settings, self._visits
        return (
            not self._caught_up
            or len(self._tasks) >= settings.in_flight
            or self._n_unsent >= settings.backlog
            or visits.unread_bytes >= UNREAD_BYTES
            or visits.counts["documents"] + len(self._tasks) >= self._quota
        )

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._activity += 1
        self._n_finished += 1
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
        if self._n_finished >= COMMIT_PAGES or (self._visits.n_new and not self._has_committed):
            self._due.set()  # the first document at once: somebody is waiting for it

    async def _commit_often(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_S):
                    await self._due.wait()
            self._due.clear()
            self._commit()

    def _commit(self) -> None:
        self._n_finished = 0
        self._frontier.commit()
        n_new = self._visits.take_new()
        self._n_unsent += n_new
        self._has_committed = self._has_committed or n_new > 0
        self._committed.set()
        self._changed.set()  # the inbox may have brought something

    async def _send(self) -> None:
        """Give the crawl what is in the outbox, as fast as it takes it."""
        while True:
            self._committed.clear()
            batch = self._frontier.outbox(self._sent, SEND_DOCUMENTS)
            if not batch:
                self._caught_up = True
                self._changed.set()
                await self._committed.wait()
                continue
            for number, document in batch:
                self._documents.write(FRAME.pack(number, len(document)))
                self._documents.write(document)
                await self._documents.drain()
                self._sent = number
                self._n_unsent = max(0, self._n_unsent - 1)
            self._activity += 1
            self._changed.set()

    async def _obey(self) -> None:
        """Take orders, until the one to stop or the end of the crawl."""
        while line := await self._orders.readline():
            order = json.loads(line)
            match order:
                case {"forget": int(upto)}:
                    self._frontier.forget(upto)
                case {"round": int(number)}:
                    self._commit()  # also takes what other workers sent
                    self._round = number
                    write_report(self._state())
                case {"stop": "flush"}:
                    self._stopping.set()
                    return
                case {"stop": "now"}:
                    break
        self._documents.transport.abort()  # what was not delivered is in the outbox
        self._stopping.set()

    async def _report(self) -> None:
        while True:
            write_report(self._state())
            await asyncio.sleep(REPORT_S)

    def _state(self) -> Report:
        visits, gauges = self._visits, self._frontier.counts()
        waits = gauges["queued"] or gauges["in_flight"] or gauges["inbox"] or self._tasks
        waits = waits or not self._caught_up or self._n_unsent or visits.n_new
        return Report(
            idle=not waits and self._frontier.next_due(time.time()) is None,
            activity=self._activity,
            round=self._round,
            counts={**visits.counts, **visits.hosts.counts},
            gauges=gauges | {"unread_bytes": visits.unread_bytes, "unsent": self._n_unsent},
            drops=dict(self._drops.counts) | {f"link: {k}": n for k, n in self._frontier.refused.items()},
        )

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            self._save()

    def _save(self) -> None:
        try:
            self._duplicates.save(self._duplicates_path)
            _write_lines(self._drops_path, self._drops.to_json())
        except OSError as error:  # nothing is lost but a chance to know a duplicate again
            log.warning("%s cannot be written: %s", self._drops_path.parent, error.strerror or error)


def _load_duplicates(path: Path, settings: CrawlSettings) -> Duplicates:
    return Duplicates.load(path, settings.duplicates) if path.exists() else Duplicates(settings.duplicates)


def _sites(seeds: list[Url]) -> frozenset[str]:
    return frozenset(url.site for url in seeds)


def _write_lines(path: Path, drops: dict[str, dict[str, Any]]) -> None:
    """One line of JSON for each reason: how often since the process began, and the latest samples."""
    fresh = path.with_suffix(".new")
    lines = [json.dumps({"reason": reason, **about}, ensure_ascii=False) + "\n" for reason, about in drops.items()]
    fresh.write_text("".join(lines), "utf-8", "replace")
    fresh.replace(path)


def _watch(parent: int) -> None:
    """End this process soon after the crawl that began it, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(GRACE_S)  # the end of the socket has told the loop
    os._exit(1)


async def _main(channel: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=channel, limit=LINE_BYTES)
    if not (line := await reader.readline()):
        return  # started ahead, and not needed
    order = read_order(line)
    os.nice(order.settings["niceness"])
    try:
        worker = Worker(order, reader, writer)
        await worker.run()
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        return  # the crawl is gone: nobody to tell
    except LivelmError as error:
        kind = next(c.__name__ for c in type(error).__mro__ if c.__module__ == LivelmError.__module__)
        write_report(Report(failure=str(error), failure_kind=kind))


def main() -> None:
    """Run the worker that the socket on standard input describes, but no longer than the process of this id lives."""
    threading.Thread(target=_watch, args=(int(sys.argv[1]),), name="watch", daemon=True).start()
    channel = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # what a library prints must not look like a document
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every connection is an open file
    handler = LogToCrawl()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger(LOGGER).addHandler(handler)
    gc.freeze()  # what was imported stays: 5 % of a worker's time went into looking at it again and again
    gc.set_threshold(50_000, 20, 20)
    with suppress(KeyboardInterrupt):  # Ctrl-C goes to all of the terminal's processes; the crawl says what to do
        uvloop.run(_main(channel))


if __name__ == "__main__":
    main()

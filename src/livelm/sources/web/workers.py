"""The worker processes of a crawl, seen from the crawl: started, listened to, restarted when they die, and ended."""

import json
import logging
import os
import selectors
import socket
import subprocess
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from livelm import errors
from livelm.errors import LivelmError, SourceError
from livelm.sources.web.channel import FRAME, Order, Report, read_line, write_order
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.spares import Spares

QUEUE_DOCUMENTS = 256
QUEUE_BYTES = 16 << 20
"""Documents that wait to be taken here; with more, the workers are read no further."""
TICK_S = 0.1
STOP_S = 0.7
"""A worker that was told to stop has so long; killing it later loses nothing that was committed."""
FIRST_PAUSE_S = 0.1
MOST_PAUSE_S = 5.0
"""Pause before a dead worker is started again, doubled each time."""
MOST_VAIN = 2
"""A worker that dies before it does anything is started again so often: that is no bad page."""
READ_BYTES = 1 << 18
LINES = 20
"""Lines of a worker's standard error that are kept to explain its death."""

log = logging.getLogger(__name__)

Delivery = tuple[int, int, bytes]
"""Shard, number in its outbox, document."""


@dataclass(slots=True, eq=False)
class _Worker:
    """One shard: its process, if it lives, and what is known of it."""

    shard: int
    received: int
    """The last document that came from it."""
    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    errors: IO[bytes] | None = None
    is_silent: bool = False
    """Whether it closed its end: no document comes any more."""
    frame: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)
    said: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))
    report: Report = field(default_factory=Report)
    heard_at: float = 0.0
    begin_at: float = 0.0
    """Not started before that time."""
    n_vain: int = 0
    """Starts on end that came to nothing."""
    forget: int = 0
    forgotten: int = 0


class Workers:
    """All worker processes, served by one thread that never waits for anybody."""

    def __init__(
        self, folder: Path, settings: CrawlSettings, seeds: list[str], after: list[int], n_had: int, spares: Spares
    ) -> None:
        """`after` holds for each shard the last document that is safe, `n_had` how many were delivered before."""
        self._folder, self._settings, self._seeds, self._spares = folder, settings, seeds, spares
        self._quota = settings.max_pages - n_had if settings.max_pages else None
        self._workers = [_Worker(shard, received) for shard, received in enumerate(after)]
        self._selector = selectors.DefaultSelector()
        self._changed = threading.Condition()
        self._queue: deque[Delivery] = deque()
        self._queue_bytes = 0
        self._stopping = self._ended = False
        self._failure: LivelmError | None = None
        self._past_counts: Counter[str] = Counter()
        self._past_drops: Counter[str] = Counter()
        self._n_restarts = self._round = 0
        self._asked: list[int] | None = None
        self.full_s = 0.0
        """Seconds in which the queue here was full: the learner was slower than the web."""
        self._thread = threading.Thread(target=self._run, name="livelm-crawl", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def take(self, timeout_s: float) -> Delivery | None:
        """The next document, or None after `timeout_s`. Raises what ended the crawl, once everything was taken."""
        with self._changed:
            if not self._queue and not self._ended:
                self._changed.wait(timeout_s)
            if self._queue:
                delivery = self._queue.popleft()
                self._queue_bytes -= len(delivery[2])
                return delivery
            if self._failure is not None:
                raise self._failure
            return None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        with self._changed:
            return self._ended and not self._queue

    def forget(self, shard: int, upto: int) -> None:
        """The documents of a shard numbered up to `upto` are durable elsewhere; returns at once."""
        worker = self._workers[shard]
        worker.forget = max(worker.forget, upto)

    def counts(self) -> tuple[Counter[str], Counter[str], Counter[str]]:
        """Counters since the crawl was opened, gauges as of now, and drops by reason; summed over the workers."""
        counts, gauges, drops = Counter(self._past_counts), Counter(), Counter(self._past_drops)
        for worker in self._workers:
            counts.update(worker.report.counts)
            gauges.update(worker.report.gauges)
            drops.update(worker.report.drops)
        counts["restarts"] = self._n_restarts
        return counts, gauges, drops

    def stop(self) -> None:
        """End every process and wait for that: about a second at most. Safe to call more than once."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(STOP_S + 2.0)

    def _run(self) -> None:
        try:
            while not self._stopping and not self._is_over():
                for worker in self._workers:
                    self._keep_alive(worker)
                    self._send_forget(worker)
                self._listen(TICK_S)
            self._end_all(flush=not self._stopping)
        except LivelmError as error:
            self._failure = error
            self._end_all(flush=False)
        except Exception as error:  # whoever takes documents must not wait for ever
            log.exception("the crawl failed")
            self._failure = SourceError(f"the crawl failed: {type(error).__name__}: {error}.")
            self._end_all(flush=False)
        finally:
            self._selector.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_over(self) -> bool:
        """Whether all are idle, and were asked again after that, and nothing had happened in between.

        Links that one worker sends to another are committed before the sender calls itself idle, and whoever is asked
        takes them first: when a second look at everybody finds the same, nothing is on its way.
        """
        reports = [worker.report for worker in self._workers]
        if not all(report.idle for report in reports):
            self._asked = None
            return False
        activities = [report.activity for report in reports]
        if self._asked is not None and any(report.round != self._round for report in reports):
            return False  # not all have answered
        if self._asked == activities:
            return True
        self._asked = activities
        self._round += 1
        for worker in self._workers:
            self._order(worker, {"round": self._round})
        return False

    def _keep_alive(self, worker: _Worker) -> None:
        now = time.monotonic()
        if worker.process is None:
            if now >= worker.begin_at:
                self._begin(worker)
        elif worker.process.poll() is not None:
            self._listen(0.0)  # its last words
            self._bury(worker)
        elif now - worker.heard_at > self._settings.stall_s:
            worker.said.append(f"it said nothing for {self._settings.stall_s:g} s and was killed")
            worker.process.kill()

    def _begin(self, worker: _Worker) -> None:
        worker.process, ours = self._spares.take()
        order = Order(
            folder=str(self._folder),
            shard=worker.shard,
            n_shards=len(self._workers),
            seeds=self._seeds,
            settings=json.loads(self._settings.model_dump_json()),
            after=worker.received,
            quota=self._quota,
        )
        ours.settimeout(30.0)
        with suppress(ConnectionError):  # it is dead already, which is noticed with the others that die
            ours.sendall(write_order(order))
        ours.setblocking(False)
        assert worker.process.stderr is not None  # noqa: S101  (for the type checker: it was asked for)
        worker.channel, worker.errors = ours, worker.process.stderr
        os.set_blocking(worker.process.stderr.fileno(), False)
        worker.frame, worker.line = bytearray(), bytearray()
        worker.forgotten, worker.is_silent = 0, False
        worker.report, worker.heard_at = Report(), time.monotonic()
        self._listen_to(worker.channel, worker, wanted=True)
        self._listen_to(worker.errors, worker, wanted=True)

    def _bury(self, worker: _Worker) -> None:
        """Note how a process ended, and when it is started again; raises what makes that useless."""
        assert worker.process is not None  # noqa: S101  (for the type checker)
        code, last = worker.process.returncode, " | ".join(worker.said)
        self._past_counts.update(worker.report.counts)
        self._past_drops.update(worker.report.drops)
        failure, kind = worker.report.failure, worker.report.failure_kind
        has_worked = worker.report.activity > 0
        self._close(worker)
        if failure is not None:
            raise getattr(errors, kind, SourceError)(failure)
        self._n_restarts += 1
        worker.n_vain = 0 if has_worked else worker.n_vain + 1
        if self._n_restarts > self._settings.restarts or worker.n_vain > MOST_VAIN:
            raise SourceError(
                f"worker {worker.shard} of the crawl in {str(self._folder)!r} ended with code {code} ({last[-2000:]}), "
                f"after {self._n_restarts - 1} restarts. What was read is safe: the crawl can go on later."
            )
        log.warning("crawl: worker %d ended with code %d and is started again: %s", worker.shard, code, last[-500:])
        worker.begin_at = time.monotonic() + min(FIRST_PAUSE_S * 2.0 ** (self._n_restarts - 1), MOST_PAUSE_S)

    def _close(self, worker: _Worker) -> None:
        for file in (worker.channel, worker.errors):
            if file is not None:
                self._listen_to(file, worker, wanted=False)
                file.close()
        worker.process = worker.channel = worker.errors = None
        worker.report = Report(gauges=worker.report.gauges)  # how it was left

    def _listen_to(self, file: socket.socket | IO[bytes], worker: _Worker, *, wanted: bool) -> None:
        if wanted is not (file in self._selector.get_map()):
            self._selector.register(file, selectors.EVENT_READ, worker) if wanted else self._selector.unregister(file)

    def _listen(self, timeout_s: float) -> None:
        """Read what workers say for a moment; their documents only while there is room for them."""
        is_full = self._queue_bytes >= QUEUE_BYTES or len(self._queue) >= QUEUE_DOCUMENTS
        for worker in self._workers:
            if worker.channel is not None:
                self._listen_to(worker.channel, worker, wanted=not is_full and not worker.is_silent)
        begin = time.monotonic()
        for key, _ in self._selector.select(timeout_s):
            worker: _Worker = key.data
            if key.fileobj is worker.channel:
                self._read_documents(worker)
            else:
                self._read_lines(worker)
        if is_full:
            self.full_s += time.monotonic() - begin

    def _read_documents(self, worker: _Worker) -> None:
        assert worker.channel is not None  # noqa: S101  (for the type checker: it is being listened to)
        try:
            piece = worker.channel.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            piece = b""
        worker.is_silent = not piece
        frame, start = worker.frame, 0
        frame += piece
        taken: list[Delivery] = []
        while len(frame) >= start + FRAME.size:
            number, n_bytes = FRAME.unpack_from(frame, start)
            stop = start + FRAME.size + n_bytes
            if stop > len(frame):
                break
            taken.append((worker.shard, number, bytes(frame[start + FRAME.size : stop])))
            worker.received, start = number, stop
        del frame[:start]
        if taken:
            with self._changed:
                self._queue += taken
                self._queue_bytes += sum(len(document) for _, _, document in taken)
                self._changed.notify_all()

    def _read_lines(self, worker: _Worker) -> None:
        assert worker.errors is not None  # noqa: S101  (for the type checker: it is being listened to)
        piece = os.read(worker.errors.fileno(), READ_BYTES)
        if not piece:
            self._listen_to(worker.errors, worker, wanted=False)
            return
        *lines, rest = (bytes(worker.line) + piece).split(b"\n")
        worker.line = bytearray(rest[-READ_BYTES:])
        for line in lines:
            said = read_line(line)
            if isinstance(said, Report):
                worker.report, worker.heard_at = said, time.monotonic()
            elif isinstance(said, logging.LogRecord):
                logging.getLogger(said.name).handle(said)
            elif said:
                worker.said.append(said[:500])

    def _send_forget(self, worker: _Worker) -> None:
        if worker.forget > worker.forgotten and self._order(worker, {"forget": worker.forget}):
            worker.forgotten = worker.forget

    def _order(self, worker: _Worker, order: dict[str, int | str]) -> bool:
        """Send one order, without waiting; whether it went out."""
        if worker.channel is None or worker.process is None:
            return False
        line = json.dumps(order).encode() + b"\n"
        try:
            if worker.channel.send(line) != len(line):
                worker.process.kill()  # half an order: start over
        except BlockingIOError:
            return False  # busy with a page; it is told next time
        except ConnectionError:
            return False  # it is dying, and its death will be noticed
        return True

    def _end_all(self, *, flush: bool) -> None:
        """End every process: with `flush` once it has delivered everything, else (or on `stop`) at once."""
        for worker in self._workers:
            self._order(worker, {"stop": "flush" if flush else "now"})
        deadline = time.monotonic() + STOP_S
        while flush and not self._stopping and not all(w.is_silent or w.process is None for w in self._workers):
            self._listen(TICK_S)
            deadline = time.monotonic() + STOP_S
        for worker in self._workers:
            if worker.process is None:
                continue
            while worker.process.poll() is None and time.monotonic() < deadline:
                self._listen(0.01)  # reports: the last one says how it ended
            worker.process.kill()
            worker.process.wait()
            self._listen(0.0)
            self._past_counts.update(worker.report.counts)
            self._past_drops.update(worker.report.drops)
            self._close(worker)

"""A feed as a source: a thread that connects, reconnects and removes repetitions; a reader that takes what it found."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from livelm.errors import SourceError
from livelm.sources.feeds.handover import Handover
from livelm.sources.feeds.reconnect import Backoff, Broken
from livelm.sources.feeds.seam import KEY_BYTES, Seam, key_of
from livelm.sources.feeds.select import Selector, iso_time
from livelm.sources.feeds.settings import LiveSettings
from livelm.sources.feeds.tally import Tally
from livelm.sources.feeds.wire import Event, Place, Wire
from livelm.types import Cursor, Document, Json

STOP_S = 0.3
"""How long the end of a read waits for the network's thread, which needs nothing from anybody to end by itself."""
STUCK_FAILURES = 3
"""After so many failures in a row at the same unreadable event, the feed is joined anew after it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A document on its way to the reader."""

    document: Document
    cursor: Cursor
    time_us: int | None


class Pump:
    """Brings the events of one wire to a handover, over as many connections as it takes."""

    def __init__(
        self, feed: tuple[str, str], wire: Wire, settings: LiveSettings, tally: Tally, backoff: Backoff
    ) -> None:
        """`feed` is the source's name and target, as its cursors carry them."""
        self.handover: Handover[Arrival] = Handover(settings, tally)
        self._name, self._target = feed
        self._wire, self._settings, self._tally, self._backoff = wire, settings, tally, backoff
        self._selector = Selector(settings)
        self._place: Place = wire.begin()
        self._seam = Seam(settings.seam_events, floor=self._place if isinstance(self._place, int) else None)
        self._resumed = False
        self._stopping = False
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        self._thread = threading.Thread(target=self._work, name=f"livelm-{self._name}", daemon=True)

    def resume(self, cursor: Cursor) -> None:
        """Continue after this cursor. Raises SourceError when it is another feed's."""
        at = dict(cursor.at)
        if cursor.source == self._name and at.pop("target", None) == self._target and len(at) == 3:
            match at:
                case {"place": str() | int() | None as place, "seen": str(seen), "floor": int() | None as floor}:
                    with suppress(ValueError):
                        self._seam = Seam(self._settings.seam_events, seen, floor)
                        self._place, self._resumed = self._wire.check(place), True
                        return
        raise SourceError(
            f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to {self._name} {self._target}: "
            "this run was reading something else."
        )

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Let go of what is queued and end the connection; returns at once. Safe to call more than once."""
        self.handover.close()
        if self._stopping:
            return  # a second cancellation would interrupt what the first one closes
        self._stopping = True
        if self._running is not None:
            loop, task = self._running
            with suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(task.cancel)

    def join(self) -> None:
        """Wait a little for the thread."""
        self._thread.join(STOP_S)

    def _work(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._run())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # whatever it is, the reader must not wait for ever
            self.handover.fail(error)

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a coroutine that runs has a task"  # noqa: S101
        self._running = asyncio.get_running_loop(), task
        n_opened = 0
        while not self._stopping:
            opened_at: float | None = None
            try:
                async with self._wire.open(self._place) as events:
                    n_opened += 1
                    opened_at = time.monotonic()
                    self._count_opened()
                    async for event in events:
                        await self._take(event)
            except Broken as broken:
                if opened_at is None:
                    self._tally.n_failures += 1
                    self._check_start(n_opened, broken)
                elif time.monotonic() - opened_at > self._settings.backoff_max_s:
                    self._backoff.succeeded()  # a quiet feed is no failing server
                wait_s = self._recover(broken)
                self._tally.say("broken", "%s; connecting again in %.1f s", broken, wait_s)
                await asyncio.sleep(wait_s)

    def _count_opened(self) -> None:
        if (self._tally.n_connects or self._resumed) and self._place is None:
            self._tally.n_gaps += 1
            self._tally.say("gap", "cannot continue where it was cut off: what happened in between is lost")
        self._tally.n_connects += 1

    def _check_start(self, n_opened: int, broken: Broken) -> None:
        """Give up when the feed was never there. Raises SourceError."""
        n_tries = self._backoff.n_failures + 1
        hopeless = broken.lasting and not self._resumed  # what worked before may be under repair
        if n_opened == 0 and (hopeless or n_tries >= self._settings.start_tries):
            times = "" if n_tries == 1 else f" ({n_tries} tries)"
            raise SourceError(
                f"the feed {self._target} cannot be read: {str(broken).rstrip('.')}{times}. "
                "Check the address, the network and the settings `allow` and `contact`."
            )

    def _recover(self, broken: Broken) -> float:
        """Decide where to go on; the seconds to wait before that."""
        wait_s = self._backoff.next_s(broken.after_s)
        if broken.stuck and self._backoff.n_failures >= STUCK_FAILURES and self._place is not None:
            self._place = None
            self._tally.say("stuck", "an event cannot be read (%s): going on with what happens now", broken)
        return wait_s

    async def _take(self, event: Event) -> None:
        """Note how far the feed was read, and pass on what is new and wanted."""
        if event.id is not None:
            self._place = event.id or None
        if not event.data:
            return
        chosen = self._selector.choose(event.data, event.id)
        order = self._wire.order(chosen.time_us, chosen.shape)
        if order is not None:
            self._place = max(order, self._place) if isinstance(self._place, int) else order
        if not self._seam.is_new(chosen.key, order):
            self._tally.drop("repeat")
            return
        self._backoff.succeeded()
        if chosen.drop is not None:
            self._tally.drop(chosen.drop)
            return
        seen, floor = self._seam.deliver(chosen.key, order)
        at = None if chosen.time_us is None else iso_time(chosen.time_us)
        document = Document(text=chosen.text, id=chosen.id, source=self._name, at=at, url=chosen.url)
        cursor = Cursor(self._name, {"target": self._target, "place": self._place, "seen": seen, "floor": floor})
        lot = int.from_bytes(chosen.key or key_of(event.data), "big") / 256**KEY_BYTES
        await self.handover.put(Arrival(document, cursor, chosen.time_us), len(chosen.text), lot)


class Live:
    """What sources of feeds share: one read at a time, counters that outlive it."""

    bounded = False
    replayable = False

    def __init__(
        self, name: str, target: str, settings: LiveSettings, connect: Callable[[Tally, Backoff], Wire]
    ) -> None:
        """`connect` makes the wire of one read; it raises for a wrong target, here and not only in `read`."""
        self._name, self._target, self._settings = name, target, settings
        self._tally = Tally(f"{name} {target}")
        self._closed = threading.Event()
        self._pump: Pump | None = None
        self._last_us: int | None = None
        self._connect = connect
        self._connect(self._tally, self._backoff())

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield events as they come, until `close`; each is one document.

        Raises SourceError for a foreign cursor, and when the feed cannot be reached in the first place; once it
        answered, losing it is never an error.
        """
        backoff = self._backoff()
        wire = self._connect(self._tally, backoff)
        pump = Pump((self._name, self._target), wire, self._settings, self._tally, backoff)
        if cursor is not None:
            pump.resume(cursor)
        self._pump = pump
        pump.start()
        try:
            while not self._closed.is_set() and (arrival := pump.handover.get()) is not None:
                self._tally.n_events += 1
                self._last_us = arrival.time_us
                yield arrival.document, arrival.cursor
        finally:
            pump.stop()
            pump.join()

    def close(self) -> None:
        """End `read` at once."""
        self._closed.set()
        if self._pump is not None:
            self._pump.stop()

    def observe(self) -> dict[str, Json]:
        """Counters since the source was made; `lag_s` is the age of the last document, None when it has no time."""
        tally, queued = self._tally, (0, 0) if self._pump is None else self._pump.handover.size()
        return {
            "events": tally.n_events,
            "bytes": tally.n_bytes,
            "reconnects": max(0, tally.n_connects - 1),
            "failed_connects": tally.n_failures,
            "gaps": tally.n_gaps,
            "queued_events": queued[0],
            "queued_bytes": queued[1],
            "lag_s": None if self._last_us is None else round(max(0.0, time.time() - self._last_us / 1e6), 3),
            "drops": tally.drops(),
        }

    def describe(self) -> str:
        """One line for people."""
        return f"{self._name} {self._target}: never ends, cannot be read again (kept in the spool)"

    def _backoff(self) -> Backoff:
        return Backoff(self._settings.backoff_s, self._settings.backoff_max_s)

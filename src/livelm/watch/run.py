"""A watch at work: read, cut, score, say, and now and then make it durable."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, cast

from livelm.config import Budget, Recipe
from livelm.errors import LivelmError, SourceError
from livelm.feed import Prefetch
from livelm.feed.spool import Spool
from livelm.feed.spooled import Spooled
from livelm.session import Stop
from livelm.sources import open_sources
from livelm.telemetry.terminal import Listener
from livelm.types import Acknowledging, Cursor, Document, Keeping, Record, Source
from livelm.watch.cut import Cutter
from livelm.watch.kept import Kept
from livelm.watch.settings import WatchSettings
from livelm.watch.watcher import Watcher

N_AHEAD = 16
"""Pieces read ahead."""


@dataclass(slots=True)
class Watch:
    """An open watch."""

    watcher: Watcher
    source: Source
    cutter: Cutter
    feed: Prefetch
    kept: Kept | None
    budget: Budget
    stop: Stop
    every_s: float
    """Seconds between two checkpoints."""
    cursor: Cursor | None = None
    """After the last piece that was dealt with to its end."""
    cut: dict[str, Any] = field(default_factory=dict)
    """The cutter's state there."""
    n_done: int = 0
    """Parts of the next piece that were dealt with."""
    began: float = field(default_factory=monotonic)
    saved_at: float = field(default_factory=monotonic)
    n_before: int = 0
    """Bytes that earlier sessions read."""

    def records(self) -> Iterator[Record]:
        """Everything worth saying, until the stream or the budget ends, or `stop` is asked for. Then all is saved.

        Raises SourceError for a stream that breaks (what it gave before is saved) or has no byte, and StorageError.
        """
        failure: SourceError | None = None
        try:
            for record in self._read():
                if self.kept is not None:
                    self.kept.write(record)
                yield record
        except SourceError as error:
            failure = error
        self.save()
        if failure is not None:
            raise failure
        if not self.watcher.n_bytes and self.stop.reason is None:
            raise SourceError(f"{self.source.describe()}: the stream ended without a single byte to look at.")

    def _read(self) -> Iterator[Record]:
        last = monotonic()
        while (item := cast(Any, self.feed.next(self._spent, self._rest))) is not None:
            document, cursor = cast("tuple[Document, Cursor]", item)
            self.cut = self.cutter.state_dict()
            parts = self.cutter.take(document)
            for part in parts[self.n_done :]:
                now = monotonic()
                yield from self.watcher.take(part, now - last)
                last, self.n_done = now, self.n_done + 1
                if self._spent():
                    break
            if self.n_done < len(parts):
                return
            self.cursor, self.cut, self.n_done = cursor, {}, 0
            if monotonic() - self.saved_at >= self.every_s:
                self.save()
        if self.stop.reason is None and not self._spent():  # it came to its end by itself
            for part in self.cutter.finish():
                yield from self.watcher.take(part)
            yield from self.watcher.finish()

    def save(self) -> None:
        """Make durable where this stands. Raises StorageError."""
        if self.kept is None:
            return
        if isinstance(self.source, Spooled):
            self.source.sync()
        cursor = None if self.cursor is None else {"source": self.cursor.source, "at": dict(self.cursor.at)}
        cut = self.cut if self.n_done else self.cutter.state_dict()
        tree = {"watcher": self.watcher.state_dict(), "cursor": cursor, "cut": cut, "n_done": self.n_done}
        self.kept.save(tree)
        self.saved_at = monotonic()
        if self.cursor is not None and isinstance(self.source, Acknowledging):
            self.source.commit(self.cursor)

    def summary(self) -> Record:
        """How it stands."""
        w = self.watcher
        return {
            "kind": "watched",
            "documents": w.n_documents,
            "n_bytes": w.n_bytes,
            "surprises": w.n_said,
            "held_back": w.held_back,
            "open_groups": w.n_open,
            "threshold": w.threshold,
            "bits_per_byte": round(w.level, 4),
            "reason": self.stop.reason or ("budget spent" if self._spent() else "source ended"),
        }

    def close(self) -> None:
        """Let go of everything; safe after any failure."""
        self.source.close()
        self.feed.close()
        if self.kept is not None:
            self.kept.close()

    def _spent(self) -> bool:
        seconds, n_bytes = self.budget.seconds or inf, self.budget.n_bytes or inf
        used = self.watcher.n_bytes - self.n_before
        return self.stop.reason is not None or monotonic() - self.began >= seconds or used >= n_bytes

    def _rest(self) -> None:
        """While nothing comes."""
        if self.kept is not None:
            self.kept.flush()
            if monotonic() - self.saved_at >= self.every_s and not self.n_done:
                self.save()


def run_watch(watch: Watch, views: Sequence[Listener]) -> Record:
    """Drive a watch to its end, telling every view; the last record, which sums it up.

    A view whose reader is gone ends the watch, and is told nothing more. Raises what `Watch.records` does.
    """
    watching = list(views)

    def tell(record: Record) -> None:
        for view in tuple(watching):
            try:
                view.take(record)
            except BrokenPipeError:
                watching.remove(view)
                watch.stop.request("nobody reads the output any more")

    try:
        for record in watch.records():
            tell(record)
        summary = watch.summary()
        tell(summary)
        return summary
    finally:
        watch.close()


def open_watch(
    uris: Sequence[str], recipe: Recipe, settings: WatchSettings, out: Path | None, budget: Budget, stop: Stop
) -> Watch:
    """Open a watch, or go on with the one in `out`; of `recipe`, what it says of sources, spool and checkpoints counts.

    Raises ConfigError, SourceError, RunError, CheckpointError and StorageError before anything is read.
    """
    source = open_sources(uris, recipe.source)
    kept = None if out is None else Kept(out, uris, settings)
    try:
        watcher, cutter = Watcher(settings), Cutter(settings.by)
        cursor, n_done = None, 0
        if kept is not None:
            if isinstance(source, Keeping):
                source.keep(kept.source)
            if not source.replayable:
                spool = Spool(kept.spool, segment_bytes=recipe.spool.segment_bytes, max_bytes=recipe.spool.max_bytes)
                source = Spooled(source, spool)
            if kept.tree is not None:
                watcher.load_state_dict(kept.tree["watcher"])
                cutter.load_state_dict(kept.tree["cut"])
                at, n_done = kept.tree["cursor"], kept.tree["n_done"]
                cursor = None if at is None else Cursor(at["source"], at["at"])
        reading, place = source, cursor
        feed = Prefetch(cast(Any, lambda: reading.read(place)), N_AHEAD)
    except (LivelmError, OSError):
        source.close()
        if kept is not None:
            kept.close()
        raise
    watch = Watch(watcher, source, cutter, feed, kept, budget, stop, recipe.checkpoint.every_s)
    watch.cursor, watch.n_done, watch.n_before = cursor, n_done, watcher.n_bytes
    return watch

"""An open run: everything the loop needs, opened and ready, and the order in which it is made durable."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from livelm.config import Budget
from livelm.evaluate.baselines import BaselineWorker
from livelm.feed import FeedCursor, Prefetch
from livelm.feed.spooled import Spooled
from livelm.folder import RunFolder
from livelm.learn import Growth, Holdout, Rehearsal, save_checkpoint
from livelm.parts import AnyLearner, Parts
from livelm.telemetry.clock import Clock
from livelm.telemetry.graded import GradedBytes
from livelm.telemetry.journal import Journal
from livelm.types import Acknowledging, Batch, Observed, Record, Source

if TYPE_CHECKING:  # compiled code, loaded only where a recipe wants signals
    from livelm.telemetry.signals.monitor import Monitor

FINISH_S = 60.0
"""How long the end of a run waits for its last baselines."""


class Stop:
    """Whether and why a run should end: a signal, its budget, or the caller's wish."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        """End after the batch at hand; the first reason stays."""
        self.reason = self.reason or reason

    def install(self) -> None:
        """SIGINT and SIGTERM save and leave; a second one leaves at once (what was saved stays saved)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(128 + number)
        self.request("interrupted" if number == signal.SIGINT else "terminated")


@dataclass(slots=True)
class Session:
    """One process at work on one run: what the loop needs, opened and ready."""

    folder: RunFolder
    parts: Parts
    learner: AnyLearner
    growth: Growth | None
    rehearsal: Rehearsal | None
    holdout: Holdout | None
    source: Source
    spool: Spooled | None
    feed: Prefetch
    journal: Journal
    graded: GradedBytes
    monitor: "Monitor | None"
    clock: Clock
    budget: Budget
    run: str
    n_bytes: int
    cursor: FeedCursor | None
    stop: Stop
    baselines: BaselineWorker
    saved_at_s: float
    fresh: bool
    """Whether the run begins with this session."""
    saved_batch: int | None
    """`n_batches` of the last checkpoint; None before the first."""
    opening: list[Record] = field(default_factory=list)
    """Records to write before the first batch."""

    def exhausted(self) -> bool:
        """Whether the run should end now; asked before every batch, and while waiting for one."""
        if self.budget.seconds is not None and self.clock.active_s >= self.budget.seconds:
            self.stop.request("budget spent")
        if self.budget.n_bytes is not None and self.n_bytes >= self.budget.n_bytes:
            self.stop.request("budget spent")
        return self.stop.reason is not None

    def elapsed(self) -> float:
        """The fraction of the budget that is spent, 0 to 1; 0 without a budget."""
        seconds, n_bytes = self.budget.seconds, self.budget.n_bytes
        by_time = self.clock.active_s / seconds if seconds else 0.0
        return min(1.0, max(by_time, self.n_bytes / n_bytes if n_bytes else 0.0))

    @property
    def refusal(self) -> str | None:
        """Why what is read now should not be learned; None to learn it."""
        held_out = None if self.holdout is None else self.holdout.refusal
        return held_out if held_out is not None or self.monitor is None else self.monitor.refusal

    def next_batch(self) -> Batch | None:
        """Wait for the next batch; None when the stream has ended or the run should."""
        if self.exhausted():
            return None
        with self.clock.span("wait"):
            return self.feed.next(self.exhausted, self._flush)

    @property
    def n_batches(self) -> int:
        """Batches scored and learned in all."""
        return self.cursor.n_batches if self.cursor else 0

    def save_due(self) -> bool:
        """Whether the last checkpoint is older than the recipe wants."""
        return self.clock.active_s - self.saved_at_s >= self.parts.recipe.checkpoint.every_s

    def save(self) -> Record:
        """Make everything up to the last scored batch durable, in an order that a crash cannot break."""
        with self.clock.span("save"):
            path = self._save()
        self.saved_at_s, self.saved_batch = self.clock.active_s, self.n_batches
        return self._observed("saved", batch=self.n_batches, folder=str(path.relative_to(self.folder.path)))

    def _save(self) -> Path:
        if self.spool is not None:
            self.spool.sync()
        self.journal.sync()
        self.graded.sync()
        tree = {
            "run": self.run,
            "learner": self.learner.state_dict(),
            "growth": None if self.growth is None else self.growth.state_dict(),
            "rehearsal": None if self.rehearsal is None else self.rehearsal.state_dict(),
            "holdout": None if self.holdout is None else self.holdout.state_dict(),
            "feed": self.cursor.to_json() if self.cursor else None,
            "journal": {"position": self.journal.position, "seq": self.journal.seq},
            "graded": self.graded.state_dict(),
            "signals": None if self.monitor is None else self.monitor.state_dict(),
            "active_s": self.clock.active_s,
            "n_bytes": self.n_bytes,
            "n_batches": self.n_batches,
        }
        path = save_checkpoint(self.folder.checkpoints, self.n_batches, tree, self.parts.recipe.checkpoint.keep)
        place = self.cursor.source if self.cursor is not None else None
        if place is not None and isinstance(self.source, Acknowledging):
            self.source.commit(place)  # only what a durable checkpoint contains may be forgotten
        return path

    def observe(self) -> Iterator[Record]:
        """What is worth knowing about once a second."""
        yield self.clock.report()
        yield self._observed("memory", resident_bytes=_resident_bytes())
        if isinstance(self.source, Observed) and (said := self.source.observe()):
            yield self._observed("source", said=said)
        self._flush()
        self.baselines.grown(self.graded.n_bytes)
        measured = self.baselines.poll()
        if measured is not None:
            yield measured.record(round(self.clock.active_s, 3))
        yield from self._warnings()

    def close_baselines(self) -> Iterator[Record]:
        """The baselines of everything graded, when there is time for them."""
        self.graded.finish()
        if self.stop.reason in (None, "source ended", "budget spent") and self.graded.n_bytes:
            measured = self.baselines.finish(self.graded.n_bytes, FINISH_S)
            if measured is not None:
                yield measured.record(round(self.clock.active_s, 3))
            yield from self._warnings()

    def stopped(self) -> Record:
        """Why the run ended."""
        return self._observed("stopped", reason=self.stop.reason or "source ended")

    def close(self) -> None:
        """Let go of everything; safe after any failure."""
        self.source.close()
        self.feed.close()
        self.baselines.close()
        self.journal.close()
        self.graded.close()
        self.folder.unlock()

    def _flush(self) -> None:
        """Let `show` see a run while it runs, and while its stream is silent."""
        self.journal.flush()
        self.graded.flush()

    def _warnings(self) -> Iterator[Record]:
        for message in self.baselines.warnings():
            yield self._observed("warning", message=message)

    def _observed(self, kind: str, **values: Any) -> Record:
        return {"kind": kind, "at_s": round(self.clock.active_s, 3), **values}


def _resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0

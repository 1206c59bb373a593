"""Ways to watch a run: a live screen, a plain line now and then, or the records as JSON."""

import json
import math
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live

from livelm.telemetry.fold import ALONE, Fold
from livelm.telemetry.frame import ASCII, NAMES, UNICODE, about, amount, bits, counted, duration, frame, printable

FRAMES_PER_S = 1
BURST = 256
"""Records that wait at most to be folded."""
PLAIN_EVERY_S = 10.0
_LAST_FRAME = 30  # lines that stay on the screen when the run is over


class Listener(Protocol):
    """Something that is told the records of a run while they are made."""

    def take(self, record: Mapping[str, Any]) -> None:
        """Take one record; soon, for the run waits."""
        ...


class View(Listener, Protocol):
    """A listener that shows them; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveView:
    """The whole screen, redrawn a few times a second in a thread; what remains at the end is the last frame."""

    def __init__(self, console: Console | None = None, fold: Fold | None = None) -> None:
        """`fold`: what is known already, when a run is resumed."""
        self._console = console or Console()
        self._fold = fold or Fold()
        self._lock = threading.Lock()
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._live = Live(
            console=self._console, screen=True, refresh_per_second=FRAMES_PER_S, get_renderable=self._render
        )

    def take(self, record: Mapping[str, Any]) -> None:
        """Add a record to what the next frame shows."""
        self._waiting.append(record)
        if len(self._waiting) >= BURST:
            self._catch_up()

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._console.print(self._render(_LAST_FRAME))

    def _catch_up(self) -> None:
        with self._lock:  # folded in order, by whichever thread is here first
            while self._waiting:
                self._fold.take(self._waiting.popleft())

    def _render(self, max_height: int | None = None) -> Group:
        width, height = self._console.size
        glyphs = UNICODE if self._console.encoding.lower().startswith("utf") else ASCII
        self._catch_up()
        with self._lock:  # only the text is made here; turning it into escape codes happens without the lock
            lines = frame(self._fold, width, min(height, max_height or height), glyphs)
        return Group(*lines)


class PlainView:
    """One line every ten seconds of active time and one at the end; warnings at once, to the error stream."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, fold: Fold | None = None) -> None:
        """`fold`: what is known already, when a run is resumed."""
        self._out, self._err, self._fold = out or sys.stdout, err or sys.stderr, fold or Fold()
        self._next_s = self._fold.at_s + PLAIN_EVERY_S

    def take(self, record: Mapping[str, Any]) -> None:
        """Add a record; write a line if it is time for one."""
        self._fold.take(record)
        kind = record.get("kind")
        if kind == "run":
            _say(self._out, f"livelm: {about(self._fold)}")
        elif kind == "warning":
            _say(self._err, f"warning: {record['message']}")
        elif self._fold.at_s >= self._next_s:
            self._next_s = self._fold.at_s + PLAIN_EVERY_S
            _say(self._out, status_line(self._fold))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _say(self._out, status_line(self._fold))


class JsonView:
    """Every record as one line of JSON; warnings also in words, to the error stream."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr

    def take(self, record: Mapping[str, Any]) -> None:
        """Write the record; observations, about one a second, also flush what waits."""
        try:
            line = json.dumps(record, separators=(",", ":"), allow_nan=False)
        except ValueError:  # NaN is no JSON, and a reader in another language would stop there
            line = json.dumps(_without_nan(record), separators=(",", ":"))
        self._out.write(line + "\n")
        if record.get("kind") == "warning":
            _say(self._err, f"warning: {record['message']}")
        if "seq" not in record:
            self._out.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.flush()


def say_compiling(folder: Path | None) -> None:
    """Say on the error stream why nothing happens yet; `folder` keeps what is compiled, None: nothing does."""
    often = "once for each version of livelm and numba"
    if folder is None:
        often = "every time, as no folder for it can be written to; NUMBA_CACHE_DIR may name one"
    if sys.stderr is not None:  # closed by whoever began this process
        _say(sys.stderr, f"livelm: compiling for this processor, which may take a minute; {often}")


def status_line(fold: Fold) -> str:
    """The state of a run in one line of plain text."""
    parts = [
        duration(fold.at_s),
        f"{bits(fold.bits_per_byte)} bits per byte, {bits(fold.recent_bits_per_byte)} recently",
        f"{amount(fold.n_bytes, 'B')}, {counted(fold.n_documents, 'document')}, {amount(fold.bytes_per_s or 0, 'B/s')}",
    ]
    if (n := fold.baselines_n_bytes) is not None:
        ours = f" {bits(fold.ours_at[n].bits_per_byte)}" if n in fold.ours_at else ""
        beside = ", ".join(f"{name} {bits(fold.baselines[n][key])}" for key, name in NAMES.items())
        parts.append(f"first {amount(n, 'B')}:{ours} beside {beside}")
    alone = [f"{part} alone {bits(b)}" for part in ALONE if not math.isnan(b := fold.alone(part))]
    parts += [", ".join(alone)] if alone else []
    if fold.n_skipped:
        parts.append(f"{counted(fold.n_skipped, 'update')} skipped ({fold.skipped})")
    if fold.stop_reason is not None:
        parts.append(f"stopped: {fold.stop_reason}")
    return " | ".join(parts)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(stream: TextIO, line: str) -> None:
    ascii_only = not (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
    stream.write(printable(line, ascii_only=ascii_only) + "\n")
    stream.flush()

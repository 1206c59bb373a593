"""Every number a person sees, folded from the journal one record at a time, in memory that does not grow."""

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from livelm.errors import JournalError
from livelm.telemetry.seen import SignalsSeen
from livelm.telemetry.surprises import Surprise, Surprises

SCHEMA = 1
"""The newest journal schema this fold understands."""
RECENT_BYTES = 16_384
"""How far back "recent" looks, in graded bytes (the scale of an exponential window)."""
SPANS = ("wait_s", "score_s", "update_s", "save_s", "journal_s")
"""The parts active time is divided into, in the order they are shown."""
ALONE = ("counts", "network")
"""The parts of a mixture whose own cost the journal tells, as `counts_bits` and `network_bits`."""
COMPRESSORS = ("uniform", "unigram", "xz", "ppmd")
"""The baselines a run is compared with, weakest first."""

_MAX_POINTS = 1024
_MAX_SIZES = 64
_MAX_WARNINGS = 20
_MAX_TEXT = 300  # an id or a message from a hostile stream may be megabytes long


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place between two batches: how much was graded up to there, and what it cost."""

    n_bytes: int
    bits: float

    @property
    def bits_per_byte(self) -> float:
        """Average code length up to here; NaN at the very start."""
        return self.bits / self.n_bytes if self.n_bytes else math.nan


class CurvePoint(NamedTuple):
    """One point of the learning curve."""

    n_bytes: int
    bits_per_byte: float
    """Over everything up to here."""
    recent_bits_per_byte: float
    """Over the last `RECENT_BYTES` (less near the start), or since the previous point if that is farther."""
    at_s: float
    """Active seconds; between two observations it is interpolated by bytes."""


class Fold:
    """The state of a run, as its records tell it. `take` is cheap; memory is bounded for any length of stream."""

    def __init__(self, marks: Iterable[int] = ()) -> None:
        """`marks`: prefix sizes, in bytes, for which `at` must be exact to one batch (powers of two always are)."""
        self.run: Mapping[str, Any] | None = None
        self.n_bytes = self.n_tokens = self.n_documents = self.n_batches = self.n_skipped = self.n_warnings = 0
        self.bits = 0.0
        self.alone_bits: dict[str, float] = dict.fromkeys(ALONE, math.nan)
        """What each part of a mixture would have cost alone, from where it was first said; NaN where it never was."""
        self.at_s = 0.0
        self.spans: dict[str, float] = dict.fromkeys(SPANS, 0.0)
        self.n_rehearsals = self.rehearsed_bytes = 0
        self.rehearsed_bits = 0.0
        self.gradient_norm = self.rate = None
        self.skipped: str | None = None  # why, at the latest skipped update
        self.resident_bytes: int | None = None
        self.peak_resident_bytes: int | None = None
        self.said: Mapping[str, Any] = {}
        """What the source last said of itself: counters and gauges, `drops` by reason."""
        self.baselines: dict[int, dict[str, float | None]] = {}
        """By prefix size in bytes, ascending: bits per byte of each of `COMPRESSORS`."""
        self.ours_at: dict[int, Boundary] = {}
        """By the same sizes: the run itself at the last batch boundary at or before that size."""
        self.warnings: deque[str] = deque(maxlen=_MAX_WARNINGS)
        self.checkpoint: tuple[float, str] | None = None
        """(active seconds, folder) of the newest checkpoint."""
        self.stop_reason: str | None = None
        self.signals = SignalsSeen()
        self._latest_bytes = 0  # of the batch scored last
        self._recent_bits = self._recent_bytes = 0.0
        self._spanned_bytes = self._spanned_documents = 0  # totals when the last spans record came
        self._curve = _Curve()
        self._surprises = Surprises()
        self._marks: dict[int, Boundary] = {}
        self._wanted = sorted({*marks, *(1 << k for k in range(10, 50))}, reverse=True)  # 1 KiB to 512 TiB

    def take(self, record: Mapping[str, Any]) -> None:
        """Add one record. Unknown kinds and fields are ignored: newer minor versions may add them.

        Raises JournalError if the record says it was written by a newer schema.
        """
        if "at_s" in record:
            self.at_s = max(self.at_s, float(record["at_s"]))
        handler = _HANDLERS.get(record.get("kind", ""))
        if handler is not None:
            handler(self, record)

    @property
    def bits_per_byte(self) -> float:
        """Prequential code length over everything graded so far; NaN before the first batch."""
        return self.bits / self.n_bytes if self.n_bytes else math.nan

    @property
    def recent_bits_per_byte(self) -> float:
        """The same over an exponential window of `RECENT_BYTES`."""
        return self._recent_bits / self._recent_bytes if self._recent_bytes else math.nan

    def alone(self, part: str) -> float:
        """Bits per byte of one of `ALONE` over everything graded; NaN where the run does not tell."""
        return self.alone_bits[part] / self.n_bytes if self.n_bytes else math.nan

    @property
    def nats_per_token(self) -> float:
        """Mean loss over all graded tokens; NaN before the first batch."""
        return self.bits * math.log(2) / self.n_tokens if self.n_tokens else math.nan

    @property
    def active_s(self) -> float:
        """Seconds accounted for by spans."""
        return sum(self.spans.values())

    @property
    def bytes_per_s(self) -> float | None:
        """Graded bytes per active second, up to the latest spans record."""
        return self._spanned_bytes / self.active_s if self.active_s > 0 else None

    @property
    def documents_per_s(self) -> float | None:
        """Documents begun per active second, likewise."""
        return self._spanned_documents / self.active_s if self.active_s > 0 else None

    @property
    def state(self) -> str:
        """`empty`, `running` or `stopped`."""
        return "empty" if self.run is None else "running" if self.stop_reason is None else "stopped"

    @property
    def baselines_n_bytes(self) -> int | None:
        """The longest prefix the baselines were measured on."""
        return max(self.baselines, default=None)

    def recipe(self, *keys: str) -> Any:
        """A value of the resolved recipe, such as `recipe("model", "name")`; None where there is none."""
        value: Any = (self.run or {}).get("recipe")
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def curve(self) -> list[CurvePoint]:
        """The learning curve: at most about a thousand points, denser near the start, the present last."""
        return self._curve.points(self.n_bytes, self.bits, self.at_s)

    def surprises(self, n: int) -> list[Surprise]:
        """The `n` most surprising documents (at most 32), by excess; open ones count with what they have so far."""
        return self._surprises.best(n)

    def at(self, n_bytes: int) -> Boundary | None:
        """The latest known batch boundary at or before `n_bytes`; None if none is known.

        Exact to one batch for powers of two, for the marks given at the start and for the present; elsewhere the
        nearest kept point of the curve. The result says which prefix it really covers.
        """
        known = [*self._marks.values(), Boundary(self.n_bytes, self.bits)]
        known += (Boundary(n, b) for n, b, _ in self._curve.kept)
        return max((b for b in known if 0 < b.n_bytes <= n_bytes), key=lambda b: b.n_bytes, default=None)

    def summary(self) -> dict[str, Any]:
        """What `livelm show RUN --json` prints: plain JSON, None for what is not known or not finite."""
        size = self.baselines_n_bytes
        ours = self.ours_at.get(size) if size is not None else None
        return {
            "bits_per_byte": _finite(self.bits_per_byte),
            **{f"{part}_bits_per_byte": _finite(self.alone(part)) for part in ALONE},
            "recent_bits_per_byte": _finite(self.recent_bits_per_byte),
            "nats_per_token": _finite(self.nats_per_token),
            "n_bytes": self.n_bytes,
            "n_documents": self.n_documents,
            "n_tokens": self.n_tokens,
            "n_batches": self.n_batches,
            "n_skipped_updates": self.n_skipped,
            "n_rehearsals": self.n_rehearsals,
            "rehearsed_bits_per_byte": self.rehearsed_bits / self.rehearsed_bytes if self.rehearsed_bytes else None,
            "n_warnings": self.n_warnings,
            "bytes_per_s": _finite(self.bytes_per_s),
            "documents_per_s": _finite(self.documents_per_s),
            "n_parameters": (self.run or {}).get("n_parameters"),
            "baselines": dict(self.baselines[size]) if size else {"uniform": 8.0} | dict.fromkeys(COMPRESSORS[1:]),
            "baselines_n_bytes": size,
            "bits_per_byte_at_baselines": _finite(ours.bits_per_byte) if ours else None,
            "n_bytes_at_baselines": ours.n_bytes if ours else None,
            "spans": dict(self.spans),
            "elapsed_s": self.at_s,
            "state": self.state,
            "stop_reason": self.stop_reason,
            "recipe": self.recipe("name"),
            "model": self.recipe("model", "name"),
            "seed": self.recipe("run", "seed"),
            "stream": (self.run or {}).get("stream"),
            "source": dict(self.said),
            "signals": self.signals.summary(),
            "checkpoint": self.checkpoint[1] if self.checkpoint else None,
            "most_surprising": [s._asdict() for s in self.surprises(10)],
        }

    def _take_run(self, record: Mapping[str, Any]) -> None:
        if (schema := record.get("schema", SCHEMA)) > SCHEMA:
            advice = f"this one reads up to {SCHEMA}. Install that version or a later one"
            raise JournalError(f"the journal was written by a newer livelm (schema {schema}); {advice}.")
        self.run = record

    def _take_document(self, record: Mapping[str, Any]) -> None:
        self.n_documents += 1
        self._surprises.begin(int(record["ordinal"]), str(record["id"])[:_MAX_TEXT])

    def _take_scored(self, record: Mapping[str, Any]) -> None:
        bits, n_bytes = float(record["bits"]), int(record["n_bytes"])
        before = Boundary(self.n_bytes, self.bits)
        self.n_bytes += n_bytes
        self._latest_bytes = n_bytes
        self.bits += bits
        for part in ALONE:
            if (alone := record.get(f"{part}_bits")) is not None:
                said = self.alone_bits[part]
                self.alone_bits[part] = (0.0 if math.isnan(said) else said) + float(alone)
        self.n_tokens += int(record["n_tokens"])
        self.n_batches += 1
        while self.n_bytes > self._wanted[-1]:
            self._marks[self._wanted.pop()] = before
        expected = self.recent_bits_per_byte if self._recent_bytes else bits / max(n_bytes, 1)
        for ordinal, part_bits, part_bytes in record.get("documents", ()):
            self._surprises.add(ordinal, part_bits, part_bytes, expected)
        decay = math.exp(-n_bytes / RECENT_BYTES)
        self._recent_bits = self._recent_bits * decay + bits
        self._recent_bytes = self._recent_bytes * decay + n_bytes
        self._curve.add(self.n_bytes, self.bits)

    def _take_update(self, record: Mapping[str, Any]) -> None:
        self.gradient_norm, self.rate = record.get("gradient_norm"), record.get("rate")
        if record.get("skipped"):
            self.n_skipped += 1
            self.skipped = str(record["skipped"])[:_MAX_TEXT]
        self.signals.take_update(self._latest_bytes)

    def _take_rehearsed(self, record: Mapping[str, Any]) -> None:
        self.n_rehearsals += int(record["n_updates"])
        self.rehearsed_bytes += int(record["n_bytes"])
        self.rehearsed_bits += float(record["bits"])

    def _take_grown(self, record: Mapping[str, Any]) -> None:
        sizes = {name: record[name] for name in ("n_parameters", "flops_per_token", "context_reach")}
        self.run = {**(self.run or {}), **sizes}  # what it has become; record 0 says what it was

    def _take_signals(self, record: Mapping[str, Any]) -> None:
        self.signals.take_signals(record)

    def _take_alarm(self, record: Mapping[str, Any]) -> None:
        self.signals.take_alarm(record, self.n_bytes)

    def _take_gate(self, record: Mapping[str, Any]) -> None:
        self.signals.take_gate(record)

    def _take_spans(self, record: Mapping[str, Any]) -> None:
        for name in SPANS:
            self.spans[name] += float(record.get(name, 0.0))
        self._spanned_bytes, self._spanned_documents = self.n_bytes, self.n_documents
        self._curve.time(self.n_bytes, self.at_s)

    def _take_memory(self, record: Mapping[str, Any]) -> None:
        self.resident_bytes = int(record["resident_bytes"])
        self.peak_resident_bytes = max(self.resident_bytes, self.peak_resident_bytes or 0)

    def _take_source(self, record: Mapping[str, Any]) -> None:
        self.said = record["said"]

    def _take_baseline(self, record: Mapping[str, Any]) -> None:
        size = int(record["n_bytes"])
        self.baselines[size] = {name: record.get(name) for name in COMPRESSORS}
        # now, while the curve still has this neighbourhood in detail
        if (ours := self.at(size)) is not None:
            self.ours_at[size] = ours
        largest = sorted(self.baselines)[-_MAX_SIZES:]
        self.baselines = {n: self.baselines[n] for n in largest}
        self.ours_at = {n: self.ours_at[n] for n in largest if n in self.ours_at}

    def _take_saved(self, record: Mapping[str, Any]) -> None:
        self.checkpoint = (float(record["at_s"]), str(record.get("folder", record.get("batch")))[:_MAX_TEXT])

    def _take_resumed(self, _record: Mapping[str, Any]) -> None:
        self.stop_reason = None

    def _take_warning(self, record: Mapping[str, Any]) -> None:
        self.n_warnings += 1
        self.warnings.append(str(record["message"])[:_MAX_TEXT])

    def _take_stopped(self, record: Mapping[str, Any]) -> None:
        self.stop_reason = str(record.get("reason", "no reason given"))[:_MAX_TEXT]


_KINDS = (
    *("run", "document", "scored", "update", "rehearsed", "grown", "signals", "alarm", "gate"),  # facts
    *("spans", "memory", "source", "baseline", "saved", "resumed", "warning", "stopped"),  # observations
)
_HANDLERS = {kind: getattr(Fold, f"_take_{kind}") for kind in _KINDS}


def fold_journal(path: Path, marks: Iterable[int] = ()) -> Fold:
    """Fold a whole journal file; `marks` as for `Fold`.

    A last line that a crash left torn is ignored. Raises JournalError, naming file and line, where anything else
    is damaged, out of order, or written by a newer livelm.
    """
    fold = Fold(marks)
    n_facts = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}. Is this the folder of a run?") from None
    with file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                if number == 1 and record["kind"] != "run":
                    raise JournalError("the first record is not a run: this is not a livelm journal")
                if "seq" in record:
                    if record["seq"] != n_facts:
                        raise JournalError(f"fact {record['seq']} stands where {n_facts} belongs")
                    n_facts += 1
                fold.take(record)
            except JournalError as error:
                raise JournalError(f"{path}, line {number}: {error}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if not line.endswith(b"\n"):  # torn by a crash: only the last line can lack its end
                    break
                what = f"damaged record ({type(error).__name__}: {error}): {line[:80]!r}"
                raise JournalError(f"{path}, line {number}: {what}. `livelm resume` cuts the journal back.") from None
    return fold


class _Curve:
    """Cumulative bits over bytes; neighbours are at least min(stride, n_bytes / 32) apart, so both a logarithmic
    and a linear picture have detail, and the count stays bounded as the stride doubles."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, float, float | None]] = []  # n_bytes, bits, at_s (None until a clock was seen)
        self._stride = 256
        self._timed = (0, 0.0)

    def add(self, n_bytes: int, bits: float) -> None:
        if n_bytes - (self.kept[-1][0] if self.kept else 0) < max(1, self._gap(n_bytes)):
            return
        self.kept.append((n_bytes, bits, None))
        if len(self.kept) <= _MAX_POINTS:
            return
        self._stride *= 2
        old, self.kept = self.kept, self.kept[:1]
        for point in old:
            if point[0] - self.kept[-1][0] >= self._gap(point[0]):
                self.kept.append(point)

    def time(self, n_bytes: int, at_s: float) -> None:
        """Facts carry no clock: points since the last observation lie on a line between the two."""
        start_bytes, start_s = self._timed
        rate = (at_s - start_s) / max(n_bytes - start_bytes, 1)
        for i in range(len(self.kept) - 1, -1, -1):
            n, bits, when = self.kept[i]
            if when is not None:
                break
            self.kept[i] = (n, bits, start_s + (n - start_bytes) * rate)
        self._timed = (n_bytes, at_s)

    def points(self, n_bytes: int, bits: float, at_s: float) -> list[CurvePoint]:
        kept = list(self.kept)
        if kept and kept[-1][0] < n_bytes:
            kept.append((n_bytes, bits, None))
        points, back, trail = [], 0, [(0, 0.0, 0.0), *kept]
        for n, b, when in kept:
            window = min(RECENT_BYTES, n / 4)
            while trail[back + 1][0] <= n - window:
                back += 1
            start_n, start_b, _ = trail[back]
            recent = (b - start_b) / (n - start_n)
            points.append(CurvePoint(n, b / n, recent, at_s if when is None else when))
        return points

    def _gap(self, n_bytes: int) -> float:
        return min(self._stride, n_bytes / 32)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

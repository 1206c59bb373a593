"""Tables of runs: one beside the baselines, several beside each other, always over the same number of bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from livelm.telemetry.fold import ALONE, COMPRESSORS, SPANS, Fold
from livelm.telemetry.frame import NAMES, about, amount, bits, counted, duration, printable
from livelm.telemetry.seen import NAMES as SIGNALS
from livelm.telemetry.seen import SignalsSeen

_HEAD = "bold"
_DIM = "bright_black"


def show_table(fold: Fold) -> RenderableType:
    """Everything `livelm show` prints about one run, for a rich console."""
    parts: list[RenderableType] = [Text(printable(about(fold)), _HEAD), _facts(fold)]
    if fold.baselines:
        parts.append(_beside(fold))
    if fold.active_s > 0:
        parts.append(_spans(fold))
    if fold.surprises(1):
        parts.append(_surprising(fold))
    if fold.signals.n_windows:
        parts.append(_signals(fold.signals))
    if fold.signals.alarms:
        parts.append(_alarms(fold.signals))
    parts += [Text(f"! {printable(warning)}", "bold yellow") for warning in fold.warnings]
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def forgetting_table(rows: Sequence[Mapping[str, float]]) -> RenderableType:
    """What `livelm eval RUN` prints without a SOURCE: `forgetting.by_parts`, and then all of them as the last row."""
    table = _table(
        "held out of learning, by the network alone, in bits per byte",
        *("up to byte", "slices", "bytes", "when read", "now", "backward transfer"),
    )
    for row in rows:
        table.add_row(
            "all" if row is rows[-1] else f"{row['to_byte']:,}",
            f"{row['n_slices']:,}",
            f"{row['n_bytes']:,}",
            bits(row["first"]),
            Text(bits(row["now"]), _HEAD),
            f"{row['backward_transfer']:+.3f}",
        )
    note = "Backward transfer below 0 is forgetting; above 0, what came later helped."
    return Group(table, Text(note, _DIM))


def compare_table(folds: Mapping[str, Fold]) -> RenderableType:
    """Runs beside each other over the bytes that all of them graded, for a rich console; the first is the measure."""
    compared = compare_json(folds)
    table = _table(
        f"bits per byte over the first {amount(compared['n_bytes'], 'B')}",
        "run",
        *("model", "parameters", "bits/byte", "over", "to first", "to PPMd", "to xz", "speed", "read in all"),
    )
    for name, run in compared["runs"].items():
        table.add_row(
            Text(printable(name)),
            Text(printable(str(run["model"] or "-"))),
            "-" if run["n_parameters"] is None else amount(run["n_parameters"]),
            Text(bits(run["bits_per_byte"]), _HEAD),
            f"{run['n_bytes']:,}",
            *(_times(run[key]) for key in ("ratio_to_first", "ratio_to_ppmd", "ratio_to_xz")),
            "-" if run["bytes_per_s"] is None else amount(run["bytes_per_s"], "B/s"),
            amount(run["n_bytes_read"], "B"),
        )
    notes = ["Ratios are of bits per byte: below 1 is better. `over`: bytes at the batch boundary compared at."]
    sizes = {run["baselines_n_bytes"] for run in compared["runs"].values()}
    if len(sizes) == 1 and (size := sizes.pop()):
        notes.append(f"PPMd and xz are compared over the first {size:,} bytes.")
    elif sizes:
        notes.append("PPMd and xz are compared over different prefixes: no common one was measured.")
    if compared["same_stream"] is False:
        notes.append("The runs read different streams: PPMd and xz need different numbers of bits for them.")
    return Group(table, Text("\n".join(notes), _DIM))


def compare_json(folds: Mapping[str, Fold]) -> dict[str, Any]:
    """The same as plain JSON: `n_bytes` that all graded, `same_stream` (None: not known), and `runs` by name.

    In each run `n_bytes` is the batch boundary, at or before the shared prefix, that `bits_per_byte` covers: exact
    to one batch if the fold was given the shared prefix as a mark.
    """
    n = shared_bytes(folds)
    size = max(_common_sizes(folds), default=None)
    rows = {name: _compared(fold, n, size) for name, fold in folds.items()}
    first = next(iter(rows.values()), {}).get("bits_per_byte")
    for row in rows.values():
        row["ratio_to_first"] = _ratio(row["bits_per_byte"], first)
    return {"n_bytes": n, "same_stream": same_stream(folds), "runs": rows}


def shared_bytes(folds: Mapping[str, Fold]) -> int:
    """How many bytes every run that graded anything has graded."""
    return min((fold.n_bytes for fold in folds.values() if fold.n_bytes), default=0)


def same_stream(folds: Mapping[str, Fold]) -> bool | None:
    """Whether the runs read the same bytes, as far as baselines can tell; None if no common prefix was measured."""
    size = max(_common_sizes(folds), default=None)
    if size is None:
        return None
    measured = [fold.baselines[size] for fold in folds.values() if fold.baselines]
    return all(m == measured[0] for m in measured)


def _common_sizes(folds: Mapping[str, Fold]) -> set[int]:
    sizes = [set(fold.baselines) for fold in folds.values() if fold.n_bytes]
    return set.intersection(*sizes) if sizes else set()


def _compared(fold: Fold, n_bytes: int, size: int | None) -> dict[str, Any]:
    size = fold.baselines_n_bytes if size is None else size
    at = fold.at(n_bytes)
    beside = fold.ours_at.get(size) if size is not None else None
    measured = fold.baselines.get(size, {}) if size is not None else {}
    ours = beside.bits_per_byte if beside else None
    return {
        "model": fold.recipe("model", "name"),
        "n_parameters": (fold.run or {}).get("n_parameters"),
        "bits_per_byte": at.bits_per_byte if at and math.isfinite(at.bits) else None,
        "n_bytes": at.n_bytes if at else 0,
        "n_bytes_read": fold.n_bytes,
        "bytes_per_s": fold.bytes_per_s,
        "elapsed_s": fold.at_s,
        "baselines": {name: measured.get(name) for name in COMPRESSORS},
        "baselines_n_bytes": size,
        "bits_per_byte_at_baselines": ours if ours is not None and math.isfinite(ours) else None,
        "ratio_to_xz": _ratio(ours, measured.get("xz")),
        "ratio_to_ppmd": _ratio(ours, measured.get("ppmd")),
    }


def _facts(fold: Fold) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    stopped = f": {printable(fold.stop_reason)}" if fold.stop_reason else ""
    rate = "-" if fold.bytes_per_s is None else amount(fold.bytes_per_s, "B/s")
    facts = {
        "bits per byte": f"{bits(fold.bits_per_byte)} overall, {bits(fold.recent_bits_per_byte)} recently",
        **{f"{part} alone": bits(b) for part in ALONE if not math.isnan(b := fold.alone(part))},
        "nats per token": f"{fold.nats_per_token:.3f}" if fold.n_tokens else "-",
        "graded": f"{fold.n_bytes:,} bytes, {fold.n_tokens:,} tokens, {counted(fold.n_documents, 'document')}",
        "speed": f"{rate}, {duration(fold.at_s)} in all",
        "updates": f"{fold.n_batches:,}, {fold.n_skipped} skipped{_rehearsed(fold)}",
        "checkpoint": printable(fold.checkpoint[1]) if fold.checkpoint else "none",
        "state": f"{fold.state}{stopped}",
    }
    for name, value in facts.items():
        table.add_row(Text(name, _DIM), Text(value))
    return table


def _rehearsed(fold: Fold) -> str:
    if not fold.n_rehearsals:
        return ""
    cost = f" at {bits(fold.rehearsed_bits / fold.rehearsed_bytes)} bits per byte" if fold.rehearsed_bytes else ""
    return f"; {fold.n_rehearsals:,} more by what was learned before{cost}"


def _beside(fold: Fold) -> Table:
    table = _table("bits per byte on the same bytes", "first", "this run", *NAMES.values(), "to PPMd", "to xz")
    for n, measured in fold.baselines.items():
        ours = fold.ours_at.get(n)
        mine = ours.bits_per_byte if ours else None
        table.add_row(
            f"{n:,}",
            Text(bits(mine), _HEAD),
            *(bits(measured[key]) for key in NAMES),
            *(_times(_ratio(mine, measured[key])) for key in ("ppmd", "xz")),
        )
    return table


def _spans(fold: Fold) -> Table:
    table = _table("where the time went", *(name.removesuffix("_s") for name in SPANS))
    table.add_row(*(f"{fold.spans[name]:,.1f} s" for name in SPANS))
    table.add_row(*(f"{100 * fold.spans[name] / fold.active_s:.1f} %" for name in SPANS))
    return table


def _surprising(fold: Fold) -> Table:
    table = _table("most surprising documents", "document", "bits/byte", "above the stream", "bytes")
    for s in fold.surprises(10):
        table.add_row(Text(printable(s.id)), bits(s.bits_per_byte), f"{s.excess:+.3f}", f"{s.n_bytes:,}")
    return table


def _signals(seen: SignalsSeen) -> Table:
    title = f"signals of {counted(seen.n_windows, 'window')}"
    if seen.n_closed:
        state = "closed" if seen.gate_closed else "open"
        refused = f"{amount(seen.n_refused_bytes, 'B')} in {counted(seen.n_refused, 'update')} not learned"
        title += f"; the gate is {state}, closed {counted(seen.n_closed, 'time')}: {refused}"
    table = _table(title, "signal", "latest", "mean", "least", "greatest")
    for name, values in seen.ranges.items():
        table.add_row(SIGNALS[name], *(f"{value:.3f}" for value in values))
    return table


def _alarms(seen: SignalsSeen) -> Table:
    counts = (counted(seen.n_alarms[alarm], alarm) for alarm in ("drift", "spike"))
    table = _table(f"latest alarms, of {' and '.join(counts)}", "alarm", "at", "signal", "before", "then")
    for a in seen.alarms:
        signal = printable(SIGNALS.get(a.signal, a.signal))
        table.add_row(f"{printable(a.alarm)} {printable(a.direction)}", amount(a.n_bytes, "B"), signal,
                      f"{a.before:.3f}", f"{a.now:.3f}")  # fmt: skip
    return table


def _table(title: str, *columns: str) -> Table:
    """A table with numbers to the right; the first column, and those named so, hold words."""
    table = Table(title=Text(title, _HEAD), title_justify="left", box=None, padding=(0, 2, 0, 0), header_style=_DIM)
    for column in columns:
        words = column in ("run", "model", "document", "signal", "alarm")
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    return table


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs and math.isfinite(ours / theirs) else None


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

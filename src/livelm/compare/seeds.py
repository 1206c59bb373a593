"""The result of a contest: for every model means over seeds with their intervals, beside the trivial baselines."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from livelm.compare.arms import Arm, count_dense, sketch
from livelm.compare.contest import Contest
from livelm.evaluate.baselines import Baselines
from livelm.evaluate.intervals import LEVEL, Interval, interval
from livelm.telemetry.fold import COMPRESSORS, Fold
from livelm.telemetry.frame import NAMES, amount, printable

TRAINING = 3
"""Forward and backward pass cost so many times the forward pass: two products more for each one."""


def contest_json(contest: Contest) -> dict[str, Any]:
    """Everything a contest found, as plain JSON; `models` in the order they were named."""
    shared = contest.shared_bytes()
    folds = contest.folds([shared])
    sizes = {name: round(_mean(fs, lambda fold: fold.n_bytes)) for name, fs in folds.items()}
    baselines = contest.baselines([shared, *sizes.values()])
    rows: dict[str, Any] = {}
    for arm in contest.arms:
        if arm.name in folds:
            row = _row(arm, folds[arm.name], shared)
            rows[arm.name] = row | _differences(row, next(iter(rows.values()), row))
            rows[arm.name]["baselines_at_end"] = _of(baselines, sizes[arm.name])
    return {
        "equal": contest.rules.equal,
        "budget": contest.rules.budget,
        "n_seeds": min((len(fs) for fs in folds.values()), default=0),
        "interval": f"{100 * LEVEL:g} %, Student's t over seeds",
        "rates": list(contest.rules.rates),
        "pilot": [asdict(trial) for trial in contest.trials],
        "n_shared_bytes": shared,
        "baselines": _of(baselines, shared),
        "models": rows,
        "notes": list(contest.notes),
        "folder": str(contest.folder),
    }


def contest_table(found: dict[str, Any]) -> RenderableType:
    """The same for a rich console."""
    first = next(iter(found["models"]))
    shared = amount(found["n_shared_bytes"], "B")
    what = _table("what was compared", "settings from", "rate", "dense", "parameters", "FLOPs/byte", "peak memory")
    reached = _table(
        f"bits per byte of everything each read, and of the first {shared}, which all read",
        *("read", "bytes/s", "bits/byte", "to first", "PPMd", f"in {shared}", "to first"),
    )
    for name, row in found["models"].items():
        what.add_row(
            Text(printable(name)),
            Text(printable(row["origin"])),
            f"{row['rate']:g}",
            amount(row["n_dense_parameters"]),
            amount(row["n_parameters"]),
            amount(row["flops_per_byte"]),
            "-" if row["peak_resident_bytes"] is None else amount(row["peak_resident_bytes"], "B"),
        )
        reached.add_row(
            Text(printable(name)),
            amount(row["n_bytes"]["mean"], "B"),
            f"{row['bytes_per_s']['mean']:,.0f}",
            Text(_shown(row["bits_per_byte"]), "bold"),
            "" if name == first else _shown(row["more_bits"]),
            "-" if row["baselines_at_end"] is None else f"{row['baselines_at_end']['ppmd']:.3f}",
            Text(_shown(row["bits_per_byte_shared"]), "bold"),
            "" if name == first else _shown(row["more_bits_shared"]),
        )
    said = [f"Equal {found['equal']}, {found['budget']} each, {found['n_seeds']} seeds. ±: {found['interval']}: what"]
    said[0] += " another beginning of the weights would change, not another text."
    said.append(
        f"to first: bits per byte more than {printable(first)}, seed by seed; PPMd: on as many bytes as were read."
    )
    said.append("dense: parameters without n-gram tables. FLOPs: forward and backward, matrix products only.")
    if found["baselines"] is not None:
        over = ", ".join(f"{NAMES[key]} {found['baselines'][key]:.3f}" for key in reversed(COMPRESSORS))
        said.append(f"Over the first {found['n_shared_bytes']:,} bytes: {over}.")
    said += [f"! {printable(note)}" for note in found["notes"]]
    return Group(what, Text(), reached, Text(), Text("\n".join(said), "bright_black"))


def _row(arm: Arm, folds: Sequence[Fold], shared: int) -> dict[str, Any]:
    run = folds[0].run or {}
    tokens_per_byte = folds[0].n_tokens / folds[0].n_bytes
    at = [boundary for fold in folds if (boundary := fold.at(shared)) is not None]
    return {
        "origin": arm.origin,
        "settings": {key: folds[0].recipe(key) for key in ("tokenizer", "feed", "model", "optimizer", "schedule")},
        "rate": folds[0].recipe("optimizer", "rate"),
        "n_parameters": run.get("n_parameters"),
        "n_dense_parameters": count_dense(sketch(arm.recipe)[1]),
        "flops_per_byte": TRAINING * run.get("flops_per_token", 0) * tokens_per_byte,
        "peak_resident_bytes": max((fold.peak_resident_bytes or 0 for fold in folds), default=0) or None,
        "seconds": _stated([fold.active_s for fold in folds]),
        "n_bytes": _stated([fold.n_bytes for fold in folds]),
        "bytes_per_s": _stated([fold.bytes_per_s or 0.0 for fold in folds]),
        "bits_per_byte": _stated([fold.bits_per_byte for fold in folds]),
        "recent_bits_per_byte": _stated([fold.recent_bits_per_byte for fold in folds]),
        "bits_per_byte_shared": _stated([boundary.bits_per_byte for boundary in at]),
    }


def _differences(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Seed by seed from the first model: what both shared (the machine at that hour) cancels."""
    pairs = {"more_bits": "bits_per_byte", "more_bits_shared": "bits_per_byte_shared"}
    return {
        name: _stated([ours - theirs for ours, theirs in zip(row[key]["each"], first[key]["each"], strict=True)])
        for name, key in pairs.items()
    }


def _stated(values: Sequence[float]) -> dict[str, Any]:
    found = interval(values)
    return {"mean": found.mean, "half_width": found.half, "each": list(values)}


def _shown(stated: dict[str, Any]) -> str:
    return str(Interval(stated["mean"], stated["half_width"]))


def _of(baselines: dict[int, Baselines], n_bytes: int) -> dict[str, Any] | None:
    return asdict(baselines[n_bytes]) if n_bytes in baselines else None


def _mean(folds: Sequence[Fold], value: Callable[[Fold], float]) -> float:
    return sum(map(value, folds)) / len(folds)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title, "bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="left" if column == "settings from" else "right")
    return table

"""Pictures of runs: bits per byte over bytes and over seconds, with the compressors drawn in."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from livelm.errors import RunError, StorageError
from livelm.evaluate.intervals import LEVEL, t_quantile
from livelm.evaluate.report import same_stream, shared_bytes
from livelm.telemetry.fold import CurvePoint, Fold
from livelm.telemetry.frame import NAMES, about, amount, bits, learners, printable, ratio

# Okabe and Ito's palette: told apart with any colour vision, and in print.
_BLUE, _SKY, _GREEN, _ORANGE, _RED, _PINK = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
_GREY, _BLACK = "#777777", "#222222"
_BASELINES = {"ppmd": _RED, "xz": _ORANGE, "unigram": _GREY}
_RUNS = (_BLUE, _GREEN, _PINK, _SKY, _BLACK)
_DASHES = ("-", "--", ":", "-.")
_LOG_FROM = 32  # a stream at least this many times longer than its first point is drawn on a logarithmic axis
_LONGEST_LINE, _LONGEST_NAME = 105, 24  # characters that fit above and beside the axes
_NOISY_BYTES = 1000  # the first bytes cost anything between 5 and 15 bits and would set the scale


def plot_run(fold: Fold, path: Path) -> None:
    """Draw one run into a PNG: bits per byte, overall and recently, over bytes, beside the baselines.

    Raises RunError if nothing was graded, StorageError if the picture cannot be written.
    """
    points = _visible(fold)
    if not points:
        raise RunError("nothing was graded yet, so there is no curve to draw")
    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    x = [p.n_bytes for p in points]
    axes.plot(x, [p.recent_bits_per_byte for p in points], color=_SKY, linewidth=1)
    axes.plot(x, [p.bits_per_byte for p in points], color=_BLUE, linewidth=2.5)
    labels = [(points[-1].bits_per_byte, "overall", _BLUE)]
    if abs(points[-1].recent_bits_per_byte - points[-1].bits_per_byte) > 0.005:
        labels.append((points[-1].recent_bits_per_byte, "recently", _SKY))
    labels += _draw_baselines(axes, fold, x[-1])
    top = max([points[0].bits_per_byte, *(y for y, _, _ in labels)])
    low = min([y for y, _, _ in labels] + [p.recent_bits_per_byte for p in points])
    _frame_axes(axes, "bytes graded", low, min(top, 8.5))
    _byte_axis(axes, x)
    _label_ends(axes, labels)
    axes.set_ylabel("bits per byte")
    _headline(figure, axes, _sentence(fold), about(fold))
    _save(figure, path)


def plot_compare(folds: Mapping[str, Fold], path: Path) -> None:
    """Draw several runs into one PNG: overall bits per byte over bytes (left) and over active seconds (right).

    Raises RunError if nothing was graded in any of them, StorageError if the picture cannot be written.
    """
    curves = {name: points for name, fold in folds.items() if (points := _visible(fold))}
    if not curves:
        raise RunError("nothing was graded yet in any of these runs, so there are no curves to draw")
    figure = Figure(figsize=(12, 5.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    labels = []
    for (name, points), style in zip(curves.items(), cycle((c, d) for d in _DASHES for c in _RUNS), strict=False):
        y = [p.bits_per_byte for p in points]
        left.plot([p.n_bytes for p in points], y, color=style[0], linestyle=style[1], linewidth=2)
        right.plot([p.at_s for p in points], y, color=style[0], linestyle=style[1], linewidth=2)
        labels.append((y[-1], name, style[0]))
    if same_stream(folds):
        longest = max((folds[name] for name in curves), key=lambda fold: fold.baselines_n_bytes or 0)
        labels += _draw_baselines(left, longest, max(points[-1].n_bytes for points in curves.values()))
    low, high = min(y for y, _, _ in labels), max(points[0].bits_per_byte for points in curves.values())
    n = shared_bytes(folds)
    if any(folds[name].n_bytes != n for name in curves):
        left.axvline(n, color=_GREY, linewidth=1, linestyle=":")
        left.annotate(f" {amount(n, 'B')}", (n, 1), xycoords=("data", "axes fraction"), va="top", color=_GREY)
    _frame_axes(left, "bytes graded", low, min(high, 8.5))
    _frame_axes(right, "active seconds", low, min(high, 8.5))
    _byte_axis(left, [p.n_bytes for points in curves.values() for p in points])
    left.set_ylabel("bits per byte, overall")
    _label_ends(right, labels)
    at = {name: ours.bits_per_byte for name in curves if (ours := folds[name].at(n)) is not None}
    best = min(at, key=lambda name: at[name])
    sentence = (
        f"{_short(best)}: {bits(at[best])} bits per byte over the first {amount(n, 'B')}, the lowest of {len(at)}"
    )
    _headline(figure, left, sentence, "overall bits per byte, by what was read and by the time it took")
    _save(figure, path)


def plot_seeds(groups: Mapping[str, Sequence[Fold]], baselines: Mapping[str, float], path: Path) -> None:
    """Draw models, each with several seeds, into one PNG: overall bits per byte over bytes and over learning seconds.

    A line is the mean over seeds, the band its confidence interval (`intervals.LEVEL`); `baselines` are levels by
    name, drawn over the bytes. Raises RunError if nothing was graded, StorageError if it cannot be written.
    """
    curves = {name: [_learning(fold) for fold in folds] for name, folds in groups.items()}
    curves = {name: runs for name, runs in curves.items() if runs and all(runs)}
    if not curves:
        raise RunError("nothing was graded yet in any of these runs, so there are no curves to draw")
    figure = Figure(figsize=(12, 5.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    labels, low, high = [], math.inf, 0.0
    for (name, runs), style in zip(curves.items(), cycle((c, d) for d in _DASHES for c in _RUNS), strict=False):
        for axes, x in ((left, 0), (right, 1)):
            grid, mean, half = _band([[(point[x], point[2]) for point in run] for run in runs])
            axes.plot(grid, mean, color=style[0], linestyle=style[1], linewidth=2)
            axes.fill_between(grid, mean - half, mean + half, color=style[0], alpha=0.18, linewidth=0)
            low, high = min(low, float(mean.min())), max(high, float(mean[0]))
        end = sum(run[-1][2] for run in runs) / len(runs)
        labels.append((end, name, style[0]))
    for name, colour in _BASELINES.items():
        if name in baselines:
            left.axhline(baselines[name], color=colour, linewidth=1, linestyle=":")
            labels.append((baselines[name], NAMES[name], colour))
    low = min([low, *(y for y, _, _ in labels)])
    _frame_axes(left, "bytes graded", low, min(high, 8.5))
    _frame_axes(right, "seconds of learning", low, min(high, 8.5))
    _byte_axis(left, [round(p[0]) for runs in curves.values() for run in runs for p in run])
    right.set_xlim(left=0)
    left.set_ylabel("bits per byte, overall")
    _label_ends(right, labels)
    best = min(labels[: len(curves)])
    sentence = f"{_short(best[1])}: {bits(best[0])} bits per byte at the end of its budget, the lowest of {len(curves)}"
    n_seeds = max(len(runs) for runs in curves.values())
    band = f"{100 * LEVEL:g} % interval (Student's t)" if n_seeds > 1 else "no interval"
    _headline(figure, left, sentence, f"mean of {n_seeds} seeds, {band}; dotted: compressors on the shared bytes")
    _save(figure, path)


def _learning(fold: Fold) -> list[tuple[float, float, float]]:
    """(bytes, seconds, bits per byte) along a run; what its last checkpoint took is no learning."""
    points: list[tuple[float, float, float]] = [(p.n_bytes, p.at_s, p.bits_per_byte) for p in _visible(fold)]
    if len(points) > 1 and fold.bytes_per_s:
        (n, at_s, _), (n_bytes, end_s, cost) = points[-2:]
        points[-1] = n_bytes, min(end_s, at_s + (n_bytes - n) / fold.bytes_per_s), cost
    return points


def _band(runs: Sequence[Sequence[tuple[float, float]]]) -> tuple[Any, Any, Any]:
    """Mean and half the confidence interval of several curves, where all of them have a value."""
    begin, end = max(run[0][0] for run in runs), min(run[-1][0] for run in runs)
    grid = np.geomspace(max(begin, 1e-3), max(end, begin, 2e-3), 256)
    values = np.array([np.interp(grid, [x for x, _ in run], [y for _, y in run]) for run in runs])
    if len(runs) < 2:
        return grid, values[0], np.zeros_like(grid)
    half = t_quantile(LEVEL, len(runs) - 1) * values.std(axis=0, ddof=1) / math.sqrt(len(runs))
    return grid, values.mean(axis=0), half


def _sentence(fold: Fold) -> str:
    name = learners(fold) or "the run"
    said = f"{name}: {bits(fold.bits_per_byte)} bits per byte over {amount(fold.n_bytes, 'B')}"
    n = fold.baselines_n_bytes
    if n is None or n not in fold.ours_at:
        return said
    ours = fold.ours_at[n].bits_per_byte
    against = " and ".join(ratio(ours, v, NAMES[k]) for k in ("ppmd", "xz") if (v := fold.baselines[n][k]))
    return f"{said}, {against}" + ("" if n == fold.n_bytes else f" (first {amount(n, 'B')})")


def _visible(fold: Fold) -> list[CurvePoint]:
    points = [p for p in fold.curve() if math.isfinite(p.bits_per_byte) and math.isfinite(p.recent_bits_per_byte)]
    return [p for p in points if p.n_bytes >= _NOISY_BYTES] or points


def _draw_baselines(axes: Axes, fold: Fold, end: int) -> list[tuple[float, str, str]]:
    """Draw what was measured, a dotted line on from there; return their labels."""
    labels = []
    for key, colour in _BASELINES.items():
        measured = [(n, value) for n, values in fold.baselines.items() if (value := values[key]) is not None]
        if not measured:
            continue
        x, y = zip(*measured, strict=True)
        axes.plot(x, y, color=colour, linewidth=1.2, marker="o", markersize=3.5)
        axes.plot([x[-1], end], [y[-1], y[-1]], color=colour, linewidth=1, linestyle=":")
        labels.append((y[-1], NAMES[key], colour))
    return labels


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Name the curves at the right edge, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = min(0.045, 0.95 / len(labels)) * (high - low)
    ordered = sorted(labels)
    places: list[float] = []
    for y, _, _ in ordered:
        places.append(max([y, *(place + gap for place in places[-1:])]))
    ceiling = high
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    for (y, name, colour), place in zip(ordered, places, strict=True):
        where = {"xy": (1.01, place), "xycoords": ("axes fraction", "data"), "va": "center", "parse_math": False}
        axes.annotate(f"{_short(name)} {y:.2f}", color=colour, **where)


def _frame_axes(axes: Axes, label: str, low: float, high: float) -> None:
    pad = 0.05 * max(high - low, 0.1)
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)


def _byte_axis(axes: Axes, x: Sequence[int]) -> None:
    if max(x) > _LOG_FROM * min(x):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(x) < 500 * min(x) else (1.0, 3.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(x) if max(x) > _LOG_FROM * min(x) else 0, max(x))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def _tick(n_bytes: float, _position: int | None) -> str:
    number, unit = amount(n_bytes, "B").split(" ")
    return f"{float(number):g} {unit}"


def _headline(figure: Figure, axes: Axes, sentence: str, detail: str) -> None:
    figure.suptitle(_plain(sentence), x=0.01, ha="left", fontsize=14, fontweight="bold", parse_math=False)
    axes.set_title(_plain(detail), loc="left", fontsize=10, color=_GREY, parse_math=False)


def _plain(text: str) -> str:
    """Foreign text as the font of the picture can show it, cut to the width of the picture."""
    shown = printable(text[:200]).encode("latin-1", "backslashreplace").decode("latin-1")
    return shown if len(shown) <= _LONGEST_LINE else f"{shown[: _LONGEST_LINE - 3]}..."


def _short(name: str) -> str:
    """The end of a run's name, which is often a long path that differs only there."""
    shown = _plain(name[-_LONGEST_NAME:])
    return shown if len(shown) == len(name) else f"...{shown[3 - _LONGEST_NAME :]}"


def _save(figure: Figure, path: Path) -> None:
    try:
        FigureCanvasAgg(figure).print_png(path)
    except OSError as error:
        raise StorageError(f"cannot write the picture {path}: {error.strerror}") from None

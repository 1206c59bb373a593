"""One picture of a running run as text: the numbers, the curve, where the time goes, what was surprising."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from rich.text import Text

from livelm.telemetry.fold import ALONE, SPANS, CurvePoint, Fold

NAMES = {"ppmd": "PPMd", "xz": "xz", "unigram": "unigram", "uniform": "uniform"}
"""Baselines as people know them, strongest first."""

_MODEL, _DIM, _WARN = "bold bright_cyan", "bright_black", "bold yellow"
_COLOURS = {"ppmd": "bright_magenta", "xz": "yellow", "unigram": "blue", "uniform": _DIM}
_SPAN_COLOURS = dict(zip(SPANS, ("bright_black", "cyan", "bright_blue", "magenta", "yellow"), strict=True))
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # dots of a cell by column, top to bottom
_WIDE = 64  # a narrower screen has the curve below the bars, not beside them
_ABOUT_SOURCE = " source: "
_LABEL = 8  # cells right of the curve, for the names of the levels


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters a terminal can show."""

    ascii_only: bool
    live: str
    rule: str
    bar: str
    level: str
    separator: str

    def clean(self, text: str) -> str:
        """Foreign text (ids, messages, URLs) as this terminal can safely show it."""
        return printable(text, ascii_only=self.ascii_only)


UNICODE = Glyphs(ascii_only=False, live="●", rule="─", bar="█", level="╌", separator="·")
ASCII = Glyphs(ascii_only=True, live="*", rule="-", bar="#", level="-", separator="|")


def printable(text: str, *, ascii_only: bool = False) -> str:
    r"""`text` with everything that could move the cursor, change direction or hide spelled out as an escape.

    >>> printable("a\x1b[31m[red]") == r"a\x1b[31m[red]"
    True
    """
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped.encode("ascii", "backslashreplace").decode() if ascii_only else escaped


def amount(value: float, unit: str = "") -> str:
    """A quantity with three digits and a metric prefix (powers of 1000): `36.0 M`, `1.12 MB`."""
    power = 0
    while value >= 999.5 and power < 5:
        value, power = value / 1000, power + 1
    digits = 0 if value >= 99.95 or (power == 0 and value == int(value)) else 2 if value < 9.995 else 1
    return f"{value:.{digits}f} {('', 'K', 'M', 'G', 'T', 'P')[power]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def bits(value: float | None) -> str:
    """Bits per byte with three decimals; a dash where there is no number."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def ratio(ours: float, theirs: float, name: str) -> str:
    """How our bits per byte compare with another's: `7.2 % over xz`."""
    percent = 100 * (ours / theirs - 1)
    return f"{abs(percent):.1f} % {'over' if percent > 0 else 'under'} {name}"


def counted(n: int, noun: str) -> str:
    """A number with its noun: `1 update`, `2 updates`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def learners(fold: Fold) -> str:
    """What learns: `counts and transformer`; empty before the first record."""
    names = [fold.recipe(part, "name") for part in ("memory", "model")]
    return " and ".join(str(name) for name in names if name not in (None, "none"))


def about(fold: Fold) -> str:
    """What runs: model, parameters and stream. Foreign text: clean it before it meets a terminal."""
    run = fold.run or {}
    n = run.get("n_parameters")
    parts = [learners(fold), f"{amount(n)} parameters" if n else None, run.get("stream")]
    return ", ".join(str(p) for p in parts if p) or "waiting for the first record"


def frame(fold: Fold, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """The whole picture: at most `height` lines of at most `width` cells, whatever those are."""
    lines = _title(fold, width, glyphs)[: 2 if height >= 10 else 1] + _headline(fold, width)
    tail = _footer(fold, width, glyphs) if height >= 6 else []
    room = height - len(lines) - len(tail)
    if room >= 14:
        time = [Text(), *_time(fold, width, glyphs)]
        n_surprises = min(5 if room < 30 else 10, room - len(time) - 11)
        surprising = _surprising(fold, n_surprises, glyphs)
        tail = [*time, *surprising, *tail]
        room -= len(time) + len(surprising)
    middle = [_beside(fold, glyphs)] if room < 8 else [Text(), *_middle(fold, width, room - 1, glyphs)]
    page = [*lines, *middle, *tail][: max(height, 1)]
    for line in page:
        line.truncate(max(width, 1), overflow="crop")
        line.no_wrap, line.overflow = True, "crop"
    return page


def _title(fold: Fold, width: int, glyphs: Glyphs) -> list[Text]:
    style = {"running": "bold green", "stopped": "bold yellow"}.get(fold.state, _DIM)
    state = glyphs.clean(fold.stop_reason or fold.state)[: width // 3]
    right = Text.assemble((f"{glyphs.live} {state}", style), f"  {duration(fold.at_s)} ")
    if width < 2 * right.cell_len:
        right = Text(f"{duration(fold.at_s)} ")
    left = Text.assemble((" livelm ", "bold reverse bright_cyan"), (f" {glyphs.clean(about(fold))}", "bold"))
    left.truncate(max(0, width - right.cell_len - 1), overflow="crop", pad=True)
    return [Text.assemble(left, " ", right), Text(glyphs.rule * width, _DIM)]


def _headline(fold: Fold, width: int) -> list[Text]:
    cells = [
        (bits(fold.bits_per_byte), "bits per byte", _MODEL),
        (bits(fold.recent_bits_per_byte), "recently", "bold"),
        *((bits(b), f"{part} alone", "bold") for part in ALONE if not math.isnan(b := fold.alone(part))),
        (amount(fold.n_bytes, "B"), "graded", "bold"),
        (amount(fold.bytes_per_s, "B/s") if fold.bytes_per_s else "-", "speed", "bold"),
        (amount(fold.n_documents), "documents", "bold"),
        (f"{fold.documents_per_s:.2f}" if fold.documents_per_s else "-", "docs/s", "bold"),
        (amount(fold.n_tokens), "tokens", "bold"),
        (f"{fold.nats_per_token:.3f}" if fold.n_tokens else "-", "nats per token", "bold"),
    ]
    values, labels = Text(" "), Text(" ")
    widths = [max(len(v), len(label)) + 2 for v, label, _ in cells]
    while sum(widths) > width and len(widths) > 1:
        widths.pop()
    spare = min(6, max(0, width - sum(widths) - 1) // len(widths))
    for (value, label, style), cell in zip(cells, widths, strict=False):
        values.append(value.ljust(cell + spare), style)
        labels.append(label.ljust(cell + spare), _DIM)
    return [values, labels]


def _beside(fold: Fold, glyphs: Glyphs) -> Text:
    line = Text(" ")
    n = fold.baselines_n_bytes
    for key, name in NAMES.items():
        value = fold.baselines[n][key] if n is not None else None
        line.append(f"{name} {'-' if value is None else f'{value:.2f}'}", _COLOURS[key]).append(f" {glyphs.separator} ")
    return line.append(f"first {amount(n, 'B')}" if n else "not measured yet", _DIM)


def _middle(fold: Fold, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    if width < _WIDE:
        bars = _bars(fold, width, glyphs)
        return bars + (_curve(fold, width, height - len(bars), glyphs) if height >= len(bars) + 6 else [])
    left_width = min(46, max(34, width * 3 // 8))
    left = _bars(fold, left_width, glyphs)
    if height >= len(left) + 7:
        left += [Text(), *_details(fold, glyphs)]
    right = _curve(fold, width - left_width - 1, height, glyphs)
    left = (left + [Text()] * height)[:height]
    for line in left:
        line.truncate(left_width, overflow="crop", pad=True)
    return [Text.assemble(a, " ", b) for a, b in zip(left, right, strict=True)]


def _bars(fold: Fold, width: int, glyphs: Glyphs) -> list[Text]:
    n = fold.baselines_n_bytes
    ours = fold.ours_at.get(n) if n is not None else None
    mine = ours.bits_per_byte if ours else fold.bits_per_byte
    rows: list[tuple[str, float | None, str]] = [("this run", mine, _MODEL)]
    rows += [(name, fold.baselines[n][k] if n is not None else None, _COLOURS[k]) for k, name in NAMES.items()]
    lines = [Text.assemble((" bits per byte", "bold"), (f"  first {amount(n, 'B')}" if n else "  so far", _DIM))]
    longest = max([8.0, *(v for _, v, _ in rows if v is not None and math.isfinite(v))])
    for name, value, style in rows:
        known = value is not None and math.isfinite(value)
        label = f"{value:5.2f} " if known else "    - "
        length = round((width - 17) * value / longest) if known and value else 0
        lines.append(Text.assemble((f" {name:<8} ", style), label, (glyphs.bar * max(0, length), style)))
    measured = fold.baselines[n] if n is not None and math.isfinite(mine) else {}
    verdict = [ratio(mine, v, NAMES[k]) for k in ("ppmd", "xz") if (v := measured.get(k))]
    return [*lines, Text(" " + (", ".join(verdict) or "baselines: not measured yet"), _DIM)]


def _details(fold: Fold, glyphs: Glyphs) -> list[Text]:
    facts = {
        "batches": amount(fold.n_batches),
        "skipped updates": f"{fold.n_skipped}" + (f" ({glyphs.clean(fold.skipped)})" if fold.skipped else ""),
        "gradient norm": "-" if fold.gradient_norm is None else f"{fold.gradient_norm:.3g}",
        "rate": "-" if fold.rate is None else f"{fold.rate:.3g}",
        "FLOPs per token": amount((fold.run or {}).get("flops_per_token") or 0),
        "context reach": f"{(fold.run or {}).get('context_reach') or 'without limit'}",
    }
    if seen := fold.signals.ranges:
        facts["K, C, S"] = " ".join(f"{seen[name].latest:.2f}" for name in ("negentropy", "complexity", "symbiosis"))
    return [Text.assemble((f" {name:<16}", _DIM), value) for name, value in facts.items()]


def _curve(fold: Fold, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Recent bits per byte over bytes; `height` lines: a heading, the plot, an axis."""
    plot_width, plot_height = width - 6 - _LABEL, height - 2
    heading = Text.assemble((" recent bits per byte", "bold"), ("  over bytes graded", _DIM))
    points = [p for p in fold.curve() if math.isfinite(p.recent_bits_per_byte)]
    if len(points) < 2 or plot_width < 4 or plot_height < 2:
        return [heading, *([Text()] * (height - 2)), Text(" the curve begins with the second batch", _DIM)][:height]
    n = fold.baselines_n_bytes
    levels = {k: v for k in ("ppmd", "xz") if n is not None and (v := fold.baselines[n][k])}
    # the steep first twentieth would flatten everything after it: it may leave through the top
    late = [p.recent_bits_per_byte for p in points if p.n_bytes >= points[-1].n_bytes / 20]
    low, high = min([*late, *levels.values()]), max([*late, *levels.values()])
    pad = max(0.05 * (high - low), 0.02)
    low, high = low - pad, high + pad
    heights = [(v - low) / (high - low) for v in _columns(points, plot_width * (1 if glyphs.ascii_only else 2))]
    rows = _ascii_rows(heights, plot_height) if glyphs.ascii_only else _braille_rows(heights, plot_height)
    marked: dict[int, list[str]] = {}
    for key, value in levels.items():
        marked.setdefault(min(plot_height - 1, int((high - value) / (high - low) * plot_height)), []).append(key)
    lines = [heading]
    for i, row in enumerate(rows):
        labelled = i in (0, plot_height // 2, plot_height - 1)
        value = high - (i + 0.5) / plot_height * (high - low)
        line = Text(f"{value:5.2f} " if labelled else " " * 6, _DIM)
        here = marked.get(i, [])
        # one span for many cells, or for all: each costs time in every frame
        for blank, cells in groupby(row, " ".__eq__) if here else [(False, row)]:
            run = "".join(cells)
            line.append(*((glyphs.level * len(run), _COLOURS[here[0]]) if blank else (run, _MODEL)))
        lines.append(line.append(" " + " ".join(NAMES[k] for k in here), _COLOURS[here[0]] if here else ""))
    end = amount(points[-1].n_bytes, "B")
    axis = "0 " + glyphs.rule * max(0, plot_width - len(end) - 3) + " " + end
    return [*lines, Text(" " * 6 + axis, _DIM)]


def _columns(points: list[CurvePoint], n: int) -> list[float]:
    """The curve at `n` evenly spaced places: means where it is dense, straight lines where it is sparse."""
    total = points[-1].n_bytes
    sums, counts = [0.0] * n, [0] * n
    for p in points:
        column = min(n - 1, p.n_bytes * n // (total + 1))
        sums[column] += p.recent_bits_per_byte
        counts[column] += 1
    known = [i for i in range(n) if counts[i]]
    values = [sums[i] / counts[i] if counts[i] else math.nan for i in range(n)]
    for a, b in pairwise(known):
        for i in range(a + 1, b):
            values[i] = values[a] + (values[b] - values[a]) * (i - a) / (b - a)
    return [values[known[0]]] * known[0] + values[known[0] : known[-1] + 1]


def _braille_rows(heights: list[float], n_rows: int) -> list[str]:
    """Draw a line through `heights` (0 bottom to 1 top), two columns and four rows of dots per character."""
    n_dots = 4 * n_rows
    cells = [[0] * ((len(heights) + 1) // 2) for _ in range(n_rows)]
    before: int | None = None
    for x, height in enumerate(heights):
        y = math.floor((1 - height) * n_dots)
        # from the middle to the last one, so that steep parts stay one connected line
        path = range(min(y, before), max(y, before) + 1) if before is not None else range(y, y + 1)
        before = y
        for dot in path:
            if 0 <= dot < n_dots:
                cells[dot // 4][x // 2] |= _BRAILLE[x % 2][dot % 4]
    return ["".join(chr(0x2800 + dots) if dots else " " for dots in row) for row in cells]


def _ascii_rows(heights: list[float], n_rows: int) -> list[str]:
    rows = [[" "] * len(heights) for _ in range(n_rows)]
    for x, height in enumerate(heights):
        y = math.floor((1 - height) * n_rows)
        if 0 <= y < n_rows:
            rows[y][x] = "*"
    return ["".join(row) for row in rows]


def _time(fold: Fold, width: int, glyphs: Glyphs) -> list[Text]:
    total = fold.active_s
    bar, legend = Text(" "), Text(" ")
    room = width - 2
    done, shown = 0.0, 0
    for name in SPANS:
        share = fold.spans[name] / total if total else 0.0
        done += share
        length = round(done * room) - shown  # rounding the running sum keeps the bar as long as the line
        shown += length
        label = name.removesuffix("_s")
        bar.append((label[0] if glyphs.ascii_only else "━") * length, _SPAN_COLOURS[name])
        legend.append(f"{label} {100 * share:.0f} %   ", _SPAN_COLOURS[name])
    return [bar if total else Text(" " + glyphs.rule * room, _DIM), Text(" time:  ", "bold") + legend]


def _surprising(fold: Fold, n: int, glyphs: Glyphs) -> list[Text]:
    found = fold.surprises(n) if n > 0 else []
    if not found:
        return []
    lines = [Text(), Text.assemble((" most surprising", "bold"), ("  bits per byte, above the stream, size", _DIM))]
    for s in found:
        lines.append(
            Text.assemble(
                (f" {s.bits_per_byte:6.2f} ", "bold"),
                (f"{s.excess:+6.2f} ", "bright_red" if s.excess > 0 else _DIM),
                (f"{amount(s.n_bytes, 'B'):>8}  ", _DIM),
                glyphs.clean(s.id),
            )
        )
    return lines


def _footer(fold: Fold, width: int, glyphs: Glyphs) -> list[Text]:
    parts = []
    if fold.resident_bytes is not None:
        parts.append(f"memory {amount(fold.resident_bytes, 'B')}")
    if fold.checkpoint is not None:
        at_s, folder = fold.checkpoint
        parts.append(f"saved {glyphs.clean(folder)} {duration(fold.at_s - at_s)} ago")
    if fold.n_skipped:
        parts.append(f"{counted(fold.n_skipped, 'update')} skipped")
    if fold.signals.gate_closed:
        parts.append("gate closed")
    if fold.signals.alarms:
        last = fold.signals.alarms[-1]
        parts.append(glyphs.clean(f"{last.alarm} of {last.signal} {last.direction} at {amount(last.n_bytes, 'B')}"))
    if fold.n_warnings > 1:
        parts.append(f"{fold.n_warnings} warnings")
    said = _said(fold.said, width, glyphs) if fold.said else []
    warnings = [Text(f" ! {glyphs.clean(fold.warnings[-1])}", _WARN)] if fold.warnings else []
    return [*said, *warnings, Text(" " + f" {glyphs.separator} ".join(parts or ["nothing saved yet"]), _DIM)]


def _said(said: Mapping[str, Any], width: int, glyphs: Glyphs) -> list[Text]:
    """What the source says of itself, in one or two lines: what is not zero, and the commonest drops by name."""
    parts = [
        f"{_words(name)} {_gauge(value)}" for name, value in said.items() if isinstance(value, int | float) and value
    ]
    drops = said.get("drops")
    if isinstance(drops, Mapping) and drops:
        worst = sorted(drops.items(), key=lambda item: -item[1])[:3]
        listed = ", ".join(f"{_words(name)} {amount(n)}" for name, n in worst)
        parts.insert(4, f"dropped {amount(sum(drops.values()))} ({listed})")
    rows: list[list[str]] = [[], []]
    for part in map(glyphs.clean, parts):
        fits = not rows[1] and len(_ABOUT_SOURCE) + sum(len(p) + 3 for p in rows[0]) + len(part) <= width
        rows[0 if fits else 1].append(part)
    between = f" {glyphs.separator} "
    first = Text.assemble((_ABOUT_SOURCE, "bold"), between.join(rows[0]))
    return [first, Text(" " * len(_ABOUT_SOURCE) + between.join(rows[1]))] if rows[1] else [first]


def _words(name: str) -> str:
    return name.removeprefix("n_").replace("_per_s", "/s").removesuffix("_s").replace("_", " ")


def _gauge(value: float) -> str:
    return amount(value) if isinstance(value, int) else f"{value:.1f}"

"""Whatever the terminal and whatever the stream, the views show the numbers and cannot be broken."""

import io
import json
import math
import re
import threading
from typing import Any

import pytest
from rich.console import Console

from livelm.telemetry.fold import Fold
from livelm.telemetry.frame import ASCII, UNICODE, amount, bits, duration, frame, printable, ratio
from livelm.telemetry.terminal import JsonView, LiveView, PlainView, View, status_line

Record = dict[str, Any]

HOSTILE = "文字evil\x1b[31m\x07[red]x[/] [/bold]\r\n\u202egnp\u200b\udc80 \x9b2J"


def records(n_batches: int = 1000, name: str = HOSTILE) -> list[Record]:
    """A run of 128-byte batches that cost 3 bits per byte, the first document 6."""
    run = {"recipe": {"model": {"name": "transformer"}}, "n_parameters": 35_993_088, "context_reach": None}
    out: list[Record] = [{"kind": "run", "seq": 0, "schema": 1, "stream": f"stream {name}", **run}]
    for i in range(n_batches):
        cost = 128.0 * (6 if 500 <= i < 502 else 3 + math.sin(i / 50) / 4)
        if i % 500 == 0:
            out.append({"kind": "document", "ordinal": i // 500, "id": f"{name} {i // 500}"})
        documents = [[i // 500, cost, 128]]
        out.append(
            {"kind": "scored", "batch": i, "bits": cost, "n_bytes": 128, "n_tokens": 128, "documents": documents}
        )
        out.append({"kind": "update", "batch": i, "gradient_norm": 1.5, "rate": 0.002, "skipped": None})
        if i % 50 == 49:
            spent = {"wait_s": 0.1, "score_s": 0.3, "update_s": 0.5, "save_s": 0.05, "journal_s": 0.05}
            out.append({"kind": "spans", "at_s": (i + 1) / 50, **spent})
    last = {"at_s": n_batches / 50}
    half = {"uniform": 8.0, "unigram": 4.812, "xz": 3.234, "ppmd": 2.345}
    out.append({"kind": "baseline", "n_bytes": 128 * n_batches, **half, **last})
    out.append({"kind": "memory", "resident_bytes": 412_000_000, **last})
    out.append({"kind": "saved", "batch": n_batches, "folder": f"checkpoints/{name}", **last})
    out.append({"kind": "warning", "message": f"look at {name}", **last})
    return out


def folded(batch: list[Record]) -> Fold:
    fold = Fold()
    for record in batch:
        fold.take(record)
    return fold


def shown(fold: Fold, width: int, height: int, glyphs: Any = UNICODE) -> list[str]:
    """The frame as the terminal gets it, colours included."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system="truecolor")
    console.print(*frame(fold, width, height, glyphs), sep="\n")
    return out.getvalue().split("\n")


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize("size", [(1, 1), (20, 5), (40, 12), (63, 24), (80, 24), (120, 40), (200, 60), (500, 3)])
def test_a_frame_fits_every_terminal(size: tuple[int, int], glyphs: Any) -> None:
    for fold in (Fold(), folded(records()[:1]), folded(records(1)), folded(records())):
        lines = frame(fold, *size, glyphs)
        assert 1 <= len(lines) <= size[1]
        assert all(line.cell_len <= size[0] for line in lines)
        assert all(glyphs.ascii_only <= line.plain.isascii() for line in lines)


@pytest.mark.parametrize("size", [(20, 5), (80, 24), (200, 60)])
def test_a_frame_contains_the_numbers(size: tuple[int, int]) -> None:
    fold = folded(records())
    text = without_colours("\n".join(shown(fold, *size)))
    assert bits(fold.bits_per_byte) in text
    assert "PPMd" in text
    if size[0] >= 80:
        for number in ("2.35", "3.23", "4.81", "8.00", "128 KB", "6.40 KB/s", "412 MB", "36.0 M", "0:00:20"):
            assert number in text
        assert "wait 10 %   score 30 %   update 50 %" in text
        assert bits(fold.recent_bits_per_byte) in text


def test_the_screen_says_on_which_prefix_the_baselines_stand() -> None:
    batch = records()
    more = {"kind": "scored", "bits": 800.0, "n_bytes": 100_000, "n_tokens": 1, "documents": []}
    text = "\n".join(shown(folded([*batch, more]), 100, 30))
    assert "first 128 KB" in without_colours(text)


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_hostile_text_cannot_reach_the_terminal(glyphs: Any) -> None:
    text = without_colours("\n".join(shown(folded(records()), 200, 60, glyphs)))
    assert ("文字" in text) != glyphs.ascii_only
    assert "\\x1b[31m\\x07[red]x[/] [/bold]\\r\\n\\u202egnp\\u200b\\udc80 \\x9b2J" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.count("\n") <= 60


def test_printable_changes_nothing_that_is_harmless() -> None:
    assert printable("naïve 文字 [red] {x}") == "naïve 文字 [red] {x}"
    assert printable("naïve", ascii_only=True) == "na\\xefve"


def test_a_cost_that_is_not_a_number_does_not_break_the_screen() -> None:
    bad = {"kind": "scored", "bits": math.nan, "n_bytes": 128, "n_tokens": 128, "documents": [[0, math.nan, 128]]}
    fold = folded([*records(10), bad, *records(10)[1:]])
    assert shown(fold, 80, 24)
    assert json.dumps(fold.summary(), allow_nan=False)


def test_a_falling_curve_is_drawn_falling() -> None:
    costs = [{"kind": "scored", "bits": 512 * (8 - i / 50), "n_bytes": 512, "n_tokens": 1} for i in range(200)]
    lines = without_colours("\n".join(shown(folded(costs), 120, 40))).split("\n")
    rows = [i for i, line in enumerate(lines) if re.search("[\u2800-\u28ff]", line)]
    first = [re.search("[\u2800-\u28ff]", lines[i]).start() for i in rows]  # type: ignore[union-attr]
    assert len(rows) > 8
    assert first == sorted(first)


def test_the_live_view_runs_in_its_thread_and_leaves_the_last_frame() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=30, force_terminal=True)
    before = set(threading.enumerate())
    with LiveView(console) as view:
        (drawing,) = set(threading.enumerate()) - before
        for record in records():
            view.take(record)
    drawing.join(timeout=5)
    assert not drawing.is_alive()
    text = out.getvalue()
    during, _, after = text.rpartition("\x1b[?1049l")  # where the alternate screen is left
    assert "\x1b[?1049h" in during
    assert "\x1b[?25h" in text
    assert bits(folded(records()).bits_per_byte) in after


def test_the_live_view_falls_back_to_ascii() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    with LiveView(Console(file=out, width=80, height=24, force_terminal=True)) as view:
        for record in records():
            view.take(record)
    out.flush()
    assert b"this run" in raw.getvalue()


def test_the_live_view_goes_on_from_what_a_resumed_run_knows() -> None:
    fold = folded(records())
    out = io.StringIO()
    with LiveView(Console(file=out, width=80, height=24, force_terminal=True), fold=fold):
        pass
    assert bits(fold.bits_per_byte) in out.getvalue()


def test_the_plain_view_says_a_line_now_and_then() -> None:
    out, err = io.StringIO(), io.StringIO()
    with PlainView(out, err) as view:
        for record in records(2500):
            view.take(record)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 5 + 1  # what runs; 50 seconds; the end
    assert lines[-1] == status_line(folded(records(2500)))
    assert "PPMd 2.345, xz 3.234, unigram 4.812, uniform 8.000" in lines[-1]
    assert err.getvalue() == f"warning: look at {printable(HOSTILE)}\n"
    assert all(c.isprintable() for line in lines for c in line)


def test_the_json_view_repeats_every_record() -> None:
    out, err = io.StringIO(), io.StringIO()
    with JsonView(out, err) as view:
        for record in records():
            view.take(record)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == records()
    assert err.getvalue() == f"warning: look at {printable(HOSTILE)}\n"


def test_the_json_view_writes_only_json() -> None:
    out = io.StringIO()
    with JsonView(out) as view:
        view.take({"kind": "update", "seq": 1, "gradient_norm": math.inf, "parts": [math.nan, 1.0]})
    assert out.getvalue() == '{"kind":"update","seq":1,"gradient_norm":null,"parts":[null,1.0]}\n'


def test_all_views_have_one_interface() -> None:
    silent = Console(file=io.StringIO(), width=80, height=24)
    views: list[View] = [LiveView(silent), PlainView(io.StringIO(), io.StringIO()), JsonView(io.StringIO())]
    for view in views:
        with view as entered:
            entered.take(records(1)[0])


def test_numbers_for_people() -> None:
    assert [amount(v, "B") for v in (0, 7, 999, 1000, 65_536, 999_600, 1_115_394, 3.2e9)] == [
        *("0 B", "7 B", "999 B", "1.00 KB", "65.5 KB", "1.00 MB", "1.12 MB", "3.20 GB")
    ]
    assert amount(35_993_088) == "36.0 M"
    assert duration(3723.9) == "1:02:03"
    assert ratio(2.2, 2.0, "xz") == "10.0 % over xz"
    assert ratio(1.8, 2.0, "xz") == "10.0 % under xz"
    assert bits(math.nan) == bits(None) == "-"


def test_the_source_says_what_it_does_and_drops_in_two_lines_at_most() -> None:
    fold = Fold()
    drops = {"near_duplicate": 43, "robots\x1b[31m": 41, "short": 1, "language": 5}
    said = {"pages": 482, "redirects": 0, "pages_per_s": 12.61, "queued": 2_490, "hosts": 1, "drops": drops}
    fold.take({"kind": "source", "at_s": 1.0, "said": said})
    for width in (20, 80, 120):
        lines = [line.plain for line in frame(fold, width, 40, UNICODE)]
        assert all(len(line) <= width for line in lines)
        [first] = [i for i, line in enumerate(lines) if line.startswith(" source: ")]
        told = " ".join(lines[first : first + 2])
        assert "pages 482" in told
        assert "redirects" not in told, "nothing happened, nothing to say"
        if width >= 80:
            assert "dropped 90 (near duplicate 43, robots\\x1b[31m 41, language 5)" in told
            assert "pages/s 12.6 · queued 2.49 K · hosts 1" in told

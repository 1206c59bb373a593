"""What a person or a program sees of a crawl that feeds no learner."""

import io
import json
from typing import Any

from rich.console import Console

from livelm.telemetry.progress import CrawlJson, CrawlLines, CrawlScreen, crawl_line


def progress(elapsed_s: float, *, done: bool = False) -> dict[str, Any]:
    return {
        "written": 12,
        "text_bytes": 34_000,
        "elapsed_s": elapsed_s,
        "done": done,
        "pages_per_s": 3.21,
        "queued": 5,
        "hosts": 2,
        "in_flight": 1,
        "drops": {"robots": 3, "\x1b[2Jspam": 9, "short": 1, "language": 2},
    }


def test_a_line_says_what_was_written_and_why_pages_were_dropped() -> None:
    line = crawl_line(progress(61))
    assert line.startswith("0:01:01  12 pages, 34.0 KB written, 3.2 pages/s, 5 queued on 2 hosts, 15 dropped")
    assert "(\\x1b[2Jspam 9, robots 3, language 2)" in line, "the commonest first, nothing that moves the cursor"


def test_plain_lines_come_every_ten_seconds_and_at_the_end() -> None:
    out = io.StringIO()
    view = CrawlLines(out)
    for second in range(25):
        view.take(progress(second))
    view.take(progress(25, done=True))
    assert [line[:7] for line in out.getvalue().splitlines()] == ["0:00:10", "0:00:20", "0:00:25"]


def test_json_is_one_object_a_line() -> None:
    out = io.StringIO()
    view = CrawlJson(out)
    view.take(progress(1))
    view.take(progress(2, done=True))
    assert [json.loads(line)["done"] for line in out.getvalue().splitlines()] == [False, True]


def test_the_screen_shows_speed_queue_and_reasons() -> None:
    out = io.StringIO()
    view = CrawlScreen(Console(file=out, width=100, force_terminal=True))
    with view.screen():
        view.take(progress(61))
    assert all(word in out.getvalue() for word in ("12 pages", "3.2 pages/s", "2 hosts", "robots"))
    assert "\x1b[2J" not in out.getvalue()

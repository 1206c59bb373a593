"""Ways to watch a crawl that feeds no learner: a live screen, a plain line now and then, or JSON."""

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from livelm.telemetry.frame import amount, duration, printable

PLAIN_EVERY_S = 10.0
N_DROPS = 8


class CrawlScreen:
    """Redrawn with every progress; the last picture stays."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(), auto_refresh=False)

    def take(self, progress: Mapping[str, Any]) -> None:
        """Show it."""
        self._live.update(crawl_table(progress), refresh=True)

    def screen(self) -> AbstractContextManager[Any]:
        """What must be open while it is drawn."""
        return self._live


class CrawlLines:
    """A line every ten seconds and at the end."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out, self._next_s = out or sys.stdout, PLAIN_EVERY_S

    def take(self, progress: Mapping[str, Any]) -> None:
        """Write a line if it is time for one."""
        if progress["elapsed_s"] < self._next_s and not progress["done"]:
            return
        self._next_s = progress["elapsed_s"] + PLAIN_EVERY_S
        self._out.write(crawl_line(progress) + "\n")
        self._out.flush()

    def screen(self) -> AbstractContextManager[Any]:
        """Nothing needs to be open."""
        return nullcontext()


class CrawlJson:
    """Every progress as one line of JSON."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def take(self, progress: Mapping[str, Any]) -> None:
        """Write it."""
        self._out.write(json.dumps(progress, separators=(",", ":")) + "\n")
        self._out.flush()

    def screen(self) -> AbstractContextManager[Any]:
        """Nothing needs to be open."""
        return nullcontext()


def crawl_line(progress: Mapping[str, Any]) -> str:
    """One line: what was written, how fast, what is left, what was dropped."""
    drops = progress.get("drops", {})
    parts = [
        f"{duration(progress['elapsed_s'])}  {progress['written']} pages",
        f"{amount(progress['text_bytes'], 'B')} written",
        f"{progress.get('pages_per_s', 0):.1f} pages/s",
        f"{progress.get('queued', 0)} queued on {progress.get('hosts', 0)} hosts",
        f"{sum(drops.values())} dropped",
    ]
    worst = ", ".join(f"{printable(name)} {n}" for name, n in _commonest(drops, 3))
    return ", ".join(parts) + (f" ({worst})" if worst else "")


def crawl_table(progress: Mapping[str, Any]) -> Table:
    """The same as a table, with more of the reasons."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black")
    table.add_column()
    rows = {
        "written": f"{progress['written']:,} pages, {amount(progress['text_bytes'], 'B')} of text",
        "speed": f"{progress.get('pages_per_s', 0):.1f} pages/s",
        "queue": f"{progress.get('queued', 0):,} addresses on {progress.get('hosts', 0):,} hosts, "
        f"{progress.get('in_flight', 0)} in flight",
        "read": f"{amount(progress.get('wire_bytes', 0), 'B')} in {progress.get('requests', 0):,} requests",
        "waited": f"{progress.get('wait_for_web_s', 0):.1f} s for the web, "
        f"{progress.get('wait_for_learner_s', 0):.1f} s for the target",
        "time": duration(progress["elapsed_s"]) + ("  done" if progress["done"] else ""),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    for i, (reason, n) in enumerate(_commonest(progress.get("drops", {}), N_DROPS)):
        table.add_row("" if i else "dropped", Text(f"{n:>8,}  {printable(reason)}"))
    return table


def _commonest(drops: Mapping[str, int], n: int) -> list[tuple[str, int]]:
    return sorted(drops.items(), key=lambda item: (-item[1], item[0]))[:n]

"""Does a run over an endless stream hold constant memory? As many bytes as an hour of the tiny model reads.

The model is narrow, so that the hour passes in minutes; what could grow (feed, spool, journal, fold, views,
checkpoints) is all there: many documents, a spool that must forget, a live view.
"""

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.record import keep
from livelm.config import load_recipe
from livelm.run import run_session, start
from livelm.session import Stop
from livelm.telemetry.terminal import LiveView

SETTINGS = [
    "run.threads=1",
    "memory.name=none",
    "model.name=transformer",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context=64",
    "model.ngram_rows=4096",
    "feed.update_tokens=128",
    "checkpoint.every_s=5",
    "spool.segment_bytes=262144",
    "spool.max_bytes=2097152",
]


class Memory:
    """Keeps (bytes graded, bytes resident) once a second."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.samples: list[tuple[int, int]] = []

    def take(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "scored":
            self.n_bytes += record["n_bytes"]
        if record["kind"] == "memory":
            self.samples.append((self.n_bytes, record["resident_bytes"]))


def write_stream(descriptor: int, n_bytes: int) -> None:
    """Words of many kinds into a pipe, as fast as they are taken."""
    chooser = random.Random(0)
    words = [bytes(chooser.randrange(97, 123) for _ in range(chooser.randint(2, 9))) for _ in range(5000)]
    with open(descriptor, "wb") as pipe:
        left = n_bytes
        while left > 0:
            line = b" ".join(chooser.choices(words, k=12)) + b"\n"
            pipe.write(line)
            left -= len(line)


def main() -> None:
    """Parse the command line, run, compare the first tenth (after a warm-up) with the last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=18_000_000, help="an hour at 5 KB/s")
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    writer = threading.Thread(target=write_stream, args=(writing, arguments.bytes), daemon=True)
    writer.start()
    memory, begin = Memory(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        session = start(load_recipe(None, "tiny", [*SETTINGS, 'source.uris=["-"]']), Path(folder) / "run", Stop())
        view = LiveView(Console(file=nowhere, force_terminal=True, width=120, height=40))
        with view:
            run_session(session, [memory, view])
        spool = sum(p.stat().st_size for p in (Path(folder) / "run" / "spool").glob("*"))
    tenth = max(1, len(memory.samples) // 10)
    early = statistics.median(r for _, r in memory.samples[tenth : 2 * tenth])
    late = statistics.median(r for _, r in memory.samples[-tenth:])
    growth = late / early - 1
    print(
        f"{memory.n_bytes:,} bytes in {time.monotonic() - begin:.0f} s: resident {early / 1e6:.1f} MB in the second "
        f"tenth, {late / 1e6:.1f} MB in the last: growth {100 * growth:+.2f} %; spool {spool / 1e6:.2f} MB at the end"
    )
    if arguments.keep:
        figures = {"growth": round(growth, 5), "early_mb": early / 1e6, "late_mb": late / 1e6, "bytes": memory.n_bytes}
        keep("memory", "Does a run over an endless stream hold constant memory?", figures)


if __name__ == "__main__":
    main()

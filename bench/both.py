"""What a network adds to the count memory: one pass, and at several sizes the mixture beside its parts.

Everything runs through livelm as a user runs it. `gain` is by how much the mixture is under the counts alone, over all
bytes up to there and over those since the last mark; the counts are the very ones of the same run, which no network
changes.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.learn import parse_runs
from bench.record import keep
from livelm.config import load_recipe
from livelm.run import run_session, start
from livelm.session import Stop

MARKS = (10_000, 30_000, 100_000, 256_000, 500_000, 1_000_000, 4_000_000, 10_000_000)


class Watch:
    """Sums of what was scored, kept at each mark and at the end."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._sums = dict.fromkeys(("n_bytes", "bits", "counts_bits", "network_bits"), 0.0)
        self._before = dict(self._sums)

    def take(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        if record["kind"] != "scored":
            return
        n = self._sums["n_bytes"]
        for name in self._sums:
            self._sums[name] += record.get(name, record["bits"])
        if any(n < mark <= self._sums["n_bytes"] for mark in MARKS):
            self.keep()

    def keep(self) -> None:
        """A row for what was read up to now."""
        now, before = self._sums, self._before
        if now["n_bytes"] == before["n_bytes"]:
            return
        n = now["n_bytes"]
        since = (now["bits"] - before["bits"]) / max(1e-9, now["counts_bits"] - before["counts_bits"])
        self.rows.append(
            {
                "n_bytes": int(n),
                **{
                    name.removesuffix("bits") + "bits_per_byte": round(now[name] / n, 4)
                    for name in now
                    if name != "n_bytes"
                },
                "gain": round(1 - now["bits"] / now["counts_bits"], 4),
                "gain_since": round(1 - since, 4),
            }
        )
        print(json.dumps(self.rows[-1]), flush=True)
        self._before = dict(now)


def run_once(recipe_file: Path | None, size: str, changes: list[str]) -> tuple[list[dict[str, float]], float]:
    """One run: its rows, and bytes per processor second of everything in this process."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch()
        session = start(load_recipe(recipe_file, size, changes), Path(folder) / "run", Stop())
        begin = time.process_time()
        run_session(session, [watch])  # type: ignore[list-item]  # no screen to enter
        seconds = time.process_time() - begin
        watch.keep()
    return watch.rows, watch.rows[-1]["n_bytes"] / seconds


def main() -> None:
    """Run every seed, print its rows as they come; keep the medians."""
    arguments, recipe, changes = parse_runs(__doc__)
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        found, speed = run_once(recipe, arguments.size, [*changes, f"run.seed={seed}"])
        rows += [{"seed": seed, "bytes_per_cpu_s": round(speed), **row} for row in found]
        print(f"seed {seed}: {speed:,.0f} bytes per processor second", flush=True)
    last = [row for row in rows if row["n_bytes"] == rows[-1]["n_bytes"]]
    names = ("bits_per_byte", "counts_bits_per_byte", "network_bits_per_byte", "gain", "bytes_per_cpu_s")
    figures = {name: statistics.median(row[name] for row in last) for name in names}
    print(json.dumps(figures))
    if arguments.keep:
        keep(arguments.keep, "What does a network add to the count memory?", figures, rows)


if __name__ == "__main__":
    main()

"""Does refusing to learn from garbage help the text after it? Text, garbage, text; with the gate, without, and clean.

The arms of a seed share what was learned from the text before the garbage, and grade the very same bytes after it.
Each seed has its own text and its own garbage.
"""

import argparse
import copy
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import keep
from bench.signals import stretch
from livelm.config import Recipe, load_recipe
from livelm.feed import batches
from livelm.learn import Learner
from livelm.parts import Parts, build_parts
from livelm.sources import open_sources
from livelm.telemetry.signals.monitor import Monitor
from livelm.types import Batch, Scored

GATES = {
    "high": ["signals.gate=complexity"],
    "low": ["signals.gate=complexity", "signals.gate_close=0.08", "signals.gate_open=0.15"],
    "disorder": ["signals.gate=disorder", "signals.gate_close=0.74", "signals.gate_open=0.72"],
}
"""The default against what has no order; against what only repeats; against what has none in a small alphabet too."""


@dataclass
class Tally:
    """Bits and bytes of the garbage and of the text after it, and updates refused in each."""

    garbage_bits: float = 0.0
    after_bits: float = 0.0
    after_bytes: int = 0
    refused: int = 0
    refused_after: int = 0

    def add(self, scored: Scored, after: bool, refused: bool) -> None:
        if after:
            self.after_bits += scored.bits
            self.after_bytes += scored.n_bytes
        else:
            self.garbage_bits += scored.bits
        self.refused += refused
        self.refused_after += refused and after


class Trial:
    """One seed: the text before is learned once, then every arm goes on from there."""

    def __init__(self, recipe: Recipe, text: bytes, n_before: int, folder: Path) -> None:
        self._recipe, self._text, self._n_before, self._folder = recipe, text, n_before, folder
        self._parts = build_parts(recipe)
        learner, monitor = self._fresh(self._parts)
        for batch in self._batches(text[:n_before]):
            scored = learner.score(batch)
            monitor.take(scored)
            learner.update(scored)
            self._n_batches = batch.index
            if self._n_batches >= n_before // recipe.feed.update_tokens - 1:
                break  # the batch that reaches into the garbage belongs to the arms
        self._state = copy.deepcopy((learner.state_dict(), monitor.state_dict()))

    def arm(self, garbage: bytes, gated: bool) -> Tally:
        """Grade garbage and the text after it."""
        learner, monitor = self._fresh(self._parts)
        learner.load_state_dict(copy.deepcopy(self._state[0]))
        monitor.load_state_dict(copy.deepcopy(self._state[1]))
        tally, begin = Tally(), self._n_before + len(garbage)
        n_bytes = 0
        text = self._text[: self._n_before] + garbage + self._text[self._n_before :]
        for batch in self._batches(text):
            at = n_bytes
            n_bytes += batch.n_graded_bytes
            if batch.index <= self._n_batches:
                continue
            scored = learner.score(batch)
            monitor.take(scored)
            refusal = monitor.refusal if gated else None
            tally.add(scored, at >= begin, refusal is not None)
            if refusal is None:
                learner.update(scored)
            else:
                learner.refuse(scored, refusal)
        return tally

    def _fresh(self, parts: Parts) -> tuple[Learner, Monitor]:
        monitor = parts.monitor()
        assert monitor is not None
        learner = parts.learner(lambda: 0.0)
        assert isinstance(learner, Learner)
        return learner, monitor

    def _batches(self, text: bytes) -> Iterator[Batch]:
        path = self._folder / "stream.txt"
        path.write_bytes(text)
        return batches(open_sources([str(path)]), self._parts.tokenizer, self._recipe.feed, None)


def measure(arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The rows of one seed."""
    n_text = arguments.before + arguments.after
    text = arguments.file.read_bytes()[seed * n_text : (seed + 1) * n_text]
    changes = [
        "memory.name=none",
        "signals.window_bytes=512",
        f"run.seed={seed}",
        *GATES[arguments.gate],
        *arguments.changes,
    ]
    recipe = load_recipe(None, "tiny", changes)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(recipe, text, arguments.before, Path(folder))
        clean = trial.arm(b"", gated=False)
        for kind in arguments.kinds:
            garbage = stretch(kind, arguments.garbage, random.Random(seed))
            for gated in (False, True):
                t = trial.arm(garbage, gated)
                # the first batch after the garbage may differ by a few bytes, since garbage moves the boundaries
                row = {"seed": seed, "garbage": kind, "gated": gated, "clean": clean.after_bits / clean.after_bytes}
                row |= {"after": t.after_bits / t.after_bytes, "in_garbage": t.garbage_bits / len(garbage)}
                row |= {"refused": t.refused, "refused_after": t.refused_after}
                rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Parse the command line, run every seed, print what the gate gains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="any text of some hundred kilobytes")
    parser.add_argument("--kinds", nargs="+", default=["random", "base64"], help="classes of bench.signals")
    parser.add_argument("--gate", choices=sorted(GATES), default="high")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--before", type=int, default=40_000)
    parser.add_argument("--garbage", type=int, default=20_000)
    parser.add_argument("--after", type=int, default=30_000)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    rows = [row for seed in arguments.seeds for row in measure(arguments, seed)]
    figures = {}
    for kind in arguments.kinds:
        open_, gated = ([r for r in rows if r["garbage"] == kind and r["gated"] is g] for g in (False, True))
        gains = [a["after"] - b["after"] for a, b in zip(open_, gated, strict=True)]
        harm = [a["after"] - a["clean"] for a in open_]
        figures[kind] = {"harm": round(statistics.mean(harm), 4), "gain": round(statistics.mean(gains), 4)}
        figures[kind]["gain_sd"] = round(statistics.stdev(gains), 4) if len(gains) > 1 else None
        print(f"{kind}: harm of the garbage {figures[kind]['harm']:+.4f} bits per byte after it, the gate gains "
              f"{figures[kind]['gain']:+.4f} (sd {figures[kind]['gain_sd']})")  # fmt: skip
    if arguments.keep:
        question = "Does a gate before learning help the text that follows garbage?"
        keep(f"gate-{arguments.gate}", question, figures, rows)


if __name__ == "__main__":
    main()

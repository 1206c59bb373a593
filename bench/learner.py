"""What a setting of the learner is worth: quality by bytes, speed in turns, and from both quality at equal time.

Quality as a function of bytes does not depend on the clock, so it can be measured on a busy machine; speed cannot, so
it is measured by itself, briefly, in turns. `times` comes first, `curves` reads each arm as far as it would have come
while the size's own settings read --for, `tables` puts them together: paired differences by seed, mean ± 95 %
(Student's t). Each seed has its own stretch of the text. After a pass the bytes that follow its stretch are graded by
frozen weights (held). `averages` grades with running means of the weights beside the learner.

python -m bench.learner times    update TEXT --rows FILE
python -m bench.learner curves   update TEXT [TEXT ...] --rows FILE
python -m bench.learner tables   update --rows FILE --keep SLUG
python -m bench.learner averages TEXT [TEXT ...] --rows FILE
python -m bench.learner curves   --arm model.rank=4 --arm 'model.rank=8 model.gate=true' TEXT --rows FILE
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from bench.learner_arms import ARMS, OWN, Arm, Average, settings
from bench.record import keep
from livelm.config import load_recipe, parse_budget
from livelm.evaluate.intervals import interval
from livelm.feed import batches
from livelm.learn import Learner
from livelm.models.ops.head import nats_of
from livelm.parts import build_parts
from livelm.sources import open_sources
from livelm.types import LN_2, Batch

STRETCH, HELD = 300_000, 32_768
"""Bytes of a text that a seed may read, and bytes after them that are held out."""
MARK = 2048
"""Bytes between two points of a curve."""
READ_AT_ONCE = 256
SPANS = (10, 30, 100, 300)
"""Updates over which weights are averaged."""

Row = dict[str, Any]


class Pass:
    """One arm that reads a text, as far as it is told each time."""

    def __init__(self, arm: Arm, size: str, text: bytes, changes: list[str]) -> None:
        recipe = load_recipe(None, size, ["memory.name=none", *changes, *arm.changes])
        self.parts = build_parts(recipe)
        learner = self.parts.learner(lambda: 0.0)
        assert isinstance(learner, Learner)
        self.learner, self._arm = learner, arm
        arm.edit(learner)
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "text"
        path.write_bytes(text)
        self._feed = batches(open_sources([str(path)]), self.parts.tokenizer, recipe.feed, None)
        self.n_bytes, self.bits, self.wall_s, self.processor_s = 0, 0.0, 0.0, 0.0
        self.curve: list[tuple[int, float]] = [(0, 0.0)]
        self.beside: Beside | None = None

    def read(self, n_bytes: int) -> None:
        """Score and learn so many bytes more (whole updates); the text must not end before."""
        end = self.n_bytes + n_bytes
        torch.set_num_threads(self.parts.recipe.run.threads or os.cpu_count() or 1)
        while self.n_bytes < end:
            batch = next(self._feed)
            if self.beside is not None:
                self.beside.grade(self.learner, batch)
            wall, processor = time.perf_counter(), time.process_time()
            scored = self.learner.score(batch)
            self.learner.update(scored)
            self._arm.after_update(self.learner)
            self.wall_s += time.perf_counter() - wall
            self.processor_s += time.process_time() - processor
            self.n_bytes, self.bits = self.n_bytes + scored.n_bytes, self.bits + scored.bits
            if self.n_bytes // MARK > self.curve[-1][0] // MARK or self.n_bytes >= end:
                self.curve.append((self.n_bytes, self.bits))

    def cost(self, text: bytes, weights: dict[str, Tensor] | None = None) -> float:
        """Bits per byte of a text by the weights as they are (or others in their place), from a fresh state."""
        model: Any = self.learner.model
        targets = torch.tensor([self.parts.tokenizer.encode(text).ids.tolist()])
        inputs = torch.cat([torch.tensor([[self.parts.tokenizer.mark]]), targets[:, :-1]], dim=1)
        starts, state, nats = inputs == self.parts.tokenizer.mark, model.init_state(1), 0.0
        with torch.no_grad():
            for i in range(0, targets.shape[1], READ_AT_ONCE):
                j = slice(i, i + READ_AT_ONCE)
                found, state = by(weights or {}, model, inputs[:, j], starts[:, j], targets[:, j], state)
                nats += float(found.double().sum())
        return nats / LN_2 / len(text)


class Beside:
    """What a stream would have cost, had its batches been graded by averages of the weights."""

    def __init__(self, learner: Learner) -> None:
        chosen = [(n, tables) for n in SPANS for tables in (False, True)]
        self.means = {
            f"over {n} updates{', with n-grams' if tables else ''}": Average(learner, n, tables=tables)
            for n, tables in chosen
        }
        self.bits, self._lanes = dict.fromkeys(self.means, 0.0), {}

    def grade(self, learner: Learner, batch: Batch) -> None:
        """Before the learner scores it; the averages take in the last update first."""
        inputs, starts = learner._inputs(batch)
        for name, mean in self.means.items():
            mean.take()
            with torch.no_grad():
                lanes = self._lanes.get(name, learner.lanes)
                nats, self._lanes[name] = by(mean.weights, learner.model, inputs, starts, batch.tokens, lanes)
            self.bits[name] += float((nats.double() * batch.graded).sum()) / LN_2


def by(weights: dict[str, Tensor], model: Any, inputs: Tensor, starts: Tensor, targets: Tensor, state: Any) -> Any:
    """Nats of the targets, and the state after them, by `weights` in place of the model's own."""
    logits, state = functional_call(model, weights, (inputs, starts, state))
    return nats_of(logits, targets), state


def times(arguments: argparse.Namespace) -> Iterator[Row]:
    """All arms in turns of a few updates, in one process; the ratio to the size's own turn of the same round."""
    text = arguments.texts[0].read_bytes()
    chosen = {name: arm for name, arm in arms(arguments).items() if not arm.pace}
    passes = {name: Pass(arm, arguments.size, text, arguments.changes) for name, arm in chosen.items()}
    for each in passes.values():
        each.read(arguments.warm_up)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for _ in range(arguments.turns):
        for name, each in passes.items():
            wall, processor, n = each.wall_s, each.processor_s, each.n_bytes
            each.read(arguments.turn)
            done = each.n_bytes - n
            found[name].append(((each.wall_s - wall) / done, (each.processor_s - processor) / done))
    own = found[OWN]
    for name, turns in found.items():
        yield {
            "kind": "time",
            "size": arguments.size,
            "arm": name,
            "times_as_fast": statistics.median(a[0] / b[0] for a, b in zip(own, turns, strict=True)),
            "processor_ratio": statistics.median(b[1] / a[1] for a, b in zip(own, turns, strict=True)),
            "bytes_per_s": 1 / statistics.median(turn[0] for turn in turns),
        }


def curves(arguments: argparse.Namespace) -> Iterator[Row]:
    """Every arm, text and seed that is not among the rows yet: the curve, and what held-out bytes cost at the end.

    Held-out bytes are graded twice: at equal bytes, and at equal time, as far as the text goes.
    """
    known = {(r["text"], r["arm"], r["seed"]) for r in arguments.known if r["kind"] == "curve"}
    speeds = {r["arm"]: r["times_as_fast"] for r in arguments.known if r["kind"] == "time"}
    for seed, path in ((seed, path) for seed in arguments.seeds for path in arguments.texts):
        text, held_out, changes = _stretch(path, seed, arguments)
        for name, arm in arms(arguments).items():
            if (path.parent.name, name, seed) in known:
                continue
            there = int(arguments.n_read * speeds.get(arm.pace or name, 1.0))
            reads, held = Pass(arm, arguments.size, text, changes), {}
            for mark in sorted({arguments.n_read, min(there, STRETCH - 4096)}):
                reads.read(mark - reads.n_bytes)
                held[str(mark)] = round(reads.cost(held_out), 5)
            row = {"kind": "curve", "size": arguments.size, "text": path.parent.name, "arm": name, "seed": seed}
            curve = [(n, round(bits, 1)) for n, bits in reads.curve]
            bits = round(bits_at(curve, arguments.n_read), 4)
            yield {**row, "bits": bits, "held": held, "processor_s": round(reads.processor_s, 2), "curve": curve}


def averages(arguments: argparse.Namespace) -> Iterator[Row]:
    """Each batch graded by the weights that learn and by their averages; what comes after the stretch likewise."""
    for seed, path in ((seed, path) for seed in arguments.seeds for path in arguments.texts):
        text, held_out, changes = _stretch(path, seed, arguments)
        reads = Pass(Arm(), arguments.size, text, changes)
        beside = reads.beside = Beside(reads.learner)
        held = []
        for part in range(1, 5):
            reads.read(arguments.n_read * part // 4 - reads.n_bytes)
            if part > 1:  # a single moment says little: what was learned last weighs much
                means = [reads.cost(held_out, mean.weights) for mean in beside.means.values()]
                held.append([reads.cost(held_out), *means])
        costs = [statistics.mean(column) for column in zip(*held, strict=True)]
        totals = [reads.bits, *beside.bits.values()]
        for name, cost, total in zip([OWN, *beside.means], costs, totals, strict=True):
            row = {"kind": "average", "size": arguments.size, "text": path.parent.name, "arm": name, "seed": seed}
            yield {**row, "held": round(cost, 5), "bits": round(total / reads.n_bytes, 5)}


def _stretch(path: Path, seed: int, arguments: argparse.Namespace) -> tuple[bytes, bytes, list[str]]:
    """What a seed reads, what is held out after it, and the settings of its run."""
    text = path.read_bytes()[seed * (STRETCH + HELD) :]
    changes = [f"run.seed={seed}", "run.threads=1", *arguments.changes]
    return text[:STRETCH], text[STRETCH : STRETCH + HELD], changes


def arms(arguments: argparse.Namespace) -> dict[str, Arm]:
    """The size's own settings, then those asked for."""
    found = {name: arm for question in arguments.questions for name, arm in ARMS[question].items()}
    if arguments.only:
        found = {name: arm for name, arm in found.items() if name in arguments.only}
    return {OWN: Arm()} | found | {given: settings(*given.split()) for given in arguments.arm}


def bits_at(curve: list[tuple[int, float]], n_bytes: float) -> float:
    """Bits per byte of the first `n_bytes`, between two points of the curve where it must be."""
    for (a, before), (b, after) in pairwise(curve):
        if a < n_bytes <= b:
            return (before + (after - before) * (n_bytes - a) / (b - a)) / n_bytes
    raise SystemExit(f"a curve ends at {curve[-1][0]:,} bytes, before {n_bytes:,.0f}")


def tables(arguments: argparse.Namespace) -> Iterator[Row]:
    """One line for each text and arm; `more` is against the size's own settings, of the same seed."""
    speeds = {r["arm"]: r for r in arguments.known if r["kind"] == "time"}
    kinds = {"curve": arms(arguments), "average": {r["arm"]: Arm() for r in arguments.known if r["kind"] == "average"}}
    for kind, chosen in kinds.items():
        found = [r for r in arguments.known if r["kind"] == kind]
        if kind == "average" and arguments.questions:
            continue
        for text in dict.fromkeys(r["text"] for r in found):
            own = {r["seed"]: r for r in found if (r["text"], r["arm"]) == (text, OWN)}
            for name, arm in chosen.items():
                mine = {r["seed"]: r for r in found if (r["text"], r["arm"]) == (text, name) and r["seed"] in own}
                if mine and kind == "curve":
                    speed = speeds.get(arm.pace or name)
                    yield {"text": text, "arm": name, "seeds": len(mine), **_line(mine, own, speed, arguments.n_read)}
                elif mine:
                    line = {k: _more([row[k] - own[s][k] for s, row in mine.items()]) for k in ("bits", "held")}
                    mean = {k: round(statistics.mean(row[k] for row in mine.values()), 4) for k in ("bits", "held")}
                    more = {f"{k}_more": value for k, value in line.items()}
                    yield {"text": text, "arm": name, "seeds": len(mine), **mean, **more}


def _line(mine: dict[int, Row], own: dict[int, Row], speed: Row | None, n_read: int) -> Row:
    bits, at = {s: bits_at(row["curve"], n_read) for s, row in mine.items()}, str(n_read)
    before = {s: bits_at(own[s]["curve"], n_read) for s in mine}
    line: Row = {"bits": round(statistics.mean(bits.values()), 4), "more": _more([bits[s] - before[s] for s in mine])}
    line["held_more"] = _more([row["held"][at] - own[s]["held"][at] for s, row in mine.items()])
    if speed is None:
        return line
    ratio = speed["times_as_fast"]
    there = min(n_read * ratio, *(row["curve"][-1][0] for row in mine.values()))
    late = {s: bits_at(row["curve"], there) for s, row in mine.items()}
    last = {s: min(row["held"].items(), key=lambda held: abs(int(held[0]) - there))[1] for s, row in mine.items()}
    return {
        **line,
        "times_as_fast": round(ratio, 2),
        "processor": round(speed["processor_ratio"], 2),
        "more_at_equal_time": _more([late[s] - before[s] for s in mine]),
        "held_more_at_equal_time": _more([last[s] - own[s]["held"][at] for s in mine]),
    }


def _more(differences: list[float]) -> str:
    found = interval(differences)
    return f"{found.mean:+.4f}" + ("" if found.half is None else f" ± {found.half:.4f}")


def main() -> None:
    """Parse the command line; add rows, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("times", "curves", "averages", "tables"))
    parser.add_argument("inputs", nargs="*", help="questions (" + ", ".join(ARMS) + "), then texts")
    parser.add_argument("--arm", action="append", default=[], help="settings of one more arm, such as 'learn.clip=2'")
    parser.add_argument("--only", action="append", default=[], help="of the questions' arms only this one")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="settings of all arms")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--for", dest="budget", default="48KB", help="what the size's own settings read")
    parser.add_argument("--turn", type=int, default=3072, help="bytes of a turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=12_288, help="bytes before the first turn")
    parser.add_argument("--rows", type=Path, required=True, help="rows are added to this file; those in it count")
    parser.add_argument("--keep", metavar="SLUG", help="keep a record of the table under this name")
    arguments = parser.parse_args()
    arguments.questions = [i for i in arguments.inputs if i in ARMS]
    arguments.texts = [Path(i) for i in arguments.inputs if i not in ARMS]
    arguments.n_read = parse_budget(arguments.budget).n_bytes or 0
    rows = [json.loads(line) for line in arguments.rows.open()] if arguments.rows.exists() else []
    arguments.known = [row for row in rows if row["size"] == arguments.size]
    made = []
    for row in {"times": times, "curves": curves, "averages": averages, "tables": tables}[arguments.what](arguments):
        made.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "curve"}), flush=True)
        if arguments.what != "tables":
            with arguments.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if arguments.keep:
        asked = ", ".join(arguments.questions or arguments.arm) or "the average of weights"
        question = f"What does another setting of the learner gain: {asked} (--size {arguments.size})?"
        keep(arguments.keep, question, {"read_by_own": arguments.budget}, made)


if __name__ == "__main__":
    main()

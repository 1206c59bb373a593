"""The contest: a pilot that chooses learning rates, then every model with every seed, turn by turn."""

import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import monotonic

from livelm.compare.arms import Arm, sketch
from livelm.compare.rider import Rider
from livelm.compare.rules import Equal, Rules
from livelm.compare.widths import match_parameters
from livelm.config import Budget, parse_budget
from livelm.errors import ConfigError, RunError
from livelm.evaluate.baselines import Baselines, measure_prefix
from livelm.session import Stop
from livelm.sources import open_sources
from livelm.telemetry.fold import Fold, fold_journal
from livelm.telemetry.graded import MAX_BYTES

TURN_S = 1.0
"""Seconds of a turn; a shared machine changes its speed by a third within seconds."""
N_TURNS = 10
"""Turns at least that a budget of seconds is divided into."""
PILOT_SEED = 1_000_003
"""No run that counts has it."""
SAMPLE_BYTES = 64 << 10
"""From so much of the stream it is known beforehand how many tokens a byte is."""
SAY_EVERY_S = 10.0


@dataclass(slots=True)
class Trial:
    """One rate of one arm in the pilot."""

    arm: str
    rate: float
    bits_per_byte: float
    n_bytes: int
    seconds: float


@dataclass(slots=True)
class Contest:
    """Runs it and keeps what came out; `run` yields sentences for people."""

    arms: list[Arm]
    rules: Rules
    folder: Path
    stop: Stop
    trials: list[Trial] = field(default_factory=list)
    runs: dict[str, list[Path]] = field(default_factory=dict)
    """For each arm the folders of the seeds that all arms finished."""
    partial: list[Path] = field(default_factory=list)
    """Runs of a seed that was interrupted: saved, but in no table unless there is nothing else."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the table must know."""

    def run(self) -> Iterator[str]:
        """Pilot, then the seeds one after another. Raises before anything runs when the stream does not allow it."""
        self._prepare()
        yield from self._describe()
        if self.rules.rates:
            yield from self._choose_rates()
        for seed in range(self.rules.seeds):
            if self.stop.reason is None:
                yield from self._run_seed(seed)
        if self.stop.reason is not None:
            n = min((len(paths) for paths in self.runs.values()), default=0)
            where = "their runs are saved and can be resumed" if self.partial else "nothing else was begun"
            self.notes.append(f"{self.stop.reason} after {n} of {self.rules.seeds} seeds; {where}.")
        if self.rules.seeds == 1:
            self.notes.append("One seed: there is no interval, and a difference may be luck. Give --seeds 3 or more.")

    def folds(self, marks: Sequence[int] = ()) -> dict[str, list[Fold]]:
        """The journals of the table by arm, one for each seed; exact at the `marks`."""
        runs = self.runs or {path.name.rpartition("-")[0]: [path] for path in self.partial}
        found = {name: [fold_journal(path / "journal.jsonl", marks) for path in paths] for name, paths in runs.items()}
        return {name: folds for name, folds in found.items() if all(fold.n_bytes for fold in folds)}

    def shared_bytes(self) -> int:
        """How many bytes every run of the table has graded."""
        return min((fold.n_bytes for folds in self.folds().values() for fold in folds), default=0)

    def baselines(self, sizes: Sequence[int]) -> dict[int, Baselines]:
        """The baselines of the stream's first bytes, for each of these sizes that was kept."""
        runs = [path for paths in self.runs.values() for path in paths] or self.partial
        kept = max((path / "graded.bytes" for path in runs), key=lambda path: path.stat().st_size)
        most = min(kept.stat().st_size, MAX_BYTES)
        return {n: measure_prefix(kept, n) for n in sorted({min(n, most) for n in sizes if n})}

    def _prepare(self) -> None:
        """Everything that can be wrong is found here; budgets and widths are settled."""
        limit = self.rules.limit()
        self.rules.pilot_limit()
        n_tokens = self._tokens_per_byte()
        if self.rules.equal is Equal.PARAMETERS:
            self.arms = match_parameters(self.arms)
        flops = [sketch(arm.recipe)[1].flops_per_token() * n for arm, n in zip(self.arms, n_tokens, strict=True)]
        budgets = [self.rules.budget] * len(self.arms)
        if self.rules.equal is Equal.FLOPS and limit.n_bytes is not None:
            budgets = [f"{max(1, round(limit.n_bytes * flops[0] / f))}B" for f in flops]
        self.arms = [
            arm.change({"run.budget": budget, "checkpoint.keep": 1})
            for arm, budget in zip(self.arms, budgets, strict=True)
        ]
        if self.folder.exists() and any(self.folder.iterdir()):
            raise RunError(f"{str(self.folder)!r} is not empty. Give another --out.")

    def _tokens_per_byte(self) -> list[float]:
        """Of each arm's tokenizer on the beginning of the stream."""
        recipe = self.arms[0].recipe
        source = open_sources(recipe.source.uris, recipe.source)
        try:
            if not (source.bounded and source.replayable):
                raise ConfigError(
                    f"{source.describe()}: every model must read the same stream from its beginning, so it must end "
                    "and be there to be read again. Keep it in a file first."
                )
            sample = bytearray()
            for document, _ in source.read(None):
                sample += document.text
                if len(sample) >= SAMPLE_BYTES:
                    break
        finally:
            source.close()
        text = bytes(sample[:SAMPLE_BYTES])
        return [len(sketch(arm.recipe)[0].encode(text).ids) / max(1, len(text)) for arm in self.arms]

    def _describe(self) -> Iterator[str]:
        for arm in self.arms:
            r = arm.recipe
            model = ", ".join(f"{key}={value}" for key, value in r.model.settings().items())
            yield (
                f"{arm.name}: {arm.origin}; tokenizer {r.tokenizer.name}, updates of {r.feed.update_tokens} tokens, "
                f"{r.optimizer.name}, {r.run.budget} for each seed; {model or 'defaults'}"
            )

    def _choose_rates(self) -> Iterator[str]:
        """The stated rule: of the grid, the rate with the fewest bits per byte over the pilot; the lower of equals."""
        grid, limit = self.rules.rates, self.rules.pilot_limit()
        if len(grid) == 1:
            self.arms = [arm.change({"optimizer.rate": grid[0]}) for arm in self.arms]
            yield f"every model learns at rate {grid[0]:g}"
            return
        size = f"{limit.seconds:g} s" if limit.seconds else f"{limit.n_bytes} bytes"
        tried = " ".join(f"{rate:g}" for rate in grid)
        yield f"pilot: rates {tried} for every model, {size} of the stream's beginning each, with a seed of its own"
        for rate in grid:  # all models at one rate take turns: as many processes as in the contest itself
            yield from self._pilot(rate, limit)
            if self.stop.reason is not None:
                return
        chosen = []
        for arm in self.arms:
            tried_here = [t for t in self.trials if t.arm == arm.name]
            best = min(tried_here, key=lambda t: (t.bits_per_byte, t.rate))
            edge = " (at the edge of the grid)" if best.rate in (grid[0], grid[-1]) else ""
            if edge:
                self.notes.append(f"{arm.name}: the best rate of the pilot, {best.rate:g}, is at the edge of the grid.")
            shown = ", ".join(f"{t.rate:g}: {t.bits_per_byte:.3f}" for t in tried_here)
            yield f"{arm.name}: {shown}; takes {best.rate:g}{edge}"
            chosen.append(arm.change({"optimizer.rate": best.rate}))
        self.arms = chosen
        spent = sum(t.seconds for t in self.trials)
        yield f"the pilot cost {spent:.0f} s of learning, which count for no model"

    def _pilot(self, rate: float, limit: Budget) -> Iterator[str]:
        folder = self.folder / "pilot"
        riders: list[Rider] = []
        try:
            for arm in self.arms:
                trial = arm.change({"optimizer.rate": rate, "run.seed": PILOT_SEED, "run.budget": ""})
                riders.append(Rider(f"{arm.name}, pilot", trial.recipe, folder / f"{arm.name}-{rate:g}"))
            for rider in riders:
                rider.ready()
            yield from self._take_turns(riders, limit, f"pilot at {rate:g}")
            if self.stop.reason is None:
                self.trials += [
                    Trial(arm.name, rate, rider.bits_per_byte, rider.n_bytes, rider.active_s)
                    for arm, rider in zip(self.arms, riders, strict=True)
                ]
        finally:
            for rider in riders:
                rider.drop()
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                self.folder.rmdir()  # empty: nothing has run yet

    def _run_seed(self, seed: int) -> Iterator[str]:
        riders: list[Rider] = []
        try:
            for arm in self.arms:
                recipe = arm.change({"run.seed": seed}).recipe
                riders.append(Rider(f"{arm.name}, seed {seed}", recipe, self.folder / f"{arm.name}-{seed}"))
            for rider in riders:
                rider.ready()
            yield from self._take_turns(riders, Budget(), f"seed {seed}")
            if self.stop.reason is not None:
                self.partial = [rider.out for rider in riders]
                return
            shared = min(*(rider.n_bytes for rider in riders), MAX_BYTES)
            measured = measure_prefix(riders[0].out / "graded.bytes", shared)
            for arm, rider in zip(self.arms, riders, strict=True):
                rider.close(measured)
                self.runs.setdefault(arm.name, []).append(rider.out)
                if rider.reason == "source ended":
                    self.notes.append(
                        f"{rider.label}: the stream ended after {rider.active_s:.0f} s, at its last byte."
                    )
        finally:
            for rider in riders:
                rider.stop(self.stop.reason or "the comparison failed")

    def _take_turns(self, riders: Sequence[Rider], limit: Budget, label: str) -> Iterator[str]:
        """Everybody a turn, again and again, until all have learned what their budget or the limit allows."""
        seconds = limit.seconds or parse_budget(self.rules.budget).seconds
        turn = min(TURN_S, seconds / N_TURNS) if seconds else TURN_S
        said_at = monotonic()
        until = 0.0
        while self.stop.reason is None and (waiting := [r for r in riders if not _done(r, limit)]):
            until = min(until + turn, limit.seconds or inf)
            for rider in waiting:
                if self.stop.reason is None and rider.active_s < until:
                    rider.go(until, limit.n_bytes)
            if monotonic() - said_at >= SAY_EVERY_S:
                said_at = monotonic()
                yield _progress(label, riders)
        yield _progress(label, riders)


def _done(rider: Rider, limit: Budget) -> bool:
    spent = rider.active_s >= (limit.seconds or inf) or rider.n_bytes >= (limit.n_bytes or inf)
    return rider.learned or spent


def _progress(label: str, riders: Sequence[Rider]) -> str:
    seconds = statistics.median(rider.active_s for rider in riders)
    each = ", ".join(f"{r.label.partition(',')[0]} {r.bits_per_byte:.3f}" for r in riders)
    return f"{label}, {seconds:.0f} s each: {each} bits per byte"

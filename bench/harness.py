"""What the harness costs: livelm's loop against the bare PyTorch loop of the same model, in short turns, in one run.

Bare is: tokens in memory, the model with its carried state, cross-entropy, backward, clip, fused AdamW; nothing is
written, nothing is shown. livelm's is everything: source, tokenizer, feed, journal, graded bytes, baselines in their
idle process, spans and the live view drawn on a (discarded) terminal; only saving is left out, whose cost is the
disk's and whose interval is a setting.

The two take turns of a fraction of a second in one process, each with a model of its own, because a shared machine
changes its speed by a third within seconds; the figure is the median of the ratios of neighbouring turns. What runs
once a second (frames, reports, flushes) falls into livelm's turns only, so it counts there a little more than in life.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.record import keep
from livelm.config import Recipe, load_recipe
from livelm.optim import set_rates
from livelm.optim.clip import clip
from livelm.parts import build_parts
from livelm.run import run_session, start
from livelm.session import Stop
from livelm.telemetry.fold import Fold
from livelm.telemetry.terminal import LiveView

BARE_UPDATES, OUR_UPDATES = 8, 24
WARM_UP = 2  # turns that do not count


class Bare:
    """The plain loop over a text, some updates at a time."""

    def __init__(self, recipe: Recipe, text: bytes) -> None:
        self._parts = parts = build_parts(recipe)
        self._model, self._optimizer = parts.network
        self._n = recipe.feed.update_tokens
        mark = torch.tensor([parts.tokenizer.mark])
        self._tokens = torch.cat([mark, torch.frombuffer(bytearray(text), dtype=torch.uint8).long()])
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._state = self._model.init_state(1)  # type: ignore[operator]
        self._starts = torch.zeros((1, self._n), dtype=torch.bool)
        self._step = 0

    def run(self, n_updates: int) -> float:
        """Seconds of that many updates."""
        begin = time.perf_counter()
        for _ in range(n_updates):
            self._update()
        return time.perf_counter() - begin

    def _update(self) -> None:
        at, n, optimizer = self._step * self._n, self._n, self._optimizer
        inputs, targets = self._tokens[None, at : at + n], self._tokens[None, at + 1 : at + n + 1]
        costs, self._state = self._model.nats(inputs, self._starts, targets, self._state)  # type: ignore[operator]
        loss = costs.mean()
        float(loss.detach())
        set_rates(optimizer, self._parts.rate_factor(self._step, 0.0))
        optimizer.zero_grad()
        loss.backward()
        clip(self._parameters, 1.0)
        optimizer.step()
        self._step += 1


class Turns(LiveView):
    """The live view, which after every `OUR_UPDATES` updates of the run lets the bare loop take its turn."""

    def __init__(self, console: Console, fold: Fold, bare: Bare) -> None:
        super().__init__(console, fold)
        self.rows: list[dict[str, float]] = []
        self._bare, self._n, self._began = bare, 0, 0.0

    def take(self, record: Mapping[str, Any]) -> None:
        super().take(record)
        if record["kind"] != "update":
            return
        self._n += 1
        if self._n % OUR_UPDATES:
            return
        ours_s = time.perf_counter() - self._began
        with self._lock:  # no frame is drawn meanwhile
            bare_s = self._bare.run(BARE_UPDATES)
        if self._n > WARM_UP * OUR_UPDATES:
            row = {"bare_ms": 1e3 * bare_s / BARE_UPDATES, "livelm_ms": 1e3 * ours_s / OUR_UPDATES}
            self.rows.append({**row, "ratio": row["livelm_ms"] / row["bare_ms"]})
        self._began = time.perf_counter()


def main() -> None:
    """Parse the command line, measure in turns, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="any text of a megabyte or so")
    parser.add_argument("--bytes", type=int, default=500_000)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per update")
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    text = arguments.file.read_bytes()[: arguments.bytes]
    with tempfile.TemporaryDirectory() as folder:
        stream = Path(folder) / "stream.txt"
        stream.write_bytes(text)
        changes = [f"feed.update_tokens={arguments.tokens}", f'source.uris=["{stream}"]', "checkpoint.every_s=1e9"]
        changes += ["memory.name=none"]
        recipe = load_recipe(None, arguments.size, changes)
        bare = Bare(recipe, text)
        session = start(recipe, Path(folder) / "run", Stop())
        with (
            Path(os.devnull).open("w") as nowhere,
            Turns(Console(file=nowhere, force_terminal=True, width=120, height=40), Fold(), bare) as turns,
        ):
            run_session(session, [turns])
    ratios = [row["ratio"] for row in turns.rows]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    bare_ms, ours_ms = (statistics.median(row[name] for row in turns.rows) for name in ("bare_ms", "livelm_ms"))
    print(f"{len(ratios)} turns: bare {bare_ms:.2f} ms an update, livelm {ours_ms:.2f}")
    print(
        f"median ratio {ratio:.3f} (middle half {low:.3f} to {high:.3f}): the harness costs {100 * (ratio - 1):.1f} %"
    )
    if arguments.keep:
        figures = {"median_ratio": round(ratio, 4), "quartiles": [round(low, 4), round(high, 4)]}
        figures |= {"bare_ms": round(bare_ms, 3), "livelm_ms": round(ours_ms, 3)}
        figures |= {"update_tokens": arguments.tokens, "bytes": len(text)}
        keep("harness", "What does the harness add to the bare PyTorch loop of the same model?", figures, turns.rows)


if __name__ == "__main__":
    main()

"""What the harness costs: livelm's loop against the bare PyTorch loop of the same model, in turns, in one run.

Bare is: tokens in memory, the model with its carried state, cross-entropy, backward, clip, fused AdamW; nothing is
written, nothing is shown. livelm's is everything: source, tokenizer, feed, journal, graded bytes, baselines in their
idle process, spans and the live view drawn on a (discarded) terminal; only saving is left out, whose cost is the
disk's and whose interval is a setting.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bench.record import keep
from livelm.config import Recipe, load_recipe
from livelm.optim import set_rates
from livelm.parts import build_parts
from livelm.run import run_session, start
from livelm.session import Stop
from livelm.telemetry.fold import Fold
from livelm.telemetry.terminal import LiveView


def bare(recipe: Recipe, text: bytes) -> tuple[float, float]:
    """Seconds and bits per byte of the plain loop."""
    parts = build_parts(recipe)
    model, optimizer, n = parts.model, parts.optimizer, recipe.feed.update_tokens
    mark = parts.tokenizer.mark
    tokens = torch.cat([torch.tensor([mark]), torch.frombuffer(bytearray(text), dtype=torch.uint8).long()])
    parameters = [p for p in model.parameters() if p.requires_grad]
    state, nats = model.init_state(1), 0.0  # type: ignore[operator]
    starts = torch.zeros((1, n), dtype=torch.bool)
    begin = time.monotonic()
    for step, at in enumerate(range(0, len(text), n)):
        inputs, targets = tokens[None, at : at + n], tokens[None, at + 1 : at + n + 1]
        inputs = inputs[:, : targets.shape[1]]
        costs, state = model.nats(inputs, starts[:, : targets.shape[1]], targets, state)  # type: ignore[operator]
        loss = costs.mean()
        nats += float(loss.detach()) * targets.shape[1]
        set_rates(optimizer, parts.rate_factor(step, 0.0))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None and not p.grad.is_sparse], 1.0)
        optimizer.step()
    return time.monotonic() - begin, nats / len(text) / 0.6931471805599453


class Loop:
    """Seconds of the loop alone: up to the last `spans` record, less the saves."""

    def __init__(self) -> None:
        self.at_s = self.save_s = 0.0

    def take(self, record: dict[str, Any]) -> None:
        if record["kind"] == "spans":
            self.at_s, self.save_s = record["at_s"], self.save_s + record["save_s"]


def harnessed(recipe: Recipe, out: Path) -> tuple[float, float]:
    """Seconds (opening, saves and the last baselines excluded) and bits per byte of livelm's loop."""
    session = start(recipe, out, Stop())
    with Path(os.devnull).open("w") as nowhere:
        fold, loop = Fold(), Loop()
        view = LiveView(Console(file=nowhere, force_terminal=True, width=120, height=40), fold)
        with view:
            run_session(session, [view, loop])
    return loop.at_s - loop.save_s, fold.bits_per_byte


def main() -> None:
    """Parse the command line, measure in turns, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="any text of a megabyte or so")
    parser.add_argument("--bytes", type=int, default=200_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per update")
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    text = arguments.file.read_bytes()[: arguments.bytes]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        stream = Path(folder) / "stream.txt"
        stream.write_bytes(text)
        changes = [f"feed.update_tokens={arguments.tokens}", f'source.uris=["{stream}"]', "checkpoint.every_s=1e9"]
        recipe = load_recipe(None, arguments.size, changes)
        for turn in range(arguments.turns):
            bare_s, bare_bits = bare(recipe, text)
            ours_s, ours_bits = harnessed(recipe, Path(folder) / f"run-{turn}")
            rows.append({"bare_s": bare_s, "livelm_s": ours_s, "ratio": ours_s / bare_s})
            print(f"turn {turn}: bare {bare_s:.2f} s, livelm {ours_s:.2f} s, ratio {ours_s / bare_s:.3f}", flush=True)
            print(f"        bits per byte: bare {bare_bits:.4f}, livelm {ours_bits:.4f}")
    ratio = statistics.median(row["ratio"] for row in rows)
    print(f"median ratio {ratio:.3f}: the harness costs {100 * (ratio - 1):.1f} %")
    if arguments.keep:
        figures = {"median_ratio": round(ratio, 4), "update_tokens": arguments.tokens, "bytes": len(text)}
        keep("harness", "What does the harness add to the bare PyTorch loop of the same model?", figures, rows)


if __name__ == "__main__":
    main()

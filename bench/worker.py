"""What does the worker model gain over the transformer, and what does it pay for its stride?

Two measurements, both in short turns of all models in one process, because a shared machine changes its speed by a
third within seconds. *Speed*: a whole update (score, backward, step) at length 1024 with full caches; the figure is the
median of the ratios of neighbouring turns. *Quality*: every model reads the same bytes once, graded before they are
learned; each has a clock that runs only in its own turns, so all get equal seconds, and the curves also give what each
had paid when all had read the same bytes. Rates come from a printed grid, one choice for each architecture.

`ancestor` is the worker model trained as WorkerTransformer was: its loss counts worker positions only. It shows what
the published table compared: a loss over a quarter of the positions with a loss over all of them.

python -m bench.worker input.txt --keep
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.record import keep
from livelm.models.transformer import Transformer
from livelm.models.worker import Worker
from livelm.optim import set_rates
from livelm.optim.adamw import AdamW
from livelm.types import LN_2

MARK = 256
STRIDES = (1, 2, 4, 8, 16)
ANCESTOR_STRIDE = 4
SPEED = {"d_model": 256, "n_layers": 4, "n_heads": 4, "context": 1024}
QUALITY = {"d_model": 128, "n_layers": 4, "n_heads": 4, "context": 256}
TURN_S = 0.3
WARM_UP_UPDATES = 50


@dataclass(frozen=True)
class Contestant:
    """One model of the comparison."""

    label: str
    stride: int | None = None
    """None: the transformer."""
    only_workers: bool = False
    """Whether its loss counts worker positions only."""

    def build(self, sizes: dict[str, int], seed: int) -> Any:
        """The model, with n-grams off: they would help all alike."""
        torch.manual_seed(seed)
        if self.stride is None:
            return Transformer(Transformer.Config.model_validate(sizes), MARK + 1)
        return Worker(Worker.Config.model_validate({**sizes, "stride": self.stride}), MARK + 1)


TRANSFORMER = Contestant("transformer")
WORKERS = [Contestant(f"worker-{stride}", stride) for stride in STRIDES]
ANCESTOR = Contestant(f"ancestor-{ANCESTOR_STRIDE}", ANCESTOR_STRIDE, only_workers=True)


@dataclass
class Reader:
    """A model that reads a stream, on a clock of its own."""

    who: Contestant
    model: Any
    tokens: Tensor
    """(n,) the mark, then bytes."""
    n_new: int
    """Tokens per update."""
    rate: float = 2e-3
    seconds: float = 0.0
    n_read: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    """After each update: bytes and seconds so far, bits of all its positions and of every fourth."""

    def __post_init__(self) -> None:
        self.optimizer = AdamW(AdamW.Config(rate=self.rate), self.model.parameter_kinds())
        self.state = self.model.init_state(1)

    def update(self) -> float:
        """Score, then learn from, the next tokens; the seconds it took."""
        begin = time.perf_counter()
        at, n = self.n_read, self.n_new
        inputs, targets = self.tokens[None, at : at + n], self.tokens[None, at + 1 : at + n + 1]
        starts = inputs == MARK
        learned = self.model.workers(starts, self.state) if self.who.only_workers else torch.ones_like(starts)
        nats, self.state = self.model.nats(inputs, starts, targets, self.state)
        loss = (nats * learned).sum() / learned.sum().clamp(min=1)
        set_rates(self.optimizer, min(1.0, (len(self.curve) + 1) / WARM_UP_UPDATES))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        took = time.perf_counter() - begin
        self.n_read += n
        self.seconds += took
        bits = nats.detach()[0] / LN_2
        fourth = bits[(torch.arange(at, at + n) + 1) % ANCESTOR_STRIDE == 0]
        row = {"bytes": self.n_read, "seconds": self.seconds}
        self.curve.append(row | {"bits": float(bits.sum()), "bits_at_fourth": float(fourth.sum())})
        return took

    def bits_per_byte(self, n_bytes: int, key: str = "bits") -> float:
        """Bits for each of the first `n_bytes` (or a few less: whole updates), whose positions the key names."""
        rows = [row for row in self.curve if row["bytes"] <= n_bytes]
        share = 1 if key == "bits" else ANCESTOR_STRIDE
        return share * sum(row[key] for row in rows) / rows[-1]["bytes"]


def measure_speed(text: bytes, n_turns: int) -> dict[str, dict[str, float]]:
    """For each model: milliseconds of an update, and how many times the transformer's speed it has."""
    n = SPEED["context"]
    tokens = _stream(text[:n]).repeat(n_turns + 3)  # the same bytes over and over: time does not depend on them
    readers = [Reader(who, who.build(SPEED, 0), tokens, n) for who in (TRANSFORMER, *WORKERS)]
    for reader in readers:
        for _ in range(2):  # then caches are full and memory is warm
            reader.update()
    turns = [{reader.who.label: reader.update() for reader in readers} for _ in range(n_turns)]
    dense = readers[0].model.flops_per_token()
    return {
        reader.who.label: {
            "update_ms": round(1e3 * statistics.median(turn[reader.who.label] for turn in turns), 1),
            "times_faster": round(statistics.median(t["transformer"] / t[reader.who.label] for t in turns), 2),
            "times_fewer_flops": round(dense / reader.model.flops_per_token(), 2),
        }
        for reader in readers
    }


def race(readers: list[Reader], seconds: float) -> list[Reader]:
    """Give every reader this many seconds, in turns."""
    while waiting := [reader for reader in readers if reader.seconds < seconds]:
        for reader in waiting:
            stop = min(seconds, reader.seconds + TURN_S)
            while reader.seconds < stop:
                reader.update()
    return readers


def choose_rates(text: bytes, n_new: int, grid: list[float], seconds: float) -> tuple[dict[str, float], list[Any]]:
    """The best rate of the grid for each architecture, by bits per byte at equal time, and all that was tried."""
    pilots = [TRANSFORMER, next(who for who in WORKERS if who.stride == 8)]
    tokens = _stream(text)
    readers = [Reader(who, who.build(QUALITY, 99), tokens, n_new, rate) for who in pilots for rate in grid]
    rows = [
        {"model": r.who.label, "rate": r.rate, "bits_per_byte": round(r.bits_per_byte(r.n_read), 4)}
        for r in race(readers, seconds)
    ]
    best = {who.label: min((r for r in rows if r["model"] == who.label), key=_cost)["rate"] for who in pilots}
    return {"transformer": best["transformer"], "worker": best[pilots[1].label]}, rows


def measure_quality(text: bytes, n_new: int, rates: dict[str, float], seconds: float, seed: int) -> list[Any]:
    """A row for each model: bits per byte at equal seconds and at equal bytes; each seed has its part of the text."""
    tokens = _stream(text[seed * len(text) // 4 :])
    readers = [
        Reader(who, who.build(QUALITY, seed), tokens, n_new, rates["worker" if who.stride else "transformer"])
        for who in (TRANSFORMER, *WORKERS, ANCESTOR)
    ]
    shared = min(reader.n_read for reader in race(readers, seconds))
    return [
        {
            "model": r.who.label,
            "seed": seed,
            "bytes": r.n_read,
            "bytes_per_s": round(r.n_read / r.seconds),
            "at_equal_time": round(r.bits_per_byte(r.n_read), 4),
            "at_equal_bytes": round(r.bits_per_byte(shared), 4),
            "at_fourth_at_equal_time": round(r.bits_per_byte(r.n_read, "bits_at_fourth"), 4),
            "at_fourth_at_equal_bytes": round(r.bits_per_byte(shared, "bits_at_fourth"), 4),
            "shared_bytes": shared,
        }
        for r in readers
    ]


def summarise(rows: list[Any]) -> Iterator[dict[str, Any]]:
    """For each model: means over seeds, and mean and standard deviation of its differences from the transformer."""
    keys = ("at_equal_time", "at_equal_bytes", "at_fourth_at_equal_time", "at_fourth_at_equal_bytes")
    for label in dict.fromkeys(row["model"] for row in rows):
        ours = [row for row in rows if row["model"] == label]
        theirs = [row for row in rows if row["model"] == "transformer"]
        summary: dict[str, Any] = {"model": label, "bytes": round(statistics.mean(row["bytes"] for row in ours))}
        for key in keys:
            differences = [a[key] - b[key] for a, b in zip(ours, theirs, strict=True)]
            summary[key] = round(statistics.mean(row[key] for row in ours), 3)
            summary[f"{key}_difference"] = round(statistics.mean(differences), 3)
            summary[f"{key}_sd"] = round(statistics.stdev(differences), 3) if len(differences) > 1 else 0.0
        yield summary


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="any text of a megabyte or so")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per update where quality is compared")
    parser.add_argument("--seconds", type=float, default=25.0, help="for each model and seed")
    parser.add_argument("--pilot-seconds", type=float, default=10.0, help="for each rate of the grid")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=6, help="updates of each model where speed is compared")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = arguments.file.read_bytes()
    figures: dict[str, Any] = {"speed": measure_speed(text, arguments.turns)}
    for label, row in figures["speed"].items():
        print(f"{label}: {json.dumps(row)}", flush=True)
    rates, figures["rate_grid"] = choose_rates(text, arguments.tokens, arguments.rates, arguments.pilot_seconds)
    figures |= {"rates": rates, "update_tokens": arguments.tokens, "seconds": arguments.seconds}
    print(json.dumps(figures["rate_grid"]), json.dumps(rates), flush=True)
    rows = []
    for seed in range(arguments.seeds):
        rows += measure_quality(text, arguments.tokens, rates, arguments.seconds, seed)
        print(*map(json.dumps, rows[-len(WORKERS) - 2 :]), sep="\n", flush=True)
    figures["quality"] = list(summarise(rows))
    print(*map(json.dumps, figures["quality"]), sep="\n")
    if arguments.keep:
        question = "What does the worker model gain over the transformer, and what does it pay for its stride?"
        keep("worker", question, figures, rows)


def _stream(text: bytes) -> Tensor:
    return torch.tensor([MARK, *text])


def _cost(row: dict[str, Any]) -> float:
    return row["bits_per_byte"]


if __name__ == "__main__":
    main()

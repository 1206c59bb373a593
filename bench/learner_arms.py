"""The arms of `bench.learner`: what is asked of the learner, as settings, and as edits where there is no setting."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from livelm.learn import Learner

OWN = "as it is"
"""The arm that changes nothing."""

Edit = Callable[[Learner], Any]


def _nothing(learner: Learner) -> None:
    """Leave it."""


@dataclass(frozen=True)
class Arm:
    """Settings, and what no setting says: an edit of the fresh learner, and what follows each update."""

    changes: tuple[str, ...] = ()
    edit: Edit = _nothing
    after_update: Edit = _nothing
    pace: str = ""
    """The arm that is exactly as fast and is timed in its place; empty: itself."""


def settings(*changes: str, pace: str = "") -> Arm:
    """An arm of settings only."""
    return Arm(changes, pace=pace)


def scaled(factor: float, *names: str) -> Edit:
    """Multiply the first weights whose names contain one of `names`."""

    def edit(learner: Learner) -> None:
        with torch.no_grad():
            for name, weight in learner.model.named_parameters():
                if any(part in name for part in names):
                    weight.mul_(factor)

    return edit


def awake(learner: Learner) -> None:
    """Begin output projections with noise of std 1 / sqrt(2 d_in n_layers), not with zero (Radford et al. 2019)."""
    blocks: Any = learner.model.blocks
    with torch.no_grad():
        for block in blocks:
            for layer in (block.attention.out, block.mlp.down):
                nn.init.normal_(layer.weight, std=(2 * layer.in_features * len(blocks)) ** -0.5)


def forget_keys(learner: Learner) -> None:
    """Carry nothing to the next update but the tokens that n-grams look back on."""
    fresh = learner.model.init_state(len(learner.lanes["position"]))  # type: ignore[operator]
    learner.lanes = {**fresh, **{name: learner.lanes[name] for name in ("recent", "position")}}


def in_bfloat16(learner: Learner) -> None:
    """Products of matrices in bfloat16, everything else in float32 (autocast)."""
    for name in ("nats", "hidden"):
        setattr(learner.model, name, torch.autocast("cpu", dtype=torch.bfloat16)(getattr(learner.model, name)))


def by_bytes(n_tokens: int, *changes: str) -> Arm:
    """Updates of so many tokens, with the rate held up to the byte to which `tiny` holds it."""
    hold = round(700 * 48 / n_tokens)
    return settings(f"feed.update_tokens={n_tokens}", f"schedule.hold={hold}", *changes, pace=f"{n_tokens} tokens")


def rates(dense: str, rows: str) -> tuple[str, str]:
    """Both rates of AdamW."""
    return f"optimizer.rate={dense}", f"optimizer.rows_rate={rows}"


def muon(rate: str, *changes: str) -> Arm:
    """Muon with this rate of its matrices and the rates of `tiny` for the rest."""
    return settings("optimizer.name=muon", f"optimizer.rate={rate}", *changes, pace="muon")


def schedule(name: str, *changes: str) -> Arm:
    """Another schedule."""
    return settings(f"schedule.name={name}", *changes, pace=OWN)


ARMS: dict[str, dict[str, Arm]] = {
    "update": {
        **{f"{n} tokens": settings(f"feed.update_tokens={n}") for n in (32, 64, 96, 128, 256, 512, 1024, 2048)},
        **{f"{n}, by bytes": by_bytes(n) for n in (32, 96, 128, 256, 512, 1024, 2048)},
        **{f"{n}, by bytes, rate x2": by_bytes(n, *rates("4e-3", "0.1")) for n in (128, 256, 512, 1024)},
        **{f"{n}, by bytes, rates x2": by_bytes(n, *rates("4e-3", "0.2")) for n in (128, 256)},
    },
    "rates": {
        **{
            f"rate {dense}, rows {rows}": settings(*rates(dense, rows), pace=OWN)
            for dense, rows in [("1e-3", "0.1"), ("4e-3", "0.1"), ("2e-3", "0.05"), ("2e-3", "0.15"), ("2e-3", "0.2")]
        },
        **{
            f"tables {rate}": settings(f"optimizer.table_rate={rate}", pace=OWN)
            for rate in ("5e-4", "1e-3", "2e-3", "8e-3")
        },
    },
    "muon": {
        "muon": settings("optimizer.name=muon"),
        **{f"muon {rate}": muon(rate) for rate in ("5e-3", "1e-2", "4e-2")},
        "muon 2e-2, momentum 0.9": muon("2e-2", "optimizer.momentum=0.9"),
        "muon 1e-2, tables 4e-3": muon("1e-2", "optimizer.table_rate=4e-3"),
        "muon 1e-2, beta2 0.98": muon("1e-2", "optimizer.beta2=0.98"),
    },
    "betas": {
        f"betas {a}, {b}": settings(f"optimizer.beta1={a}", f"optimizer.beta2={b}", pace=OWN)
        for a, b in [
            ("0.8", "0.98"),
            ("0.95", "0.98"),
            ("0.9", "0.95"),
            ("0.9", "0.99"),
            ("0.9", "0.999"),
            ("0", "0.98"),
        ]
    },
    "initial": {
        **{f"head x{scale}": settings(f"model.head_scale={scale}", pace=OWN) for scale in ("0", "0.25", "0.5", "2")},
        "all but head halved": Arm(edit=scaled(0.5, "embed", "project", "up"), pace=OWN),
        "all but head doubled": Arm(edit=scaled(2.0, "embed", "project", "up"), pace=OWN),
        "embedding x10": Arm(edit=scaled(10.0, "embed"), pace=OWN),
        "output projections not zero": Arm(edit=awake, pace=OWN),
    },
    "head": {
        f"no n-grams, head x{scale}": settings("model.ngrams=[]", f"model.head_scale={scale}", pace="none")
        for scale in ("0", "1")
    },
    "clip": {f"clip {c}": settings(f"learn.clip={c}", pace=OWN) for c in ("0.5", "2", "1e9")},
    "context": {
        "nothing carried": Arm(after_update=forget_keys),
        **{f"context {n}": settings(f"model.context={n}") for n in (32, 64, 256, 512)},
    },
    "lanes": {
        "2 lanes of 48": settings("feed.lanes=2"),
        "2 lanes of 24": settings("feed.lanes=2", "feed.update_tokens=24"),
        "4 lanes of 48": settings("feed.lanes=4"),
        "4 lanes of 12": settings("feed.lanes=4", "feed.update_tokens=12"),
    },
    "ngrams": {
        "none": settings("model.ngrams=[]"),
        **{
            f"orders {o}": settings(f"model.ngrams={list(map(int, o.split()))}")
            for o in ("2 3 4", "2 3 4 5", "2 3 4 5 6 8")
        },
        "orders 2 to 7": settings("model.ngrams=[2,3,4,5,6,7]"),
        **{f"{n} rows": settings(f"model.ngram_rows={n}") for n in (16384, 32768, 131072, 262144)},
    },
    "schedule": {
        "constant": schedule("constant", "schedule.warmup=100"),
        **{f"warm-up {n}": settings(f"schedule.warmup={n}", pace=OWN) for n in (20, 100)},
        **{f"hold {n}": settings(f"schedule.hold={n}", pace=OWN) for n in (200, 350, 1400, 2800)},
    },
    "decay": {f"weight decay {d}": settings(f"optimizer.weight_decay={d}", pace=OWN) for d in ("0.1",)},
    "bfloat16": {"bfloat16": Arm(edit=in_bfloat16)},
    "threads": {"two threads": settings("run.threads=2")},
}
"""Questions, and the arms that are compared with the size's own settings."""


class Average:
    """An exponential moving average of the weights over about `n_updates` beside a learner, which it does not touch."""

    def __init__(self, learner: Learner, n_updates: int, *, tables: bool) -> None:
        """`tables`: whether the tables of n-grams are averaged too, or taken as they are."""
        self._named = dict(learner.model.named_parameters())
        chosen = [name for name in self._named if tables or name != "ngrams.table"]
        self.weights = {n: p.detach().clone() if n in chosen else p.detach() for n, p in self._named.items()}
        self._pairs = [(self.weights[name], self._named[name].detach()) for name in chosen]
        self._every = 8 if tables else 1  # 42 M numbers: not after each update
        self._keep = 1 - self._every / n_updates
        self._n = 0

    def take(self) -> None:
        """After an update; while few were seen it is their plain mean."""
        self._n += 1
        if self._n % self._every == 0:
            n = self._n // self._every
            for mean, weight in self._pairs:
                mean.lerp_(weight, 1 - min(self._keep, (n - 1) / n))

"""RWKV-7: how much faster chunks learn than the token-by-token loop, and whether an endless stream costs memory.

`speed` lets both take turns in one process, because a shared machine changes its speed within seconds; the figure is
the median of the ratios of neighbouring turns, in processor time of one thread. `memory` learns from random bytes with
carried state and reports what is resident early and late.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.record import keep
from livelm.compiled import in_torch
from livelm.models.ops.rwkv7 import Streams, rwkv7_chunked, rwkv7_recurrent
from livelm.models.ops.rwkv7_chunks import Layout, make_layout
from livelm.models.rwkv7 import RWKV7, RWKV7Config
from livelm.optim.adamw import AdamW, AdamWConfig

N_VOCABULARY = 257
WIDTHS = [(64, 32), (128, 64), (256, 64)]  # d_model, d_head


def recurrent(x: Streams, layout: Layout, state: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The loop, in the place of the chunks."""
    return rwkv7_recurrent(x, layout.starts, state, initial)


def seconds(do: Callable[[], Any]) -> float:
    begin = time.process_time()
    do()
    return time.process_time() - begin


def in_turns(do: Callable[[Any], Any], n_turns: int) -> dict[str, float]:
    """Median milliseconds of both ways and of their ratio; the first turn does not count."""
    pairs = [(seconds(lambda: do(recurrent)), seconds(lambda: do(rwkv7_chunked))) for _ in range(n_turns + 1)][1:]
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {"recurrent_ms": round(1e3 * slow, 2), "chunked_ms": round(1e3 * fast, 2), "ratio": round(ratio, 2)}


def operation(d_model: int, d_head: int, n_tokens: int, n_turns: int) -> dict[str, float]:
    """Forward and backward of one layer's recurrence alone."""
    torch.manual_seed(0)
    shape = (1, n_tokens, d_model // d_head, d_head)
    removal = torch.nn.functional.normalize(torch.randn(shape), dim=-1)
    parts = (torch.randn(shape), -0.6 * torch.rand(shape), torch.randn(shape), torch.randn(shape), -removal)
    x = Streams(*(part.requires_grad_() for part in (*parts, removal * torch.rand(shape))))
    layout = make_layout(torch.zeros(1, n_tokens, dtype=torch.bool))
    state = torch.zeros(1, shape[2], d_head, d_head)
    return in_turns(lambda way: way(x, layout, state)[0].sum().backward(), n_turns)


def update(d_model: int, d_head: int, n_tokens: int, n_turns: int) -> dict[str, float]:
    """A whole update of a model of two layers: score, backward, AdamW. By the loop, by chunks, and as it is in runs."""
    torch.manual_seed(0)
    learner = Learning(RWKV7Config(d_model=d_model, n_layers=2, d_head=d_head), n_tokens)

    def once(way: Any) -> None:
        with in_torch(), patch("livelm.models.rwkv7.rwkv7", way):
            learner.step()

    row = in_turns(once, n_turns)
    pairs = [(seconds(lambda: once(recurrent)), seconds(learner.step)) for _ in range(n_turns + 1)][1:]
    row["used_ms"] = round(1e3 * statistics.median(used for _, used in pairs), 2)
    row["used_ratio"] = round(statistics.median(slow / used for slow, used in pairs), 2)
    return row


class Learning:
    """The bare loop over random bytes, with carried state."""

    def __init__(self, config: RWKV7Config, n_tokens: int) -> None:
        self.model = RWKV7(config, N_VOCABULARY)
        self.optimizer = AdamW(AdamWConfig(), self.model.parameter_kinds())
        self.state = self.model.init_state(1)
        self.starts = torch.zeros(1, n_tokens, dtype=torch.bool)
        self.n_tokens = n_tokens

    def step(self) -> None:
        tokens = torch.randint(256, (1, self.n_tokens + 1))
        nats, self.state = self.model.nats(tokens[:, :-1], self.starts, tokens[:, 1:], self.state)
        self.optimizer.zero_grad()
        nats.mean().backward()
        self.optimizer.step()


def speed(n_tokens: int, n_turns: int, keep_record: bool) -> None:
    """Print and maybe keep the ratios."""
    rows = []
    for d_model, d_head in WIDTHS:
        for what, measure in (("operation", operation), ("update", update)):
            row = {"what": what, "d_model": d_model, "d_head": d_head, "n_tokens": n_tokens}
            rows.append(row | measure(d_model, d_head, n_tokens, n_turns))
            print(rows[-1], flush=True)
    if keep_record:
        worst = min(row.get("used_ratio", row["ratio"]) for row in rows)
        question = f"How much faster do chunks learn than the token-by-token loop at T = {n_tokens}?"
        keep("rwkv7-speed", question, {"least_ratio": worst}, rows)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096


def memory(n_tokens: int, n_update: int, keep_record: bool) -> None:
    """Print and maybe keep how resident memory went."""
    torch.manual_seed(0)
    learner = Learning(RWKV7Config(d_model=32, n_layers=1, d_head=32), n_update)
    samples: list[tuple[int, int, int]] = []
    n_updates = n_tokens // n_update
    for i in range(n_updates):
        learner.step()
        if i % max(1, n_updates // 100) == 0:
            gc.collect()
            held = sum(tensor.untyped_storage().nbytes() for tensor in learner.state.values())
            samples.append(((i + 1) * n_update, resident_bytes(), held))
    tenth = max(1, len(samples) // 10)
    early = statistics.median(r for _, r, _ in samples[tenth : 2 * tenth])
    late = statistics.median(r for _, r, _ in samples[-tenth:])
    figures = {
        "tokens": n_updates * n_update,
        "early_mb": round(early / 1e6, 2),
        "late_mb": round(late / 1e6, 2),
        "growth": round(late / early - 1, 5),
        "state_bytes_first": samples[0][2],
        "state_bytes_last": samples[-1][2],
    }
    print(figures)
    if keep_record:
        keep("rwkv7-memory", "Does a stream without an end cost RWKV-7 memory?", figures)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--tokens", type=int, help="of an update (speed: 512) or in all (memory: 1,000,000)")
    parser.add_argument("--update", type=int, default=256, help="tokens per update (memory)")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "speed":
        speed(arguments.tokens or 512, arguments.turns, arguments.keep)
    else:
        memory(arguments.tokens or 1_000_000, arguments.update, arguments.keep)


if __name__ == "__main__":
    main()

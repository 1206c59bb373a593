"""What an update of 32 tokens costs with a 128,256-row tied softmax: plain PyTorch, the token table, the limit.

The table has the type that `token_table = "auto"` takes on this machine, and the limit is that of this type.
Both loops run the same trunk (4 layers of 256, 512 cached tokens, 35,993,088 parameters with the table) on the same
random tokens. Plain is cross-entropy over float32 logits and fused AdamW over everything. Ours is `TokenTable` with
`DeferredAdagrad` for the table and fused AdamW for the trunk. Times are medians of updates; the table's pass over all
rows comes once every `--every` updates and is counted with its share.

    python -m bench.wire_speed_head            (on an otherwise idle machine: a busy core stalls both)
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.record import keep
from livelm.models.ops.native import table_type
from livelm.models.ops.token_table import TokenTable
from livelm.models.transformer import Transformer
from livelm.optim.deferred import DeferredAdagrad

V, D, T, CONTEXT = 128_256, 256, 32, 512
N_PARAMETERS = 35_993_088


class Clock:
    """Milliseconds of each named piece, one entry per update."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = {}

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.ms.setdefault(name, []).append((time.perf_counter() - begin) * 1e3)


def build_trunk(n_vocabulary: int) -> Transformer:
    torch.manual_seed(0)
    sizes = {"d_model": D, "n_layers": 4, "n_heads": 8, "context": CONTEXT, "rank": 32, "tied": True}
    form = {"norm": "layer", "qk_norm": False, "activation": "relu", "mlp_bias": True}
    return Transformer(Transformer.Config.model_validate(sizes | form), n_vocabulary)


def batches(n_updates: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, starts and targets; token frequencies fall with rank as in text."""
    weights = 1 / torch.arange(1, V + 1)
    tokens = torch.multinomial(weights, n_updates * T + 1, replacement=True)[None]
    starts = torch.zeros(1, T, dtype=torch.bool)
    for at in range(0, n_updates * T, T):
        yield tokens[:, at : at + T], starts, tokens[:, at + 1 : at + T + 1]


def run_plain(n_updates: int) -> tuple[float, float]:
    """Median milliseconds of an update, first loss."""
    model = build_trunk(V)
    assert sum(p.numel() for p in model.parameters()) == N_PARAMETERS
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    clock, state, losses = Clock(), model.init_state(1), []
    for tokens, starts, targets in batches(n_updates):
        with clock.piece("update"):
            nats, state = model.nats(tokens, starts, targets, state)
            losses.append(float(nats.detach().mean()))
            optimizer.zero_grad()
            nats.mean().backward()
            optimizer.step()
    return statistics.median(clock.ms["update"][CONTEXT // T :]), losses[0]


def run_ours(n_updates: int, every: int) -> tuple[dict[str, float], float]:
    """Median milliseconds of each piece, first loss. The pass over all rows counts with 1/every of its time."""
    model = build_trunk(1)
    table = TokenTable(V, D, std=1 / D, scale=D**0.5, dtype=table_type())
    model.embed = table  # type: ignore[assignment]  # it reads like an embedding
    assert sum(p.numel() for p in model.parameters()) == N_PARAMETERS
    trunk = [p for p in model.parameters() if p is not table.weight]
    optimizer = torch.optim.AdamW(trunk, lr=1e-3, weight_decay=0.0, fused=True)
    table_optimizer = DeferredAdagrad([{"params": [table.weight], "lr": 0.02}], every=every)
    clock, state, losses = Clock(), model.init_state(1), []
    for index, (tokens, starts, targets) in enumerate(batches(n_updates)):
        with clock.piece("trunk forward"):
            h, state = model.hidden(tokens, starts, state)
            cut = h.detach().requires_grad_()
        with clock.piece("score 128,256 rows (and gradient of h, where they are walked)"):
            nats = table.nats(cut, targets)
            losses.append(float(nats.detach().mean()))
        with clock.piece("gradient of h (the rest of it)"):
            nats.mean().backward()
        with clock.piece("trunk backward"):
            h.backward(cut.grad)
        with clock.piece("trunk AdamW"):
            nn.utils.clip_grad_norm_(trunk, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with clock.piece("pass over all rows" if (index + 1) % every == 0 else "rows at once"):
            table_optimizer.step()
    full = CONTEXT // T  # before, the cache is not full
    pieces = {n: statistics.median(ms[full:] if len(ms) == n_updates else ms[1:]) for n, ms in clock.ms.items()}
    pieces["pass over all rows"] /= every
    return pieces, losses[0]


def limits() -> dict[str, float]:
    """What the machine can do: GFLOP/s of large square products, GB/s of copying."""
    a, table = torch.randn(2048, 2048), torch.randn(V, D)
    half, copy = a.to(table_type()), torch.empty_like(table)
    flops = 2 * 2048**3 / 1e9
    return {
        "float32 GFLOP/s": flops / best_seconds(lambda: a @ a),
        "table GFLOP/s": flops / best_seconds(lambda: half @ half),
        "copy GB/s": 2 * table.nbytes / 1e9 / best_seconds(lambda: copy.copy_(table)),
    }


def best_seconds(compute: Callable[[], Any], turns: int = 7) -> float:
    taken = []
    for _ in range(turns):
        begin = time.perf_counter()
        compute()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def limit_ms(machine: dict[str, float]) -> dict[str, float]:
    """Milliseconds per update that these products and bytes take at the machine's best rates, nothing overlapping."""
    product = 2 * T * V * D / 1e6 / machine["table GFLOP/s"]
    read = V * D * table_type().itemsize / 1e6 / machine["copy GB/s"]
    trunk = 3 * 2 * T * (N_PARAMETERS - V * D) / 1e6 / machine["float32 GFLOP/s"]
    return {
        "score 128,256 rows": max(product, read),
        "gradient of h": max(product, read),
        "gradient of all rows": product,
        "trunk, three products": trunk,
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--updates", type=int, default=96)
    parser.add_argument("--plain-updates", type=int, default=24)
    parser.add_argument("--every", type=int, default=16, help="updates between passes over all rows")
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = limits()
    limit = limit_ms(machine)
    pieces, ours_loss = run_ours(arguments.updates, arguments.every)
    plain_ms, plain_loss = run_plain(arguments.plain_updates)
    ours_ms, least_ms = sum(pieces.values()), sum(limit.values())
    print(f"threads {arguments.threads}: " + ", ".join(f"{n} {rate:.0f}" for n, rate in machine.items()))
    print(f"first loss: plain {plain_loss:.3f}, ours {ours_loss:.3f} (ln {V} = 11.762)")
    for title, rows in (("ours, ms per update", pieces), ("limit, ms per update", limit)):
        print(title)
        for name, ms in rows.items():
            print(f"  {name:62s} {ms:7.1f}")
    for name, ms in (("plain", plain_ms), ("ours", ours_ms), ("limit", least_ms)):
        print(f"{name:6s} {ms:7.1f} ms per update {1e3 * T / ms:8.0f} tokens/s")
    print(f"ours is {plain_ms / ours_ms:.2f} times plain and takes {ours_ms / least_ms:.2f} times the limit")
    if arguments.keep:
        figures = {"plain_tokens_per_s": 1e3 * T / plain_ms, "ours_tokens_per_s": 1e3 * T / ours_ms, **machine}
        figures |= {
            "type": str(table_type()).removeprefix("torch."),
            "threads": arguments.threads,
            "times_limit": ours_ms / least_ms,
        }
        rows = [{"piece": name, "ms": ms} for name, ms in pieces.items()]
        keep("wire-speed-head", "What does an update with a 128,256-row softmax cost?", figures, rows)


if __name__ == "__main__":
    main()

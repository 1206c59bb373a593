"""How far forward and backward are from the time of their matrix products alone, for every architecture and width.

Every matrix product and fused attention that torch starts for one update is caught with its very operands (shapes,
strides, values). Then the update, the update by torch alone, and the bare list of those products take turns in one
process: the ratio of neighbouring turns is what everything else (norms, rotations, softmax, lookups, bookkeeping, and
starting each operation) costs. All are processor time of one thread, so a neighbour that takes the core away does not
count. Where an update is compiled (`models.ops.few_tokens_cpu`, `rwkv7_cpu`) its products are not torch's, but as many.

python -m bench.efficiency --keep
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from bench.record import keep
from livelm.compiled import in_torch
from livelm.config import load_recipe
from livelm.errors import ConfigError
from livelm.models import MODELS
from livelm.parts import build_parts

RECIPES = Path(__file__).parents[1] / "recipes"
PRODUCTS = {"addmm", "baddbmm", "bmm", "mm"}
WIDTHS = (64, 128, 256, 512)
BAR = 1.3
TURN_S = 0.1
"""Seconds of a turn at least."""


class Products(TorchDispatchMode):
    """Catches every matrix product and fused attention, in order, with copies of its operands."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        self.n_operations = 0
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.n_operations += 1
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            a, b = args[-2:]
            self.flops += 2 * a.numel() * b.shape[-1]
        elif "scaled_dot_product" in name:
            q, k = args[1:3] if "backward" in name else args[:2]
            # forward: scores and mix; backward: scores again and four gradients
            self.flops += (10 if "backward" in name else 4) * q.numel() * k.shape[-2]
        else:
            return out
        self.calls.append((func, tree_map(_copy, args), tree_map(_copy, kwargs or {})))
        return out

    def replay(self) -> None:
        """The products alone."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def _copy(value: Any) -> Any:
    """The same numbers in the same layout, in memory of their own."""
    return value.detach().clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else value


class Update:
    """Forward and backward of a model with full caches, over and over."""

    def __init__(self, name: str, d_model: int, n_bytes: int) -> None:
        path = RECIPES / f"{name}.toml"
        base = ["memory.name=none"] if path.exists() else ["memory.name=none", f"model.name={name}"]
        changes = [f"model.d_model={d_model}", "run.threads=1"]
        known = MODELS[name].Config.model_fields
        changes += ["model.ngrams=[]"] if "ngrams" in known else []
        if "n_heads" in known:
            changes += [f"model.n_heads={max(1, d_model // 32)}"]
        changes += ["model.n_kv_heads=" + str(max(1, d_model // 64))] if name == "looped" else []
        self.parts = build_parts(load_recipe(path if path.exists() else None, "tiny", [*base, *changes]))
        self.model: Any = self.parts.model
        # an alphabet smaller than bytes (bits) gets as many bytes
        self.n_tokens = n_tokens = n_bytes * len(self.parts.tokenizer.encode(bytes(64)).ids) // 64
        self.starts = torch.zeros(1, n_tokens, dtype=torch.bool)
        self.state = self.model.init_state(1)
        n_warm = 2 + (getattr(self.model.config, "context", 0) // n_bytes)
        for _ in range(n_warm):
            self.run()

    def run(self) -> None:
        """One update without the optimizer."""
        tokens = torch.randint(self.parts.tokenizer.n_vocabulary - 1, (1, self.n_tokens + 1))
        nats, self.state = self.model.nats(tokens[:, :-1], self.starts, tokens[:, 1:], self.state)
        self.model.zero_grad(set_to_none=True)
        nats.mean().backward()


def measure(name: str, d_model: int, n_bytes: int, n_turns: int) -> dict[str, Any]:
    """One row: milliseconds, their ratio, and the rate that the products reach."""
    torch.manual_seed(0)
    update, products, started = Update(name, d_model, n_bytes), Products(), Products()
    with started:
        update.run()
    with in_torch(), products:
        update.run()
    whole, by_torch, bare, ratios = [], [], [], []
    for turn in range(n_turns + 1):
        a, b = _time(update.run), _time(products.replay)
        with in_torch():
            c = _time(update.run)
        if turn:  # the first fills caches
            whole.append(a)
            bare.append(b)
            by_torch.append(c)
            ratios.append(a / b)
    bare_s, torch_s = statistics.median(bare), statistics.median(by_torch)
    return {
        "model": name,
        "d_model": d_model,
        "update_bytes": n_bytes,
        "update_ms": round(1e3 * statistics.median(whole), 2),
        "products_ms": round(1e3 * bare_s, 2),
        "ratio": round(statistics.median(ratios), 2),
        "torch_ms": round(1e3 * torch_s, 2),
        "operations": started.n_operations,
        "torch_operations": products.n_operations,
        "products": len(products.calls),
        "us_per_other_operation": round(1e6 * (torch_s - bare_s) / (products.n_operations - len(products.calls)), 1),
        "gflops": round(products.flops / bare_s / 1e9, 1),
        "declared_share": round(3 * update.model.flops_per_token() * update.n_tokens / products.flops, 3),
    }


def _time(do: Callable[[], None]) -> float:
    """Processor seconds of one call, over as many as fill a turn."""
    begin, n = time.process_time(), 0
    while (spent := time.process_time() - begin) < TURN_S or not n:
        do()
        n += 1
    return (spent if spent >= TURN_S else time.process_time() - begin) / n


def main() -> None:
    """Parse the command line, measure, print a row for every architecture and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--bytes", nargs="+", type=int, default=[64, 512], help="bytes per update")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for n_bytes in arguments.bytes:
        for name in arguments.models:
            for d_model in arguments.widths:
                try:
                    rows.append(measure(name, d_model, n_bytes, arguments.turns))
                except ConfigError as error:
                    print(f"{name} at d_model={d_model}: {error}", flush=True)
                    continue
                print(json.dumps(rows[-1]), flush=True)
    if arguments.keep:
        within = {f"{r['model']} d={r['d_model']} T={r['update_bytes']}": r["ratio"] for r in rows}
        figures = {"bar": BAR, "within": sum(ratio <= BAR for ratio in within.values()), "of": len(rows), **within}
        question = "How many times the time of their matrix products do forward and backward take?"
        keep("efficiency", question, figures, rows)


if __name__ == "__main__":
    main()

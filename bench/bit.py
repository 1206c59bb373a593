"""What bits as the alphabet are worth, and what reversible blocks save.

python -m bench.bit equal input.txt    bits per byte against `transformer` over bytes of equal compute, 3 seeds
python -m bench.bit memory             bytes held for backward, and peak memory of a process, over depth 4 to 64
python -m bench.bit large              one whole update at the ancestor's large size, 771 M parameters (13 GB!)
python -m bench.bit grow input.txt     growth in the middle of a stream against never growing and being large at once
python -m bench.bit diffusion input.txt    a bound by masked diffusion over bits against the same text, causally
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.learn import run_once
from bench.record import keep
from livelm.config import load_recipe
from livelm.models.bit import Bit
from livelm.models.bit_diffusion import BitDenoiser, bound, evaluate, sample
from livelm.parts import build_parts
from livelm.tokenize.bits import Bits

RECIPE = Path(__file__).parents[1] / "recipes" / "bit.toml"
BYTES = ["tokenizer.name=bytes", "feed.update_tokens=64"]
TURNS, UPDATES = 12, 4


# -- against bytes ------------------------------------------------------------------------------------------------


def equal_arms() -> dict[str, list[str]]:
    """The recipe, the same trunk over bytes with a softmax over 256, and `transformer` of the same sizes."""
    sizes = ["model.d_model=128", "model.n_layers=4", "model.n_heads=4", "model.context=256", "model.head_scale=1.0"]
    return {
        "bit": [],
        "bit, inverse": ['model.backward="inverse"'],
        "bit over bytes": BYTES,
        "transformer over bytes": [*BYTES, "model.name=transformer", *sizes],
    }


class Timed:
    """Updates on random bytes, to be timed against another arm in turns."""

    def __init__(self, changes: list[str]) -> None:
        self._parts = build_parts(load_recipe(RECIPE, "tiny", [*changes, "run.threads=1"]))
        self._state = self._parts.model.init_state(1)  # type: ignore[operator]

    def run(self) -> float:
        """Processor seconds of some updates of 64 bytes."""
        begin = time.process_time()
        for _ in range(UPDATES):
            text = torch.randint(256, (65,), dtype=torch.uint8).numpy().tobytes()
            ids = torch.from_numpy(self._parts.tokenizer.encode(text).ids).long()[None]
            n = self._parts.recipe.feed.update_tokens
            starts = torch.zeros(1, n, dtype=torch.bool)
            model, optimizer = self._parts.network
            nats, self._state = model.nats(ids[:, :n], starts, ids[:, 1 : n + 1], self._state)  # type: ignore[operator]
            optimizer.zero_grad()
            nats.mean().backward()
            optimizer.step()
        return time.process_time() - begin


def equal(arguments: argparse.Namespace) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Bits per byte of every arm over the same bytes, and time per update as a ratio to the last arm."""
    uris = json.dumps([str(arguments.source.absolute())])
    fixed = [f"source.uris={uris}", f"run.budget={arguments.budget}", "checkpoint.every_s=1e9", *arguments.changes]
    rows, arms = [], equal_arms()
    last = list(arms.values())[-1]
    for name, changes in arms.items():
        if arguments.only and name not in (*arguments.only, "transformer over bytes"):
            continue
        # the same numbers but for rounding, so only its time is of interest
        seeds = range(1 if name == "bit, inverse" else arguments.seeds)
        runs = [run_once(RECIPE, "tiny", [*changes, *fixed, f"run.seed={s}"]) for s in seeds]
        bits = [run["bits_per_byte"] for run in runs]
        parts = build_parts(load_recipe(RECIPE, "tiny", changes))
        model: Any = parts.model
        timed = Timed(changes), Timed(last)
        ratios = [timed[0].run() / timed[1].run() for _ in range(TURNS)][TURNS // 4 :]
        rows.append(
            {
                "arm": name,
                "bits_per_byte": round(statistics.mean(bits), 4),
                "sd": round(statistics.stdev(bits), 4) if len(bits) > 1 else 0.0,
                "flops_per_byte": model.flops_per_token() * getattr(parts.tokenizer, "n_symbols", 1),
                "n_parameters": runs[0]["n_parameters"],
                "time_ratio": round(statistics.median(ratios), 3),
                "each": [round(b, 4) for b in bits],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    figures = {
        f"{row['arm']}, less transformer": round(row["bits_per_byte"] - rows[-1]["bits_per_byte"], 4) for row in rows
    }
    question = f"Do bits read as well as bytes at equal compute, in {arguments.budget} of {arguments.source.name}?"
    return question, figures, rows


# -- memory ---------------------------------------------------------------------------------------------------------


def held_bytes(n_layers: int, backward: str, sizes: dict[str, int]) -> int:
    """Bytes of distinct tensors that autograd holds for backward, parameters and carried state apart."""
    model, tokens, starts = build(n_layers, backward, sizes)
    state = model.init_state(1)
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *state.values()]}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nats, _ = model.nats(tokens[:, :-1], starts[:, :-1], tokens[:, 1:], state)
    nats.mean().backward()
    return sum(held.values())


def peak_bytes(n_layers: int, backward: str, sizes: dict[str, int]) -> int:
    """Peak resident memory of a process of its own that takes one gradient, less parameters, gradients and state."""
    code = (
        "import resource, torch; from bench.bit import build; torch.set_num_threads(1)\n"
        f"m, t, s = build({n_layers}, {backward!r}, {sizes!r})\n"
        "for _ in range(2):\n"
        "    m.zero_grad(); m.nats(t[:, :-1], s[:, :-1], t[:, 1:], m.init_state(1))[0].mean().backward()\n"
        "fixed = 2 * sum(p.numel() for p in m.parameters()) + 2 * sum(x.numel() for x in m.init_state(1).values())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - 4 * fixed)"
    )
    # every larger block is given back to the system when it is freed: no holes of the allocator are measured
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=exact)
    return int(done.stdout)


def build(n_layers: int, backward: str, sizes: dict[str, int]) -> tuple[Bit, Tensor, Tensor]:
    """A model over bits, and random bits to read: `n_bytes` of them."""
    config = {name: value for name, value in sizes.items() if name != "n_bytes"}
    torch.manual_seed(0)
    model = Bit(Bit.Config.model_validate({"n_layers": n_layers, "backward": backward, **config}), 3)
    nn.init.normal_(model.nodes, std=0.02)  # or there would be no gradient in the trunk
    tokens = torch.randint(2, (1, 8 * sizes["n_bytes"] + 1))
    return model, tokens, torch.zeros_like(tokens, dtype=torch.bool)


def memory(arguments: argparse.Namespace) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Both measures over depth, and growth per added layer."""
    sizes = {"d_model": 128, "n_heads": 4, "context": 64, "n_bytes": 512}
    rows, depths = [], (4, 8, 16, 32, 64)
    for n_layers in depths:
        row: dict[str, Any] = {"n_layers": n_layers}
        for backward in ("inverse", "stored"):
            row[f"held_bytes_{backward}"] = held_bytes(n_layers, backward, sizes)
            if n_layers in (depths[0], depths[-1]):
                row[f"peak_bytes_{backward}"] = peak_bytes(n_layers, backward, sizes)
        rows.append(row)
        print(json.dumps(row), flush=True)
    figures: dict[str, Any] = dict(sizes)
    for measure in ("held_bytes", "peak_bytes"):
        growth = {
            b: (rows[-1][f"{measure}_{b}"] - rows[0][f"{measure}_{b}"]) / (depths[-1] - depths[0])
            for b in ("inverse", "stored")
        }
        figures[f"{measure}_per_layer_stored"] = round(growth["stored"])
        figures[f"{measure}_per_layer_inverse"] = round(growth["inverse"])
        figures[f"{measure}_growth_ratio"] = round(growth["inverse"] / growth["stored"], 4)
    return "How much memory does a layer add when its activations are computed again?", figures, rows


# -- the ancestor's size ----------------------------------------------------------------------------------------------


def large(arguments: argparse.Namespace) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """One whole update (score, backward, AdamW) of 771 M parameters over 5 lanes: peak memory of the process."""
    lanes, n = 5, arguments.update_tokens
    changes = [
        "model.d_model=1792",
        f"model.n_layers={arguments.layers}",
        "model.n_heads=28",
        'model.backward="inverse"',
    ]
    changes += [f"feed.lanes={lanes}", f"feed.update_tokens={n}", f"model.context={n // 8}"]
    begin_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parts = build_parts(load_recipe(RECIPE, "tiny", changes))
    model: Any
    model, optimizer = parts.network
    nn.init.normal_(model.nodes, std=1e-3)  # zero would leave the trunk without gradient
    tokens, starts = torch.randint(2, (lanes, n + 1)), torch.zeros(lanes, n, dtype=torch.bool)
    begin = time.process_time()
    nats, _ = model.nats(tokens[:, :-1], starts, tokens[:, 1:], model.init_state(lanes))
    nats.mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    seconds = round(time.process_time() - begin, 1)
    figures = {
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "lanes": lanes,
        "update_tokens": n,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "before_gb": round(begin_bytes / 1e9, 3),
        "ancestor_peak_gb": 15.28,
        "nats_per_bit": round(float(nats.detach().mean()), 4),
        "processor_s": seconds,
    }
    return "Does an update at the ancestor's large size fit into its 15.28 GB?", figures, []


# -- growth and diffusion -----------------------------------------------------------------------------------------


def grow(arguments: argparse.Namespace) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Small for ever, small and doubled in width and depth at plateaus, and as large from the start; the same bytes."""
    uris = json.dumps([str(arguments.source.absolute())])
    fixed = [f"source.uris={uris}", f"run.budget={arguments.budget}", "checkpoint.every_s=1e9", *arguments.changes]
    small = ["model.d_model=64", "model.n_layers=2", "model.n_heads=2"]
    arms = {
        "small": small,
        "grows": [*small, 'grow.steps=["width", "depth"]', "grow.window_bytes=8192", "grow.gain=0.15"],
        "large": [],
    }
    rows, each = [], {}
    for name, changes in arms.items():
        runs = [run_once(RECIPE, "tiny", [*changes, *fixed, f"run.seed={seed}"]) for seed in range(arguments.seeds)]
        each[name] = [run["bits_per_byte"] for run in runs]
        more = [a - b for a, b in zip(each[name], each["small"], strict=True)]
        rows.append(
            {
                "arm": name,
                "bits_per_byte": round(statistics.mean(each[name]), 4),
                "more_than_small": round(statistics.mean(more), 4),
                "error": round(statistics.stdev(more) / len(more) ** 0.5, 4) if len(more) > 1 else 0.0,
                "each": [round(bits, 4) for bits in each[name]],
                "n_parameters": runs[0]["n_parameters"],
                "bytes_per_s": round(statistics.median(run["bytes_per_s"] for run in runs)),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    figures = {row["arm"]: row["bits_per_byte"] for row in rows}
    return f"What does growing in the middle of {arguments.budget} cost and gain?", figures, rows


def diffusion(arguments: argparse.Namespace) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Train a denoiser on random windows of 32 bytes, then its bound on text it has not seen, and a sample."""
    text = arguments.source.read_bytes()[: 1 << 17]
    bits = Bits(Bits.Config()).encode(text).ids
    windows = torch.from_numpy(bits).long().view(-1, 8)
    cut, n_bytes = len(windows) * 7 // 8, 32
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = BitDenoiser(BitDenoiser.Config(d_model=128, n_layers=4, n_heads=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))

    def draw(first: int, stop: int, n: int) -> Tensor:
        at = torch.randint(first, stop - n_bytes, (n,), generator=random)
        return torch.stack([windows[a : a + n_bytes] for a in at.tolist()]).flatten(1)

    rows = []
    for update in range(arguments.updates + 1):
        if update % max(1, arguments.updates // 4) == 0:
            found, error = evaluate(model, draw(cut, len(windows), 128), 4, random)
            rows.append({"updates": update, "bits_per_byte_at_most": round(found, 4), "error": round(error, 4)})
            print(json.dumps(rows[-1]), flush=True)
        optimizer.zero_grad()
        bound(model, draw(0, cut, 32), random).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    drawn = sample(model, 1, 8 * n_bytes, 8 * n_bytes, random)[0]
    figures = {"bits_per_byte_at_most": rows[-1]["bits_per_byte_at_most"], "n_bytes": n_bytes}
    figures["sample"] = repr(Bits(Bits.Config()).decode(drawn.tolist()))
    return "What does masked diffusion over bits promise of unseen text, at most?", figures, rows


QUESTIONS = {"diffusion": diffusion, "equal": equal, "grow": grow, "large": large, "memory": memory}


def main() -> None:
    """Parse the command line, measure, print, and keep a record if wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=list(QUESTIONS))
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--for", dest="budget", default="64KB")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--only", action="append", default=[], choices=list(equal_arms()), help="and the last arm")
    parser.add_argument("--update-tokens", type=int, default=256, help="bits per lane and update of `large`")
    parser.add_argument("--updates", type=int, default=400, help="of `diffusion`")
    parser.add_argument("--layers", type=int, default=20, help="of `large`; fewer for a machine without 13 GB")
    parser.add_argument("--keep", metavar="SLUG", help="keep a record under this name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    question, figures, rows = QUESTIONS[arguments.question](arguments)
    print(json.dumps(figures))
    if arguments.keep:
        keep(arguments.keep, question, figures, rows)


if __name__ == "__main__":
    main()

"""What bits as the alphabet are worth, and what reversible blocks save.

python -m bench.bit equal input.txt    bits per byte against `transformer` over bytes of equal compute, 3 seeds
python -m bench.bit memory             bytes held for backward, and peak memory of a process, over depth 4 to 64
python -m bench.bit large              one whole update at the ancestor's large size, 771 M parameters (13 GB!)
python -m bench.bit grow input.txt     growth in the middle of a stream against never growing and being large at once
python -m bench.bit diffusion input.txt    a bound by masked diffusion over bits against the same text, causally
"""

import argparse
import json
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
from livelm.parts import build_parts

RECIPE = Path(__file__).parents[1] / "recipes" / "bit.toml"
BYTES = ["tokenizer.name=bytes", "feed.update_tokens=64"]
TURNS, UPDATES = 12, 4


# -- against bytes ------------------------------------------------------------------------------------------------


def equal_arms() -> dict[str, list[str]]:
    """The recipe, the same trunk over bytes with a softmax over 256, and `transformer` of the same sizes."""
    sizes = ["model.d_model=128", "model.n_layers=4", "model.n_heads=4", "model.context=256"]
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
            model: Any = self._parts.model
            nats, self._state = model.nats(ids[:, :n], starts, ids[:, 1 : n + 1], self._state)
            self._parts.optimizer.zero_grad()
            nats.mean().backward()
            self._parts.optimizer.step()
        return time.process_time() - begin


def equal(arguments: argparse.Namespace) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Bits per byte of every arm over the same bytes, and time per update as a ratio to the last arm."""
    uris = json.dumps([str(arguments.source.absolute())])
    fixed = [f"source.uris={uris}", f"run.budget={arguments.budget}", "checkpoint.every_s=1e9", *arguments.changes]
    rows, arms = [], equal_arms()
    last = list(arms.values())[-1]
    for name, changes in arms.items():
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
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
    sizes = {"d_model": 128, "n_heads": 4, "context": 64, "n_bytes": 1024}
    rows, depths = [], (4, 16, 64)
    for n_layers in depths:
        row: dict[str, Any] = {"n_layers": n_layers}
        for backward in ("inverse", "stored"):
            row[f"held_bytes_{backward}"] = held_bytes(n_layers, backward, sizes)
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
    """Two whole updates (score, backward, AdamW) of 771 M parameters over 5 lanes: peak memory of the process."""
    lanes, n = 5, arguments.update_tokens
    changes = ["model.d_model=1792", "model.n_layers=20", "model.n_heads=28", 'model.backward="inverse"']
    changes += [f"feed.lanes={lanes}", f"feed.update_tokens={n}", f"model.context={n // 8}"]
    begin_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parts = build_parts(load_recipe(RECIPE, "tiny", changes))
    learner = parts.learner(lambda: 0.0)
    model: Any = learner.model
    nn.init.normal_(model.nodes, std=0.02)
    tokens = torch.randint(2, (lanes, n + 1))
    begin = time.monotonic()
    seconds = []
    for _ in range(2):
        nats, _ = model.nats(
            tokens[:, :-1], torch.zeros(lanes, n, dtype=torch.bool), tokens[:, 1:], model.init_state(lanes)
        )
        learner.optimizer.zero_grad()
        nats.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        learner.optimizer.step()
        seconds.append(round(time.monotonic() - begin, 1))
        begin = time.monotonic()
    figures = {
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "lanes": lanes,
        "update_tokens": n,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "before_gb": round(begin_bytes / 1e9, 3),
        "ancestor_peak_gb": 15.28,
        "nats_per_bit": round(float(nats.detach().mean()), 4),
        "seconds": seconds,
    }
    return "Does an update at the ancestor's large size fit into its 15.28 GB?", figures, []


QUESTIONS = {"equal": equal, "memory": memory, "large": large}


def main() -> None:
    """Parse the command line, measure, print, and keep a record if wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=list(QUESTIONS))
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--for", dest="budget", default="64KB")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--update-tokens", type=int, default=512, help="bits per lane and update of `large`")
    parser.add_argument("--keep", metavar="SLUG", help="keep a record under this name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    question, figures, rows = QUESTIONS[arguments.question](arguments)
    print(json.dumps(figures))
    if arguments.keep:
        keep(arguments.keep, question, figures, rows)


if __name__ == "__main__":
    main()

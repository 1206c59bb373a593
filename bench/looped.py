"""What looping blocks, and each switch of the looped transformer, is worth in one pass over a stream.

python -m bench.looped equal input.txt       against `transformer` at equal parameters and at equal compute
python -m bench.looped switches input.txt    each switch the other way, everything else as the recipe has it

Every arm reads the same bytes with the same updates, rates and n-gram tables; nothing is tuned for any of them. Times
are ratios of processor time of updates that take turns in one process.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.prequential import read_once
from bench.record import keep
from livelm.config import load_recipe
from livelm.parts import Parts, build_parts

RECIPE = Path(__file__).parents[1] / "recipes" / "looped.toml"
SHARED = ("d_model", "n_heads", "n_kv_heads", "context", "head_scale", "ngrams", "ngram_rows")
"""Settings of the recipe that `transformer` has too."""
SWITCHES: dict[str, tuple[list[str], list[str]]] = {
    "loop embedding": (["loop_embedding=false"], ["loop_embedding=true"]),
    "U-Net skips": (["skips=false"], ["skips=true"]),
    "grouped-query attention": (["n_kv_heads=4"], ["n_kv_heads=2"]),
    "bigram hash embedding": (["bigram_rows=0"], ["bigram_rows=10240"]),
    "smear by channel": (["smear=none"], ["smear=channel"]),
    "smear by token": (["smear=none"], ["smear=token"]),
    "XSA": (["n_exclusive=0"], ["n_exclusive=1024"]),
    "value embedding": (["n_valued=0"], ["n_valued=2"]),
    "residual mix": (["residual_mix=false"], ["residual_mix=true"]),
    "branch gains": (["branch_gain=false"], ["branch_gain=true"]),
    "query gain": (["query_gain=0.0"], ["query_gain=1.5"]),
    "logit soft-cap": (["logit_cap=0.0"], ["logit_cap=30.0"]),
}
"""Each switch: settings that turn it off, and on."""
TURNS, UPDATES = 12, 4


def settings(model: list[str], arguments: argparse.Namespace) -> list[str]:
    """What makes a recipe of these model settings and the command line."""
    uris = json.dumps([str(arguments.source.absolute())])
    fixed = [f"source.uris={uris}", f"run.budget={arguments.budget}", "run.threads=1", "checkpoint.every_s=1e9"]
    return [*[f"model.{setting}" for setting in model], *arguments.changes, *fixed]


def measure(arms: dict[str, list[str]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Bits per byte of every arm with every seed; all arms take a seed before the next one begins."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name, model in arms.items():
            changes = [*settings(model, arguments), f"run.seed={seed}"]
            bits = read_once(load_recipe(RECIPE, "tiny", changes)).bits_per_byte
            found[name].append(round(bits, 4))
            print(json.dumps({"seed": seed, "arm": name, "bits_per_byte": found[name][-1]}), flush=True)
    return found


def sizes(model: list[str], arguments: argparse.Namespace) -> tuple[int, int]:
    """Parameters without the n-gram tables, which all arms share, and multiply-adds times two per token."""
    built: Any = build_parts(load_recipe(RECIPE, "tiny", settings(model, arguments))).model
    kinds = built.parameter_kinds()
    return sum(p.numel() for kind in kinds if kind != "rows" for _, p in kinds[kind]), built.flops_per_token()


class Timed:
    """A model that does updates on random tokens, to be timed against another in turns."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._n = parts, parts.recipe.feed.update_tokens
        self._state = parts.model.init_state(1)  # type: ignore[operator]
        self._starts = torch.zeros(1, self._n, dtype=torch.bool)

    def run(self) -> float:
        """Processor seconds of some updates (of one thread): a neighbour that takes the core away does not count."""
        model, optimizer = self._parts.network
        begin = time.process_time()
        for _ in range(UPDATES):
            tokens = torch.randint(self._parts.tokenizer.n_vocabulary, (1, self._n + 1))
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            nats, self._state = model.nats(inputs, self._starts, targets, self._state)  # type: ignore[operator]
            optimizer.zero_grad()
            nats.mean().backward()
            optimizer.step()
        return time.process_time() - begin


def time_ratio(model: list[str], base: list[str], arguments: argparse.Namespace) -> float:
    """Median time of an update of `model` over that of `base`, turn by turn; the first turns do not count."""
    arms = [Timed(build_parts(load_recipe(RECIPE, "tiny", settings(each, arguments)))) for each in (model, base)]
    ratios = [arms[0].run() / arms[1].run() for _ in range(TURNS)]
    return round(statistics.median(ratios[TURNS // 4 :]), 3)


def compare(arms: dict[str, list[str]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every arm against the first: difference of the means, in bits per byte, with its standard error by seed."""
    rows: list[dict[str, Any]] = []
    each = measure(arms, arguments)
    first = next(iter(arms))
    for name, model in arms.items():
        bits = each[name]
        differences = [b - a for a, b in zip(each[first], bits, strict=True)]
        n_parameters, flops = sizes(model, arguments)
        rows.append(
            {
                "arm": name,
                "bits_per_byte": round(statistics.mean(bits), 4),
                "sd": round(statistics.stdev(bits), 4) if len(bits) > 1 else 0.0,
                "dense_parameters": n_parameters,
                "flops_per_token": flops,
                "each": bits,
                "more_bits": round(statistics.mean(differences), 4),
                "error": round(statistics.stdev(differences) / len(bits) ** 0.5, 4) if len(bits) > 1 else 0.0,
                "time_ratio": time_ratio(model, arms[first], arguments),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def switch_arms(names: list[str], start: str) -> dict[str, list[str]]:
    """The starting point, and for each switch the arm in which it alone is the other way."""
    off = [setting for setting, _ in SWITCHES.values() for setting in setting]
    published = [setting for name, (_, setting) in SWITCHES.items() if name != "smear by token" for setting in setting]
    base = {"recipe": [], "none": off, "all": published}[start]
    arms = {start: base}
    for name in names:
        without, with_it = SWITCHES[name]
        turned = with_it if start == "none" or not set(with_it) <= _in_force(base) else without
        arms[f"{name}: {' '.join(turned)}"] = [*base, *turned]
    return arms


def _in_force(base: list[str]) -> set[str]:
    """The settings of all switches that are on at this starting point, as `key=value`."""
    model = build_parts(load_recipe(RECIPE, "tiny", [f"model.{setting}" for setting in base])).recipe.model.settings()
    return {f"{key}={json.dumps(value).strip(chr(34))}" for key, value in model.items()}


def equal_arms(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Loops, the plain transformer, and the same blocks without loops, at equal parameters and at equal compute."""
    model = load_recipe(RECIPE, "tiny", settings([], arguments)).model.settings()
    same = ["name=transformer", *[f"{key}={json.dumps(model[key])}" for key in SHARED]]
    # what the switches brought along (value embedding, gains) the plain one gets as width of its feed-forward layers
    missing = sizes([], arguments)[0] - sizes([*same, "n_layers=5"], arguments)[0]
    width = 4 * model["d_model"] + round(missing / (5 * 2 * model["d_model"]))
    return {
        "looped, 5 blocks 7 deep": [],
        "transformer, 5 layers (equal parameters)": [*same, "n_layers=5", f"d_ff={width}"],
        "transformer, 7 layers (equal compute)": [*same, "n_layers=7"],
        "the same blocks, 5 without loops (equal parameters)": ["n_loops=1"],
        "the same blocks, 7 without loops (equal compute)": ["n_loops=1", "n_before=2", "n_after=3"],
    }


def main() -> None:
    """Parse the command line, run every arm with every seed, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=["equal", "switches"])
    parser.add_argument("source", type=Path)
    parser.add_argument("--from", dest="start", choices=["recipe", "none", "all"], default="recipe")
    parser.add_argument("--only", action="append", choices=list(SWITCHES), help="these switches; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--for", dest="budget", default="64KB")
    parser.add_argument("--keep", metavar="SLUG", help="keep a record under this name")
    arguments = parser.parse_args()
    arms = (
        equal_arms(arguments)
        if arguments.question == "equal"
        else switch_arms(arguments.only or [*SWITCHES], arguments.start)
    )
    rows = compare(arms, arguments)
    if arguments.keep:
        asked = {
            "equal": "Do loops beat the flat transformer at equal parameters, and at equal compute",
            "switches": "What is each switch of the looped transformer worth",
        }[arguments.question]
        figures = {row["arm"]: row["more_bits"] for row in rows[1:]}
        figures |= {"bits_per_byte_of_first": rows[0]["bits_per_byte"], "seeds": arguments.seeds}
        keep(arguments.keep, f"{asked} in {arguments.budget} of {arguments.source.name}?", figures, rows)


if __name__ == "__main__":
    main()

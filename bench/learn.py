"""One pass over a stream, graded before it is learned, with several seeds: bits per byte, and bytes per second.

Everything runs through livelm as a user runs it. The baselines are of the very same bytes.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.record import keep
from livelm.config import load_recipe
from livelm.run import run_session, start
from livelm.session import Stop
from livelm.telemetry.fold import Fold
from livelm.types import LN_2

LAST_TOKENS = 10_000


class Watch:
    """Folds the journal, and keeps what the last tokens cost."""

    def __init__(self) -> None:
        self.fold = Fold()
        self.scored: list[tuple[float, int]] = []

    def take(self, record: Mapping[str, Any]) -> None:
        self.fold.take(record)
        if record["kind"] == "scored":
            self.scored.append((record["bits"], record["n_tokens"]))

    def nats(self, batches: list[tuple[float, int]]) -> float:
        """Nats per token of these batches."""
        return LN_2 * sum(b for b, _ in batches) / max(1, sum(n for _, n in batches))

    def last(self) -> list[tuple[float, int]]:
        """The batches that hold the last `LAST_TOKENS` tokens."""
        n = 0
        for at in range(len(self.scored) - 1, -1, -1):
            n += self.scored[at][1]
            if n >= LAST_TOKENS:
                return self.scored[at:]
        return self.scored


def run_once(recipe_file: Path | None, size: str, changes: list[str]) -> dict[str, Any]:
    """One run; the figures of its journal."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch()
        recipe = load_recipe(recipe_file, size, changes)
        run_session(start(recipe, Path(folder) / "run", Stop()), [watch])
    summary = watch.fold.summary()
    learning_s = sum(summary["spans"].values())
    return {
        "seed": recipe.run.seed,
        "bits_per_byte": summary["bits_per_byte"],
        "n_bytes": summary["n_bytes"],
        "n_tokens": summary["n_tokens"],
        "bytes_per_s": summary["n_bytes"] / learning_s,
        "tokens_per_s": summary["n_tokens"] / learning_s,
        "first_nats_per_token": watch.nats(watch.scored[:1]),
        "last_nats_per_token": watch.nats(watch.last()),
        "n_parameters": summary["n_parameters"],
        "baselines": summary["baselines"],
        "spans": summary["spans"],
    }


def parse_runs(description: str | None) -> tuple[argparse.Namespace, Path | None, list[str]]:
    """The options of a benchmark of runs, the recipe if one is named, and all settings but for the seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("inputs", nargs="+", help="[RECIPE.toml] SOURCE ...")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--for", dest="budget", default="")
    parser.add_argument("--keep", metavar="SLUG", help="keep a record under this name")
    arguments = parser.parse_args()
    recipe = Path(arguments.inputs[0]) if arguments.inputs[0].endswith(".toml") else None
    sources = [str(Path(s).absolute()) for s in arguments.inputs[recipe is not None :]]
    changes = [*arguments.changes, f"source.uris={json.dumps(sources)}", "checkpoint.every_s=1e9"]
    changes += [f"run.budget={json.dumps(arguments.budget)}"] if arguments.budget else []
    return arguments, recipe, changes


def main() -> None:
    """Run every seed, print a table."""
    arguments, recipe, changes = parse_runs(__doc__)
    rows = []
    for seed in range(arguments.seeds):
        row = run_once(recipe, arguments.size, [*changes, f"run.seed={seed}"])
        rows.append(row)
        print(
            f"seed {seed}: {row['bits_per_byte']:.4f} bits per byte over {row['n_bytes']:,} bytes "
            f"at {row['bytes_per_s']:,.0f} B/s ({row['tokens_per_s']:,.0f} tokens/s); nats per token "
            f"{row['first_nats_per_token']:.3f} at first, {row['last_nats_per_token']:.3f} in the last 10,000",
            flush=True,
        )
    figures = {
        name: round(statistics.median(row[name] for row in rows), 4)
        for name in ("bits_per_byte", "bytes_per_s", "tokens_per_s", "first_nats_per_token", "last_nats_per_token")
    }
    figures["worst_bits_per_byte"] = round(max(row["bits_per_byte"] for row in rows), 4)
    print(json.dumps({**figures, **rows[0]["baselines"]}))
    if arguments.keep:
        names = " ".join(Path(i).name for i in arguments.inputs)
        question = f"What does one pass over {names} cost, and how fast is it?"
        keep(arguments.keep, question, {**figures, **rows[0]["baselines"]}, rows)


if __name__ == "__main__":
    main()

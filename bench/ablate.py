"""What one setting does: the same stream with each of its values, several seeds, everything else equal.

python -m bench.ablate input.txt model.rank unset 4 8 16 32 --for 128KB --set model.ngrams=[]
"""

import argparse
import json
import statistics
from pathlib import Path

from bench.learn import run_once
from bench.record import keep


def main() -> None:
    """Parse the command line, run every value with every seed, print means and standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("key", help="a setting, such as model.rank")
    parser.add_argument("values", nargs="+", help="its values; `unset` leaves it at its default")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--for", dest="budget", default="128KB")
    parser.add_argument("--keep", metavar="SLUG", help="keep a record under this name")
    arguments = parser.parse_args()
    fixed = [f"source.uris={json.dumps([str(arguments.source.absolute())])}", f"run.budget={arguments.budget}"]
    rows = []
    for value in arguments.values:
        chosen = [] if value == "unset" else [f"{arguments.key}={value}"]
        settings = ["memory.name=none", *arguments.changes, *fixed, *chosen, "checkpoint.every_s=1e9"]
        runs = [run_once(None, arguments.size, [*settings, f"run.seed={seed}"]) for seed in range(arguments.seeds)]
        bits = [run["bits_per_byte"] for run in runs]
        rows.append(
            {
                arguments.key: value,
                "bits_per_byte": round(statistics.mean(bits), 4),
                "sd": round(statistics.stdev(bits), 4) if len(bits) > 1 else 0.0,
                "bytes_per_s": round(statistics.median(run["bytes_per_s"] for run in runs)),
                "n_parameters": runs[0]["n_parameters"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if arguments.keep:
        question = f"What does {arguments.key} do in the first {arguments.budget} of {arguments.source.name}?"
        best = min(rows, key=lambda row: row["bits_per_byte"])
        keep(arguments.keep, question, {"best": best[arguments.key], "seeds": arguments.seeds}, rows)


if __name__ == "__main__":
    main()

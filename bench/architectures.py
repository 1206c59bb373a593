"""Which architecture learns most from a stream in equal time? `livelm compare --models`, with a record of its table.

python -m bench.architectures input.txt --for 40s --pilot 4s --keep architectures
python -m bench.architectures input.txt --for 40s --equal parameters --set 'model.ngrams=[]' --keep architectures-equal

Everything but --keep goes to `livelm compare`. The runs themselves are not kept: their journals are in the table.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.record import keep
from livelm.models import MODELS


def compare(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run the comparison as a user does; what it says on the way goes to standard error."""
    command = [sys.executable, "-m", "livelm", "compare", *arguments, "--out", str(folder / "runs"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """One line of the record's table."""
    model = found["models"][name]
    stated = ("bits_per_byte", "more_bits", "bits_per_byte_shared", "more_bits_shared")
    return {
        "model": name,
        **{key: f"{model[key]['mean']:.3f} ± {model[key]['half_width'] or 0:.3f}" for key in stated},
        "n_bytes": round(model["n_bytes"]["mean"]),
        "bytes_per_s": round(model["bytes_per_s"]["mean"]),
        "ppmd_on_as_many": model["baselines_at_end"] and round(model["baselines_at_end"]["ppmd"], 3),
        "rate": model["rate"],
        "dense_parameters": model["n_dense_parameters"],
        "parameters": model["n_parameters"],
        "flops_per_byte": round(model["flops_per_byte"]),
        "peak_mb": model["peak_resident_bytes"] and round(model["peak_resident_bytes"] / 1e6),
    }


def main() -> None:
    """Compare, print the object, keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--keep", metavar="SLUG", help="keep a record under this name")
    arguments, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = compare(["--models", arguments.models, arguments.source, *rest], folder)
        rows = [row(name, found) for name in found["models"]]
        print(*map(json.dumps, rows), json.dumps(found["baselines"]), *found["notes"], sep="\n")
        if arguments.keep:
            said = ("equal", "budget", "n_seeds", "interval", "n_shared_bytes", "baselines", "notes")
            question = f"Which architecture learns most from {Path(arguments.source).name} at equal {found['equal']}?"
            record = keep(arguments.keep, question, {key: found[key] for key in said}, rows)
            shutil.copy(folder / "runs" / "curves.png", record / "curves.png")


if __name__ == "__main__":
    main()

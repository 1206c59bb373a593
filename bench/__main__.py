"""`python -m bench`: every benchmark that needs no data but what is here or beside the checkout, with a record each."""

import subprocess
import sys
from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data" / "text"
SHAKESPEARE = DATA / "tinyshakespeare" / "input.txt"
WEB = DATA / "openwebtext-1000" / "openwebtext-1000.jsonl.gz"
RUNS = [
    ["bench.kills", "--keep"],
    ["bench.memory", "--keep"],
    ["bench.harness", str(SHAKESPEARE), "--keep"],
    ["bench.learn", str(SHAKESPEARE), "--keep", "tiny-shakespeare"],
    ["bench.wire_speed", str(WEB), "--keep"],
]


def main() -> None:
    """Run them one after another; a benchmark whose data is absent is said and left out."""
    for module, *arguments in RUNS:
        absent = [a for a in arguments if a.startswith("/") and not Path(a).exists()]
        if absent:
            print(f"{module}: left out, there is no {absent[0]}")
            continue
        print(f"== python -m {module} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()

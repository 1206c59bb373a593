"""`python -m bench`: every benchmark that needs no data but what is here or beside the checkout, with a record each."""

import subprocess
import sys
from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data"
SHAKESPEARE = DATA / "text" / "tinyshakespeare" / "input.txt"
WEB = DATA / "text" / "openwebtext-1000" / "openwebtext-1000.jsonl.gz"
PAGES = DATA / "pages" / "trafilatura-eval" / "eval-pages.zip"
RUNS: list[tuple[list[str], Path | None]] = [
    (["bench.kills", "--keep"], None),
    (["bench.memory", "--keep"], None),
    (["bench.harness", str(SHAKESPEARE), "--keep"], SHAKESPEARE),
    (["bench.learn", str(SHAKESPEARE), "--set", "memory.name=none", "--keep", "tiny-shakespeare"], SHAKESPEARE),
    (["bench.both", str(SHAKESPEARE), "--keep", "both-shakespeare"], SHAKESPEARE),
    (["bench.wire_speed", str(WEB), "--keep"], WEB),
    (["bench.worker", str(SHAKESPEARE), "--keep"], SHAKESPEARE),
    (["bench.rwkv7", "speed"], None),
    (["bench.looped", "equal", str(SHAKESPEARE), "--for", "128KB", "--keep", "looped-equal"], SHAKESPEARE),
    (["bench.signals", "--keep"], SHAKESPEARE),
    (["bench.gate", str(SHAKESPEARE), "--keep"], SHAKESPEARE),
    (["bench.gate", str(SHAKESPEARE), "--kinds", "line", "--gate", "low", "--keep"], SHAKESPEARE),
    (["bench.looped", "switches", str(SHAKESPEARE), "--for", "128KB", "--keep", "looped-switches"], SHAKESPEARE),
    (["bench.watch", "--blocks", "1200", "--keep"], DATA / "logs" / "BGL" / "BGL_2k.log"),
    (["bench.dynamic_tokens", "segment", str(SHAKESPEARE), "--keep", "segments-text"], SHAKESPEARE),
    (["bench.dynamic_tokens", "race", str(SHAKESPEARE), "--keep", "shakespeare"], SHAKESPEARE),
    (["bench.poison", str(SHAKESPEARE), "--keep", "poison"], SHAKESPEARE),
    (["bench.efficiency", "--keep"], None),
    (["bench.slow_servers", "--keep"], None),
    (["bench.extraction", "--keep"], PAGES),
    (["bench.crawl", "--keep"], PAGES),
    (["bench.brokers", "--keep"], None),
    (["bench.starve", "--keep"], None),
    (["bench.stream_kills", "--keep"], None),
]
"""What is run, and the data it needs."""


def main() -> None:
    """Run them one after another; a benchmark whose data is absent is said and left out."""
    for (module, *arguments), data in RUNS:
        if data is not None and not data.exists():
            print(f"{module}: left out, there is no {data}")
            continue
        print(f"== python -m {module} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()

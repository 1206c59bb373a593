"""The wire-speed recipe: tokens a second beside the plain PyTorch loop, and what 190,000 tokens of web text teach.

Plain is the same model with an ordinary tied embedding, full softmax by cross-entropy in float32 and fused AdamW over
everything, one update every 32 tokens. livelm's is the whole of `livelm run recipes/wire-speed.toml`.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from bench.learn import run_once
from bench.record import keep
from livelm.config import load_recipe
from livelm.feed import batches
from livelm.parts import build_parts
from livelm.sources import open_sources

RECIPE = Path(__file__).parents[1] / "recipes" / "wire-speed.toml"
DATA = Path(__file__).parents[2] / "shared" / "data"
WEB = DATA / "text" / "openwebtext-1000" / "openwebtext-1000.jsonl.gz"
TOKENIZER = DATA / "tokenizers" / "deepseek-v3" / "tokenizer.json"
PARAMETERS = 35_993_088
BYTES_PER_TOKEN = 4.86
"""Of this text with this tokenizer: turns a budget of tokens into one of bytes."""


def plain_tokens_per_s(settings: Sequence[str], source: Path, n_updates: int) -> float:
    """Median speed of the plain loop after a short warm-up."""
    recipe = load_recipe(RECIPE, "tiny", [*settings, "model.token_table=plain", "optimizer.rate=1e-4"])
    parts = build_parts(recipe)
    learner = parts.learner(lambda: 0.0)
    times = []
    for batch in islice(batches(open_sources([str(source)]), parts.tokenizer, recipe.feed, None), n_updates):
        begin = time.perf_counter()
        learner.update(learner.score(batch))
        times.append(time.perf_counter() - begin)
    return recipe.feed.update_tokens / statistics.median(times[5:])


def main() -> None:
    """Parse the command line, measure both, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=WEB, help="web text (.jsonl)")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="DeepSeek-V3's tokenizer.json")
    parser.add_argument("--tokens", type=int, default=190_000)
    parser.add_argument("--plain-updates", type=int, default=40)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    settings = [f"tokenizer.file={arguments.tokenizer}", f'source.uris=["{arguments.source}"]']
    before = plain_tokens_per_s(settings, arguments.source, arguments.plain_updates)
    budget = f"run.budget={int(arguments.tokens * BYTES_PER_TOKEN)}B"
    row = run_once(RECIPE, "tiny", [*settings, budget, "checkpoint.every_s=1e9"])
    after = plain_tokens_per_s(settings, arguments.source, arguments.plain_updates)
    assert row["n_parameters"] == PARAMETERS
    plain = (before + after) / 2
    figures = {
        "tokens_per_s": round(row["tokens_per_s"], 1),
        "plain_tokens_per_s": round(plain, 1),
        "ratio": round(row["tokens_per_s"] / plain, 2),
        "n_tokens": row["n_tokens"],
        "first_nats_per_token": round(row["first_nats_per_token"], 4),
        "last_10000_nats_per_token": round(row["last_nats_per_token"], 4),
        "bits_per_byte": round(row["bits_per_byte"], 4),
        "xz": round(row["baselines"]["xz"], 4),
        "ppmd": round(row["baselines"]["ppmd"], 4),
        "n_parameters": row["n_parameters"],
    }
    print("\n".join(f"{name:26} {value}" for name, value in figures.items()))
    if arguments.keep:
        keep("wire-speed", "How fast does the wire-speed recipe learn, and what?", figures, [row])


if __name__ == "__main__":
    main()

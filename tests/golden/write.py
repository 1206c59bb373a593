"""The first scores of every architecture on a fixed stream; `python -m tests.golden.write` writes them anew.

`make golden` is a conscious change of numbers: say why in the CHANGELOG.
"""

import json
import random
import tempfile
from pathlib import Path

from livelm.config import load_recipe
from livelm.models import MODELS
from livelm.run import run_session, start
from livelm.session import Stop

N_BATCHES = 50
SETTINGS = [
    "run.threads=1",
    "run.seed=3",
    "memory.name=none",
    "feed.update_tokens=32",
    "optimizer.name=adamw",
    "schedule.name=constant",
    "schedule.warmup=10",
]
BOTH = "both"
MEMORY = ["memory.name=counts", "memory.budget_mib=64", "memory.history_mib=1"]
SIZES: dict[str, list[str]] = {
    "bit": ["d_model=32", "n_layers=2", "n_heads=2", "context=48"],
    "looped": [
        *("d_model=32", "n_heads=2", "context=48", "ngrams=[2, 3]", "ngram_rows=256", "loop_embedding=true"),
        *("residual_mix=true", "branch_gain=true", "query_gain=1.5", "n_exclusive=1024", "n_valued=2"),
        *("smear=token", "logit_cap=30.0"),
    ],
    "rwkv7": ["d_model=32", "n_layers=2", "d_head=16"],
    "transformer": ["d_model=32", "n_layers=2", "n_heads=2", "context=48", "ngrams=[2, 3]", "ngram_rows=256"],
    "worker": [
        *("d_model=32", "n_layers=2", "n_heads=2", "context=48", "stride=4"),
        *("ngrams=[2, 3]", "ngram_rows=256"),
    ],
}
"""Settings that make an architecture tiny; one that is not named here is used as its own defaults make it."""

ALPHABETS: dict[str, list[str]] = {"bit": ["tokenizer.name=bits", "feed.update_tokens=256"]}
"""What an architecture that is made for another alphabet than bytes reads instead; updates of as many bytes."""


def text() -> bytes:
    """A fixed stream with something to learn: words, digits, bytes beyond ASCII."""
    chooser = random.Random(11)
    words = ["stream", "of", "bytes", "and", "naïve", "words", "42", "\n", "learns", "first", "graded,"]
    return " ".join(chooser.choice(words) for _ in range(N_BATCHES * 32)).encode()[: N_BATCHES * 32]


def scores(name: str) -> list[float]:
    """The bits of the first batches of an architecture, or of `both`: a transformer mixed with a memory."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_bytes(text())
        uri = json.dumps([str(Path(folder) / "text.txt")])
        memory = MEMORY if name == BOTH else []
        name = "transformer" if name == BOTH else name
        model = [f"model.{setting}" for setting in SIZES.get(name, [])]
        # `name=` twice: the first clears what the size says of its own architecture
        settings = [f"source.uris={uri}", *SETTINGS, *memory, "model.name=none", f"model.name={name}", *model]
        settings += ALPHABETS.get(name, [])
        session = start(load_recipe(None, "tiny", settings), Path(folder) / "run", Stop())
        run_session(session, [])
        lines = (Path(folder) / "run" / "journal.jsonl").read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    return [record["bits"] for record in records if record["kind"] == "scored"][:N_BATCHES]


def path_of(name: str) -> Path:
    """Where the scores of an architecture are kept."""
    return Path(__file__).parent / f"{name}.txt"


def main() -> None:
    """Write them all."""
    for name in (*MODELS, BOTH):
        path_of(name).write_text("".join(f"{bits:.6f}\n" for bits in scores(name)), "ascii")


if __name__ == "__main__":
    main()

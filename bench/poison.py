"""What a stretch of bad stream costs what comes after it: a run that read it beside one that never did.

Text, then a stretch that teaches nothing or the wrong thing (`KINDS`), then the text goes on; all learned with the
defaults of `--size tiny`, by both memories. A run of both says what each alone would have cost, so the three columns
come from one run. The excess is in bits per byte over the first bytes after the stretch, and over all of them.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.record import keep
from livelm.config import load_recipe
from livelm.run import run_session, start
from livelm.session import Stop

LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
PARTS = {"both": "bits", "counts": "counts_bits", "network": "network_bits"}


def exchanged(text: bytes, chance: random.Random) -> bytes:
    """The text with its letters exchanged for others, the same each time: the right bytes, every lesson wrong."""
    others = list(LETTERS)
    chance.shuffle(others)
    return text.translate(bytes.maketrans(LETTERS, bytes(others)))


def shuffled(text: bytes, chance: random.Random) -> bytes:
    """The words of the text in any order."""
    words = text.split(b" ")
    chance.shuffle(words)
    return b" ".join(words)


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "random bytes": lambda text, chance: chance.randbytes(len(text)),
    "one byte": lambda text, chance: bytes([chance.randrange(256)]) * len(text),
    "letters exchanged": exchanged,
    "words in any order": shuffled,
}


class Costs:
    """Bits of the mixture and of its parts, batch by batch."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, dict[str, float]]] = []
        self._n = 0

    def take(self, record: Mapping[str, Any]) -> None:
        """Keep what a batch cost."""
        if record["kind"] == "scored":
            n = record["n_bytes"]
            self._rows.append((self._n, n, {part: record[name] for part, name in PARTS.items()}))
            self._n += n

    def after(self, at: int, n: int) -> dict[str, float]:
        """Bits per byte of the batches that begin within the `n` bytes from byte `at` on."""
        found = [(n_bytes, bits) for begin, n_bytes, bits in self._rows if at <= begin < at + n]
        n_bytes = sum(n for n, _ in found)
        return {part: sum(bits[part] for _, bits in found) / n_bytes for part in PARTS}


def run_over(texts: list[bytes], seed: int, changes: list[str]) -> Costs:
    """A run over these texts as one document."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stream"
        file.write_bytes(b"".join(texts))
        settings = [f'source.uris=["{file}"]', f"run.seed={seed}", "checkpoint.every_s=1e9", *changes]
        costs = Costs()
        run_session(start(load_recipe(None, "tiny", settings), Path(folder) / "run", Stop()), [costs])
    return costs


def main() -> None:
    """Run every kind beside the clean stream of the same seed; print and keep what it cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a text")
    parser.add_argument("--before", type=int, default=98_304, help="bytes")
    parser.add_argument("--bad", type=int, default=32_784, help="bytes")
    parser.add_argument("--after", type=int, default=49_152, help="bytes")
    parser.add_argument("--soon", type=int, default=8_192, help="bytes after the stretch that are told apart")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--keep", metavar="SLUG", help="keep a record under this name")
    arguments = parser.parse_args()
    text = arguments.file.read_bytes()
    n_before, n_bad, n_after = arguments.before, arguments.bad, arguments.after
    before, after = text[:n_before], text[n_before : n_before + n_after]
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        clean = run_over([before, after], seed, arguments.changes)
        for name, make in KINDS.items():
            bad = make(text[-n_bad:], random.Random(seed))
            costs = run_over([before, bad, after], seed, arguments.changes)
            row: dict[str, Any] = {"kind": name, "seed": seed}
            for when, n in (("soon", arguments.soon), ("all", n_after)):
                with_it, without = costs.after(n_before + n_bad, n), clean.after(n_before, n)
                row |= {f"{part}, {when}": round(with_it[part] - without[part], 4) for part in PARTS}
            rows.append(row)
            print(json.dumps(row), flush=True)
    columns = [column for column in rows[0] if column not in ("kind", "seed")]
    figures = {
        name: {c: round(statistics.median(row[c] for row in rows if row["kind"] == name), 4) for c in columns}
        for name in KINDS
    }
    print(json.dumps(figures, indent=1))
    if arguments.keep:
        keep(arguments.keep, "What does a bad stretch of stream cost what comes after it?", figures, rows)


if __name__ == "__main__":
    main()

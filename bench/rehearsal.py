"""Does rehearsal keep what was learned? A stream of prose, code, logs and agents' sessions, one after another.

Arms with the same network and seed:
  plain     no rehearsal: less compute than the others
  smaller   no rehearsal, shorter batches: more updates for each byte, chosen so that they take as much processor time
  newest    replay updates of the very same size, by the newest slices: the same compute, nothing old in it
  uniform   by slices drawn uniformly from a uniform sample of the stream
  surprise  by slices drawn by what they cost when last looked at, with importance weights
  sharp     the same, more so (alpha 2) and only half made up for (beta 0.5)
Held-out bytes of every domain (never in the stream) are graded from a fresh state after each domain. Forgetting of a
domain: what they cost at the end less what they cost right after it was learned (`evaluate.forgetting`).

python -m bench.rehearsal ../shared/data --keep
"""

import argparse
import json
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.record import keep
from livelm.config import load_recipe
from livelm.evaluate.forgetting import backward_transfer, forgetting
from livelm.feed import batches
from livelm.learn import Rehearsal
from livelm.memory.reservoir import Reservoir
from livelm.parts import Parts, build_parts
from livelm.sources import open_sources
from livelm.types import LN_2

DOMAINS = ("prose", "code", "logs", "sessions")
ARMS = {
    "plain": ["rehearsal.share=0"],
    "smaller": ["rehearsal.share=0"],
    "newest": ["rehearsal.how=uniform"],
    "uniform": ["rehearsal.how=uniform"],
    "surprise": ["rehearsal.how=surprise"],
    "sharp": ["rehearsal.how=surprise", "rehearsal.alpha=2", "rehearsal.beta=0.5"],
}
READ_AT_ONCE = 256


class Newest(Reservoir):
    """The last slices there were, as many as one update takes."""

    def _row_for(self, generator: np.random.Generator) -> int:
        return (self.n_offered - 1) % self.capacity


def texts(data: Path, n_learned: int, n_held: int, seed: int) -> list[tuple[bytes, bytes]]:
    """What is learned and what is held out of each domain; each seed has its own stretch where there is enough."""
    library = Path(sysconfig.get_paths()["stdlib"])
    whole = {
        "prose": (data / "text/tinyshakespeare/input.txt").read_bytes(),
        "code": b"".join(p.read_bytes() for p in sorted(library.glob("[a-h]*.py"))),
        "logs": (data / "logs/HDFS/HDFS_2k.log").read_bytes(),
        "sessions": _sessions(data / "sessions/claude-code-log"),
    }
    found = []
    for name in DOMAINS:
        text, n = whole[name], n_learned + n_held
        if len(text) < n:
            raise SystemExit(f"{name} has {len(text):,} bytes; take less than --learn {n_learned} --held {n_held}.")
        at = seed * n if (seed + 1) * n <= len(text) else (len(text) - n) * seed // 3
        found.append((text[at : at + n_learned], text[at + n_learned : at + n]))
    return found


def run(arguments: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """One pass over the four domains."""
    domains = texts(arguments.data, arguments.learn, arguments.held, seed)
    n_tokens = arguments.smaller if arm == "smaller" else arguments.tokens
    changes = ["memory.name=none", f"run.seed={seed}", f"feed.update_tokens={n_tokens}"]
    changes += [f"rehearsal.share={arguments.share}", *arguments.changes, *ARMS[arm]]
    recipe = load_recipe(None, "tiny", changes)
    parts = build_parts(recipe)
    learner = parts.learner(lambda: 0.0)
    rehearsal = parts.rehearsal(learner)
    if arm == "newest":
        _keep_newest(rehearsal, parts)
    n_updates, n_replayed, bits, learning_s, costs = 0, 0, 0.0, 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.txt" for i in range(len(domains))]
        for path, (text, _) in zip(paths, domains, strict=True):
            path.write_bytes(text)
        n_bytes = 0
        for batch in batches(open_sources(list(map(str, paths))), parts.tokenizer, recipe.feed, None):
            begin = time.process_time()
            scored = learner.score(batch)
            update = learner.update(scored)
            rehearsed = None if rehearsal is None else rehearsal.take(scored, update)
            learning_s += time.process_time() - begin
            bits, n_bytes, n_updates = bits + scored.bits, n_bytes + scored.n_bytes, n_updates + 1
            if rehearsed is not None:
                n_updates, n_replayed = n_updates + rehearsed["n_updates"], n_replayed + rehearsed["n_bytes"]
            if n_bytes >= (len(costs) + 1) * arguments.learn:
                costs.append([_cost(parts, held) for _, held in domains])
    lost = forgetting(costs)
    row = {"arm": arm, "seed": seed, "bits_per_byte": bits / n_bytes, "forgetting": statistics.mean(lost)}
    row |= {"backward_transfer": backward_transfer(costs), "at_end": statistics.mean(costs[-1])}
    row |= {f"forgetting_{name}": value for name, value in zip(DOMAINS, lost, strict=False)}
    row |= {"updates_per_kb": 1000 * n_updates / n_bytes, "replayed_per_byte": n_replayed / n_bytes}
    after = {f"after_{name}": [round(c, 4) for c in line] for name, line in zip(DOMAINS, costs, strict=True)}
    row |= {"processor_s": learning_s, "costs": after}
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def _sessions(folder: Path) -> bytes:
    source = open_sources([f"sessions:{folder}"])
    text = bytearray()
    for document, _ in source.read(None):
        text += document.text
        if len(text) > 1 << 20:
            break
    source.close()
    return bytes(text)


def _keep_newest(rehearsal: Rehearsal | None, parts: Parts) -> None:
    assert rehearsal is not None
    kept, s = rehearsal.kept, parts.recipe.rehearsal
    n_bytes = s.slices * kept.slice_bytes
    rehearsal.kept = Newest(n_bytes, kept.n_context, kept.n_tokens, parts.tokenizer.n_vocabulary)


def _cost(parts: Parts, text: bytes) -> float:
    """Bits per byte of a text by the network as it is, from a fresh state; nothing is learned."""
    model: Any = parts.model
    targets = torch.tensor([parts.tokenizer.encode(text).ids.tolist()])
    inputs = torch.cat([torch.tensor([[parts.tokenizer.mark]]), targets[:, :-1]], dim=1)
    starts = inputs == parts.tokenizer.mark
    state, nats = model.init_state(1), 0.0
    with torch.no_grad():
        for i in range(0, targets.shape[1], READ_AT_ONCE):
            j = slice(i, i + READ_AT_ONCE)
            cost, state = model.nats(inputs[:, j], starts[:, j], targets[:, j], state)
            nats += float(cost.double().sum())
    return nats / LN_2 / len(text)


def main() -> None:
    """Parse the command line, run every arm with every seed, print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the test data")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learn", type=int, default=60_000, help="bytes of each domain that are learned")
    parser.add_argument("--held", type=int, default=6_000, help="bytes held out of each domain")
    parser.add_argument("--tokens", type=int, default=48, help="tokens per update")
    parser.add_argument("--smaller", type=int, default=24, help="the same of the arm `smaller`")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--rows", type=Path, help="add the rows to this file, and count those that are in it already")
    parser.add_argument("--keep", nargs="?", const="rehearsal", metavar="SLUG", help="keep a record under this name")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.rows.open()] if arguments.rows and arguments.rows.exists() else []
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                continue
            rows.append(run(arguments, arm, seed))
            print(json.dumps(rows[-1]), flush=True)
            if arguments.rows:
                with arguments.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    figures: dict[str, Any] = {}
    for arm in arguments.arms:
        mine = [row for row in rows if row["arm"] == arm and row["seed"] in arguments.seeds]
        names = ("bits_per_byte", "forgetting", "at_end", "updates_per_kb", "replayed_per_byte", "processor_s")
        figures[arm] = {name: round(statistics.mean(row[name] for row in mine), 4) for name in names}
        if len(mine) > 1:
            figures[arm] |= {f"{n}_sd": round(statistics.stdev(row[n] for row in mine), 4) for n in names[:3]}
        print(arm, json.dumps(figures[arm]))
    if arguments.keep:
        keep(
            arguments.keep, "Does rehearsal keep what was learned of earlier domains, at equal compute?", figures, rows
        )


if __name__ == "__main__":
    main()

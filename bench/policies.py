"""What each policy of learning is worth when a model trained on other text meets a stream of agent sessions.

For every seed a model learns from TEXT; then each policy forks that run onto SESSIONS, all over the same bytes, graded
before they are learned (`none`: graded only). The rate of each policy is the best of its grid over the first bytes of
the sessions with a seed of its own; the grids are printed and kept. `initial` is the policy `state` with a state that
documents begin with (`initial_state=learned`), `state` with one that is read beside the past (`offset`, its default).
Everything runs through livelm as a user runs it; models that `--bases` holds are not trained again.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.record import keep
from livelm.config import FeedSettings, SourceSettings, load_recipe
from livelm.evaluate.grade import grade
from livelm.feed import batches
from livelm.run import fork, load, run_session, start
from livelm.session import Stop
from livelm.sources import open_sources

MODEL = {"d_model": 128, "n_layers": 3, "d_head": 16}
TRAIN_TOKENS, TUNE_TOKENS = 256, 64
"""Of an update: long ones train sooner."""
COMMON, STATES = [1e-3, 4e-3, 1.6e-2], [3.0, 1.0, 0.3, 0.1]
GRIDS = {"initial": STATES, "state": STATES, "head": COMMON, "last:1": COMMON, "lora:4": COMMON, "all": COMMON}
FALLING = ["schedule.name=cooldown", "schedule.warmup=10", "schedule.share=1.0", "schedule.floor=0.01"]
"""To a hundredth of the rate at the end of the budget: 1 to 0.01 for states (RWKV-PEFT), and the same for all."""
PILOT_SEED = 99
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for 95 % of a mean of so many seeds."""


class Watch:
    """Keeps record 0, and what each batch cost."""

    def __init__(self) -> None:
        self.first: Mapping[str, Any] = {}
        self.scored: list[tuple[float, int]] = []

    def take(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "run":
            self.first = record
        if record["kind"] == "scored":
            self.scored.append((record["bits"], record["n_bytes"]))


def train(text: Path, n_bytes: int, seed: int, out: Path) -> float:
    """A run over the first bytes of a text, unless there is one; bits per byte of its second half."""
    if out.exists():
        records = (json.loads(line) for line in (out / "journal.jsonl").read_text("utf-8").splitlines())
        scored = [(record["bits"], record["n_bytes"]) for record in records if record["kind"] == "scored"]
        return cost(scored[len(scored) // 2 :])
    changes = ["memory.name=none", "model.name=rwkv7", "optimizer.rate=4e-3"]
    changes += [f"model.{name}={value}" for name, value in MODEL.items()]
    changes += [f"feed.update_tokens={TRAIN_TOKENS}", f"source.uris={json.dumps([str(text.absolute())])}"]
    changes += [f"run.budget={n_bytes}B", f"run.seed={seed}", "run.threads=1", "checkpoint.every_s=1e9"]
    watch = Watch()
    run_session(start(load_recipe(None, "tiny", changes), out, Stop()), [watch])
    return cost(watch.scored[len(watch.scored) // 2 :])


def tune(run: Path, sessions: Path, n_bytes: int, policy: str, rate: float) -> Watch:
    """A fork of a run that learns by a policy."""
    changes = [f"optimizer.rate={rate}", "source.sessions.follow=false", *FALLING]
    changes += ["model.initial_state=learned"] if policy == "initial" else []
    changes += [f"learn.policy={'state' if policy == 'initial' else policy}"]
    changes += ["source.sessions.grade=all", f"feed.update_tokens={TUNE_TOKENS}"]
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        session = fork(run, [f"sessions:{sessions.absolute()}"], Path(folder) / "run", f"{n_bytes}B", Stop(), changes)
        run_session(session, [watch])
    return watch


def only_graded(run: Path, sessions: Path, n_bytes: int) -> Watch:
    """The same bytes, nothing learned."""
    parts, learner = load(run)
    settings = SourceSettings(sessions={"follow": False, "grade": "all"})
    source = open_sources([f"sessions:{sessions.absolute()}"], settings)
    learner.reset_lanes(1)
    watch, n = Watch(), 0
    watch.first = {"n_parameters": sum(p.numel() for p in parts.network[0].parameters()), "n_trainable": 0}
    one_lane = FeedSettings(lanes=1, update_tokens=TUNE_TOKENS)
    for scored in grade(learner, batches(source, parts.tokenizer, one_lane, None)):
        watch.scored.append((scored.bits, scored.n_bytes))
        n += scored.n_bytes
        if n >= n_bytes:
            break
    source.close()
    return watch


def cost(scored: list[tuple[float, int]]) -> float:
    """Bits per byte."""
    return sum(bits for bits, _ in scored) / sum(n for _, n in scored)


def choose_rates(run: Path, sessions: Path, n_bytes: int) -> Iterator[dict[str, Any]]:
    """A row for each rate of each grid."""
    for policy, grid in GRIDS.items():
        for rate in grid:
            watch = tune(run, sessions, n_bytes, policy, rate)
            yield {"policy": policy, "rate": rate, "bits_per_byte": round(cost(watch.scored), 4)}


def measure(run: Path, sessions: Path, n_bytes: int, rates: dict[str, float], seed: int) -> Iterator[dict[str, Any]]:
    """A row for each policy."""
    for policy in ("none", *GRIDS):
        frozen = policy == "none"
        watch = only_graded(run, sessions, n_bytes) if frozen else tune(run, sessions, n_bytes, policy, rates[policy])
        scored = watch.scored
        yield {
            "policy": policy,
            "seed": seed,
            "rate": rates.get(policy),
            "n_bytes": sum(n for _, n in scored),
            "share_trained": round(watch.first["n_trainable"] / watch.first["n_parameters"], 5),
            "bits_per_byte": round(cost(scored), 4),
            "last_half": round(cost(scored[len(scored) // 2 :]), 4),
        }


def summarise(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each policy: means over seeds, and what it saves against `none`, seed by seed, with its 95 % interval."""
    frozen = [row for row in rows if row["policy"] == "none"]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        summary = {"policy": policy, "rate": own[0]["rate"], "share_trained": own[0]["share_trained"]}
        for key in ("bits_per_byte", "last_half"):
            saved = [a[key] - b[key] for a, b in zip(frozen, own, strict=True)]
            summary[key] = round(statistics.mean(row[key] for row in own), 3)
            summary[f"{key}_saved"] = round(statistics.mean(saved), 3)
            if len(saved) in T_95:
                half_width = T_95[len(saved)] * statistics.stdev(saved) / math.sqrt(len(saved))
                summary[f"{key}_saved_ci95"] = round(half_width, 3)
        yield summary


def main() -> None:
    """Parse the command line, train, tune, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="what the models are trained on")
    parser.add_argument("sessions", type=Path, help="a folder or file of agent sessions")
    parser.add_argument("--train-bytes", type=int, default=96_000)
    parser.add_argument("--bytes", type=int, default=32_000, help="of the sessions, for each policy")
    parser.add_argument("--pilot-bytes", type=int, default=12_000, help="of the sessions, for each rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bases", type=Path, help="a folder that keeps the trained models, or has them")
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    on_text = []
    with tempfile.TemporaryDirectory() as folder:
        bases = arguments.bases or Path(folder)
        pilot = bases / f"base-{PILOT_SEED}-{arguments.train_bytes}"
        train(arguments.text, arguments.train_bytes, PILOT_SEED, pilot)
        tried = []
        for row in choose_rates(pilot, arguments.sessions, arguments.pilot_bytes):
            tried.append(row)
            print(json.dumps(row), flush=True)
        rates = {p: min((r for r in tried if r["policy"] == p), key=_cost)["rate"] for p in GRIDS}
        for seed in range(arguments.seeds):
            run = bases / f"base-{seed}-{arguments.train_bytes}"
            on_text.append(train(arguments.text, arguments.train_bytes, seed, run))
            for row in measure(run, arguments.sessions, arguments.bytes, rates, seed):
                rows.append(row)
                print(json.dumps(row), flush=True)
    figures: dict[str, Any] = {**MODEL, "seeds": arguments.seeds, "update_tokens": TUNE_TOKENS}
    figures["bits_per_byte_of_text"] = round(statistics.mean(on_text), 3)
    figures |= {summary.pop("policy"): summary for summary in summarise(rows)}
    print(json.dumps(figures, indent=1))
    if arguments.keep:
        question = "What does each policy of learning save on agent sessions after other text?"
        keep("policies", question, figures, [*tried, *rows])


def _cost(row: dict[str, Any]) -> float:
    return row["bits_per_byte"]


if __name__ == "__main__":
    main()

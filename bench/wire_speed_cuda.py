"""The wire-speed recipe on a CUDA device: captured updates against plain ones, the limit, and the whole of a run; and
the same of updates of the default recipe.

The limit of an update is the memory that it has to move: the bfloat16 table twice (scores, and what they send back),
its share of a pass over the table, and weights, gradients and averages of the rest. What keeps an update of 32 tokens
from it is the number of kernels it consists of, which is counted, and timed with kernels that do nothing.

    python -m bench.wire_speed_cuda --tokenizer tokenizer.json TEXT       (marked gpu: needs a CUDA device)
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.learn import run_once
from bench.record import keep
from bench.wire_speed import BYTES_PER_TOKEN, PARAMETERS, RECIPE, TOKENIZER, WEB
from livelm.config import Recipe, load_recipe
from livelm.feed import batches
from livelm.learn import CapturedLearner, Learner
from livelm.parts import build_parts
from livelm.sources import open_sources
from livelm.types import Batch

WARM_UP = 48
"""Updates until windows are full, the update is captured and the card is warm."""
TINY_UPDATES = 500
"""Of the default recipe, which has counts and n-grams: 48 bytes each."""


def timed(work: Callable[[], Any], n: int) -> float:
    """Milliseconds of one of n calls, by the device's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(n):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / n


def measure_machine() -> dict[str, float]:
    """Memory bandwidth (bytes read and written) and what a kernel costs in a graph at the least."""
    data = torch.randn(1 << 28, device="cuda")
    to = torch.empty_like(data)
    copy_ms = statistics.median(timed(lambda: to.copy_(data), 5) for _ in range(5))
    small, graph = torch.zeros(32, 256, device="cuda"), torch.cuda.CUDAGraph()
    small.add_(1)
    with torch.cuda.graph(graph):
        for _ in range(400):
            small.add_(1)
    graph.replay()
    node_us = statistics.median(timed(graph.replay, 5) for _ in range(5)) / 400 * 1e3
    return {"copy_gb_per_s": round(2 * data.nbytes / copy_ms / 1e6), "least_us_per_kernel": round(node_us, 3)}


def learner_of(recipe: Recipe, *, captured: bool) -> Learner:
    """A new learner, whose updates are captured or not."""
    parts = build_parts(recipe.model_copy(update={"run": recipe.run.model_copy(update={"capture": captured})}))
    learner: Any = parts.learner(lambda: 0.0)
    assert isinstance(learner, CapturedLearner) == captured
    return learner


def update_ms(learner: Learner, read: list[Batch]) -> dict[str, float]:
    """Of whole updates, wall clock, in the mean and in the median (a host that others use too stalls now and then);
    the step's half ends when the device is done. And how many were not captured, and how many refused."""
    scores: list[float] = []
    ends: list[float] = []
    n_plain = n_refused = 0
    for i, batch in enumerate(read):
        if i == WARM_UP:
            torch.cuda.synchronize()
            ends.append(time.perf_counter())
        begin = time.perf_counter()
        scored = learner.score(batch)
        scores.append(time.perf_counter() - begin)
        plain = scored.loss is not None  # what was captured has no graph
        update = learner.update(scored)
        if ends:
            ends.append(time.perf_counter())
            n_plain, n_refused = n_plain + plain, n_refused + (update.skipped is not None)
    torch.cuda.synchronize()
    whole = (time.perf_counter() - ends[0]) / (len(read) - WARM_UP)
    wholes = sorted(after - before for before, after in pairwise(ends))
    found = {"update_ms": whole, "median_ms": statistics.median(wholes), "p99_ms": wholes[len(wholes) * 99 // 100]}
    found["score_ms"] = statistics.median(scores[WARM_UP:])
    return {name: round(seconds * 1e3, 4) for name, seconds in found.items()} | {"plain": n_plain, "refused": n_refused}


def graph_ms(learner: CapturedLearner) -> dict[str, float]:
    """What the device takes for each of the two graphs, one replay after the other."""
    captured: Any = learner._captured
    return {
        "score_graph_ms": round(statistics.median(timed(captured._score, 50) for _ in range(5)), 4),
        "step_graph_ms": round(statistics.median(timed(captured._step, 50) for _ in range(5)), 4),
    }


def kernels(learner: Learner, read: list[Batch]) -> tuple[float, list[tuple[str, float, float]]]:
    """Kernels and copies per update, and the dearest: name, times per update, microseconds per update."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for batch in read:
            learner.update(learner.score(batch))
        torch.cuda.synchronize()
    rows = [e for e in found.key_averages() if str(e.device_type).endswith("CUDA")]
    rows.sort(key=lambda e: -e.self_device_time_total)
    n = len(read)
    dearest = [(e.key[:110], round(e.count / n, 2), round(e.self_device_time_total / n, 2)) for e in rows[:25]]
    return sum(e.count for e in rows) / n, dearest


def read_batches(recipe: Recipe, source: Path, n: int) -> list[Batch]:
    """The first n of a stream."""
    return list(islice(batches(open_sources([str(source)]), build_parts(recipe).tokenizer, recipe.feed, None), n))


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=WEB, help="web text (.jsonl)")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="DeepSeek-V3's tokenizer.json")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--plain-updates", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=900_000, help="of a whole run after it; 0: none")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--keep", metavar="SLUG")
    arguments = parser.parse_args()
    settings = [f"tokenizer.file={arguments.tokenizer}", f'source.uris=["{arguments.source}"]', "run.device=cuda"]
    settings += arguments.changes
    recipe = load_recipe(RECIPE, "tiny", settings)
    figures: dict[str, Any] = measure_machine()
    read = read_batches(recipe, arguments.source, arguments.updates)
    rows: list[dict[str, Any]] = []
    for name, captured, n in (
        ("captured", True, arguments.updates),
        ("plain", False, arguments.plain_updates),
        ("captured, again", True, arguments.updates),
    ):
        learner = learner_of(recipe, captured=captured)
        row = update_ms(learner, read[:n])
        n_kernels, dearest = kernels(learner, read[n - 20 : n])
        row |= {"kernels": n_kernels, "tokens_per_s": round(recipe.feed.update_tokens / row["update_ms"] * 1e3)}
        if isinstance(learner, CapturedLearner):
            row |= graph_ms(learner)
        rows.append({"updates": name, **row})
        print(rows[-1], flush=True)
        if name != "captured, again":
            print("\n".join(f"  {count:7.2f} {us:9.2f} us  {key}" for key, count, us in dearest), flush=True)
    tiny = load_recipe(None, "tiny", [f'source.uris=["{arguments.source}"]', "run.device=cuda"])
    read = read_batches(tiny, arguments.source, TINY_UPDATES)
    for name, captured in (("tiny with its counts, captured", True), ("tiny with its counts, plain", False)):
        row = update_ms(learner_of(tiny, captured=captured), read)
        rows.append({"updates": name, **row, "tokens_per_s": round(tiny.feed.update_tokens / row["update_ms"] * 1e3)})
        print(rows[-1], flush=True)
    captured = (rows[0]["tokens_per_s"] + rows[2]["tokens_per_s"]) / 2
    figures |= {"captured_tokens_per_s": round(captured), "plain_tokens_per_s": rows[1]["tokens_per_s"]}
    figures["ratio"] = round(captured / rows[1]["tokens_per_s"], 2)
    if arguments.tokens:
        budget = f"run.budget={int(arguments.tokens * BYTES_PER_TOKEN)}B"
        row = run_once(RECIPE, "tiny", [*settings, budget, "checkpoint.every_s=1e9"])
        assert row["n_parameters"] == PARAMETERS
        wanted = ("tokens_per_s", "n_tokens", "first_nats_per_token", "last_nats_per_token", "bits_per_byte")
        figures |= {f"run_{name}": round(row[name], 4) for name in wanted}
    print(figures)
    if arguments.keep:
        question = "How fast are updates of the wire-speed recipe on a CUDA device, captured as graphs and not?"
        keep(arguments.keep, question, figures, rows)


if __name__ == "__main__":
    main()

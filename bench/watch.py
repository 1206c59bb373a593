"""Surprise as a detector of anomalies, beside two known ones on the very same lines, online and without labels.

BGL: lines; the first column says whether a line is an alert, and is taken off before anything reads it. HDFS: lines of
a generated stream with planted anomalies (`bench.hdfs_like`), one score per block; real HDFS logs with labels take its
place with `--hdfs LOG LABELS`. Every method sees each line once, gives its score, then learns it.

The known ones: drain3 (He et al. 2017, "Drain"), the rarity of a line's template; and compression, how many bytes zlib
needs for a line after the lines before it (as in the normalised compression distance of Cilibrasi and Vitanyi 2005).
For blocks: the rarest template in it, and how many bytes its lines need after those of the last blocks.
"""

import argparse
import csv
import math
import re
import statistics
import time
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from drain3 import TemplateMiner  # type: ignore[import-not-found]  # of the extra `bench`
from drain3.masking import MaskingInstruction  # type: ignore[import-not-found]  # of the extra `bench`
from drain3.template_miner_config import TemplateMinerConfig  # type: ignore[import-not-found]  # of the extra `bench`

from bench.hdfs_like import stream
from bench.record import keep
from livelm.watch.cut import Part
from livelm.watch.settings import WatchSettings
from livelm.watch.watcher import Watcher

DATA = Path(__file__).parents[2] / "shared" / "data" / "logs"
WARM_UP = 200
"""Lines, or blocks, that are not counted."""
WINDOW = 100
"""Lines before a line that zlib knows."""
BLOCK_WINDOW = 40
KEY = r"blk_-?\d+"

Lines = Sequence[bytes]


def read_bgl(path: Path) -> tuple[list[bytes], list[bool]]:
    """Lines without the column of labels, and whether each is an alert."""
    lines, alerts = [], []
    for line in path.read_bytes().splitlines():
        label, _, text = line.partition(b" ")
        lines.append(text)
        alerts.append(label != b"-")
    return lines, alerts


def read_hdfs(log: Path, labels: Path) -> tuple[list[bytes], dict[str, bool]]:
    """Lines, and which blocks are anomalous: a table of BlockId,Label as loghub gives it."""
    with labels.open(newline="") as table:
        wrong = {row["BlockId"]: row["Label"] == "Anomaly" for row in csv.DictReader(table)}
    return log.read_bytes().splitlines(), wrong


def area(scores: Iterable[float], labels: Iterable[bool]) -> float:
    """AUROC: the chance that an anomaly scores above something ordinary, ties half."""
    values, truth = np.array(list(scores)), np.array(list(labels), bool)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n_wrong = int(truth.sum())
    return float((ranks[truth].sum() - n_wrong * (n_wrong + 1) / 2) / (n_wrong * (len(truth) - n_wrong)))


def grade(scores: Sequence[float], labels: Sequence[bool], n_alarms: int) -> dict[str, float]:
    """AUROC; precision among the 30 highest; precision, recall and F1 when `n_alarms` are said."""
    order = np.argsort(-np.array(scores), kind="stable")
    truth = np.array(labels, bool)[order]
    hits, n_wrong = int(truth[:n_alarms].sum()), int(truth.sum())
    return {
        "auroc": round(area(scores, labels), 4),
        "precision_at_30": round(float(truth[:30].mean()), 3),
        "precision": round(hits / n_alarms, 3),
        "recall": round(hits / n_wrong, 3),
        "f1": round(2 * hits / (n_alarms + n_wrong), 3),
    }


def surprises(lines: Lines, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a watch that says everything."""
    watcher = Watcher(WatchSettings(rate=1, **asked))
    parts = (Part(line + b"\n", "log", place, is_line=True) for place, line in enumerate(lines, 1))
    found = [record for part in parts for record in watcher.take(part)]
    return [record for record in [*found, *watcher.finish()] if record["kind"] == "surprise"]


def templates(lines: Lines, masked: bool) -> Iterator[int]:
    """The number of the template that drain3 puts each line under, as it comes."""
    config = TemplateMinerConfig()
    if masked:  # what drain3's authors advise: take off what obviously varies
        config.masking_instructions = [MaskingInstruction(r"\S*\d\S*", "*")]
    miner = TemplateMiner(config=config)
    for line in lines:
        yield int(miner.add_log_message(line.decode("utf-8", "replace").strip())["cluster_id"])


def drain_lines(lines: Lines, masked: bool) -> list[float]:
    """-log2 of the share of earlier lines under the same template."""
    seen: Counter[int] = Counter()
    scores = []
    for n, template in enumerate(templates(lines, masked)):
        scores.append(math.log2((n + 1) / (seen[template] + 0.5)))
        seen[template] += 1
    return scores


def squeeze(text: bytes, before: bytes) -> int:
    """Bytes that zlib needs for a text when it knows what came before."""
    packer = zlib.compressobj(9, zdict=before[-32768:]) if before else zlib.compressobj(9)
    return len(packer.compress(text) + packer.flush())


def squeeze_lines(lines: Lines) -> list[float]:
    """Bytes that each line needs after those before it."""
    return [squeeze(line, b"\n".join(lines[max(0, i - WINDOW) : i])) for i, line in enumerate(lines)]


def in_blocks(lines: Lines, values: Iterable[Any]) -> list[tuple[str, list[Any]]]:
    """The values of each block's lines; blocks in the order of their last line, as they would be closed."""
    found: OrderedDict[str, list[Any]] = OrderedDict()
    for line, value in zip(lines, values, strict=True):
        for key in dict.fromkeys(re.findall(KEY.encode(), line)):
            found.setdefault(key.decode(), []).append(value)
            found.move_to_end(key.decode())
    return list(found.items())


def drain_blocks(lines: Lines, reduce: Callable[[list[float]], float]) -> dict[str, float]:
    """How rare, among earlier blocks, the templates of a block are."""
    seen: Counter[int] = Counter()
    scores = {}
    for n, (block, found) in enumerate(in_blocks(lines, templates(lines, masked=True))):
        kinds = set(found)
        scores[block] = reduce([math.log2((n + 1) / (seen[kind] + 0.5)) for kind in kinds])
        seen.update(kinds)
    return scores


def squeeze_blocks(lines: Lines) -> dict[str, float]:
    """Bytes that the words of a block need after those of the blocks closed before it."""
    plain = [re.sub(rb"\S*\d\S*", b"", line) for line in lines]
    scores, before = {}, [b""]
    for block, found in in_blocks(lines, plain):
        text = b"\n".join(found)
        scores[block] = squeeze(text, b"\n".join(before))
        before = [*before, text][-BLOCK_WINDOW:]
    return scores


def measure_bgl(path: Path) -> list[dict[str, Any]]:
    """One row per method."""
    lines, alerts = read_bgl(path)
    began = time.process_time()
    found = surprises(lines, {})
    seconds = time.process_time() - began
    methods = {
        "livelm watch": [r["score"] for r in found],
        "  its rarity alone": [r["rarity"] for r in found],
        "  long memory alone": [r["rarity"] for r in surprises(lines, {"half_life": 1e9, "recent": 1e9})],
        "  its cost alone": [r["cost"] for r in found],
        "plain surprise: bits": [r["bits"] for r in found],
        "plain surprise: bits per byte": [r["bits_per_byte"] for r in found],
        "drain3, rarity of the template": drain_lines(lines, masked=False),
        "drain3, words with digits masked": drain_lines(lines, masked=True),
        "zlib after the last lines": squeeze_lines(lines),
    }
    truth = alerts[WARM_UP:]
    rows = []
    for name, scores in methods.items():
        rows.append({"log": "BGL", "method": name, **grade(scores[WARM_UP:], truth, sum(truth))})
        print(rows[-1], flush=True)
    print(f"watch: {len(lines) / seconds:.0f} lines per second of processor time, {sum(truth)} alerts counted")
    return rows


def measure_blocks(name: str, lines: Lines, wrong: dict[str, bool], seed: int) -> list[dict[str, Any]]:
    """One row per method."""
    began = time.process_time()
    found = {r["group"]: r for r in surprises(lines, {"group_by": KEY}) if "group" in r}
    seconds = time.process_time() - began
    methods: dict[str, dict[str, float]] = {
        "livelm watch": {block: r["score"] for block, r in found.items()},
        "plain surprise: bits": {block: r["bits"] for block, r in found.items()},
        "plain surprise: bits per byte": {block: r["bits_per_byte"] for block, r in found.items()},
        "drain3, rarest template": drain_blocks(lines, max),
        "drain3, mean rarity of templates": drain_blocks(lines, statistics.mean),
        "zlib after the last blocks": squeeze_blocks(lines),
    }
    rows = []
    for method, scores in methods.items():
        counted = [block for block in scores if block in wrong][WARM_UP:]
        truth = [wrong[block] for block in counted]
        row = {"log": name, "seed": seed, "method": method, **grade([scores[b] for b in counted], truth, sum(truth))}
        rows.append(row)
        print(row, flush=True)
    print(f"watch: {len(lines) / seconds:.0f} lines per second, {len(wrong)} blocks, {sum(wrong.values())} anomalous")
    return rows


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["bgl", "blocks"], help="bgl, blocks (default: both)")
    parser.add_argument("--bgl", type=Path, default=DATA / "BGL" / "BGL_2k.log")
    parser.add_argument("--hdfs", type=Path, nargs=2, metavar=("LOG", "LABELS"), help="a real log with its labels")
    parser.add_argument("--blocks", type=int, default=3000, help="of the generated stream")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if "bgl" in arguments.what:
        rows += measure_bgl(arguments.bgl)
    if "blocks" in arguments.what and arguments.hdfs:
        rows += measure_blocks("HDFS", *read_hdfs(*arguments.hdfs), 0)
    elif "blocks" in arguments.what:
        for seed in range(arguments.seeds):
            wrong: dict[str, bool] = defaultdict(bool)
            lines = []
            for line, block, is_wrong in stream(arguments.blocks, seed):
                lines.append(line.rstrip(b"\n"))
                wrong[block.decode()] = is_wrong
            rows += measure_blocks("like HDFS", lines, dict(wrong), seed)
    if arguments.keep:
        question = "Does watch find labelled anomalies, beside drain3 and compression on the same lines?"
        blocks = [row for row in rows if row["log"] != "BGL"]
        medians = {
            name: {
                figure: statistics.median(row[figure] for row in blocks if row["method"] == name)
                for figure in ("auroc", "precision_at_30", "f1")
            }
            for name in dict.fromkeys(row["method"] for row in blocks)
        }
        keep("watch", question, {f"blocks, {name}": values for name, values in medians.items()}, rows)


if __name__ == "__main__":
    main()

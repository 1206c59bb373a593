"""Count memory alone: bits per byte and KB/s of one core, against xz and PPMd on the same bytes in the same run."""

import argparse
import random
import time
from pathlib import Path

import numpy as np

from bench.record import keep
from livelm.evaluate.baselines import measure
from livelm.memory import CountMemory, CountMemorySettings

DATA = Path(__file__).parents[2] / "shared" / "data"
LOGS = ("Apache", "BGL", "HDFS", "Hadoop", "Linux", "OpenSSH", "Zookeeper")
STREAMS = ["text/tinyshakespeare/input.txt", "text/wikitext-2/test.txt", *(f"logs/{n}/{n}_2k.log" for n in LOGS)]
ZPAQ = {
    "tinyshakespeare/input.txt": 1.969,
    "wikitext-2/test.txt": 1.643,
    "Apache/Apache_2k.log": 0.2226,
    "BGL/BGL_2k.log": 0.7035,
    "HDFS/HDFS_2k.log": 0.9852,
    "Hadoop/Hadoop_2k.log": 0.1875,
    "Linux/Linux_2k.log": 0.3192,
    "OpenSSH/OpenSSH_2k.log": 0.2348,
    "Zookeeper/Zookeeper_2k.log": 0.2928,
}
"""Bits per byte of `zpaq a -m5` (7.15, archive headers included), measured once: it is not installed everywhere."""
HARD_BYTES = 300_000


def hard_streams() -> dict[str, bytes]:
    """What slows naive memories down, or makes them lose."""
    chooser = random.Random(0)
    return {
        "random bytes": chooser.randbytes(HARD_BYTES),
        "one byte": b"a" * HARD_BYTES,
        "NUL": bytes(HARD_BYTES),
        "one long line": b" ".join(b"%d" % chooser.randrange(1000) for _ in range(HARD_BYTES // 4)),
        "two bytes at random": bytes(chooser.choices(b"ab", k=HARD_BYTES)),
    }


def measure_stream(name: str, text: bytes, contexts: str) -> dict[str, float | str]:
    """One row of the table; processor seconds, not those on the clock, since the machine is shared."""
    memory = CountMemory(CountMemorySettings.model_validate({"contexts": contexts}))
    memory.score(b"warm-up")
    memory.reset()
    begin = time.process_time()
    bits = memory.score(text)
    seconds = time.process_time() - begin
    return {"stream": name, "contexts": contexts, "bytes": len(text), "bits": round(float(np.mean(bits)), 4),
            "kb_per_s": round(len(text) / 1000 / seconds, 1)}  # fmt: skip


def main() -> None:
    """Measure every stream with both tables of contexts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", nargs="*", default=["fast", "rich"])
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    rows = []
    for name in STREAMS:
        if not (DATA / name).exists():
            print(f"{name}: left out, it is not there")
            continue
        text, short = (DATA / name).read_bytes(), "/".join(Path(name).parts[-2:])
        peers = measure(text)
        for contexts in arguments.contexts:
            row = measure_stream(short, text, contexts)
            row |= {"xz": round(peers.xz, 4), "ppmd": round(peers.ppmd, 4), "zpaq": ZPAQ[short]}
            row["under_zpaq"] = round(1 - float(row["bits"]) / ZPAQ[short], 4)
            rows.append(row)
            print(row, flush=True)
    for name, text in hard_streams().items():
        for contexts in arguments.contexts:
            rows.append(measure_stream(name, text, contexts))
            print(rows[-1], flush=True)
    if arguments.keep:
        question = "How well does the count memory alone predict, and how fast is it on one core?"
        keep("memory-counts", question, {"streams": len(rows)}, rows)


if __name__ == "__main__":
    main()

"""Count memory alone: bits per byte and KB/s of one core, against xz, PPMd and zpaq on the same bytes in the same run.

zpaq runs beside where it is installed (Debian package `zpaq`); elsewhere recorded figures are taken for the streams
that have them, and the row says so. xz and PPMd are the libraries that every run's baselines use.
"""

import argparse
import gzip
import json
import random
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.collisions import colliding_text
from bench.record import keep
from livelm.evaluate.baselines import measure
from livelm.memory import CountMemory, CountMemorySettings

DATA = Path(__file__).parents[2] / "shared" / "data"
LOGS = ("Apache", "BGL", "HDFS", "Hadoop", "Linux", "OpenSSH", "Zookeeper")
WHOLE = ["text/tinyshakespeare/input.txt", "text/wikitext-2/test.txt", *(f"logs/{n}/{n}_2k.log" for n in LOGS)]
PACKED = {
    "dickens, first 1 MB": "text/silesia/dickens.zip",
    "UDHR, first 1 MB": "text/udhr/udhr-html.zip",
    "openwebtext, first 1 MB": "text/openwebtext-1000/openwebtext-1000.jsonl.gz",
}
PACKED_BYTES = 1_000_000
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


def streams() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every stream that is there."""
    for name in WHOLE:
        if (DATA / name).exists():
            yield "/".join(Path(name).parts[-2:]), (DATA / name).read_bytes()
    for name, path in PACKED.items():
        if (DATA / path).exists():
            yield name, unpack(DATA / path)[:PACKED_BYTES]


def unpack(path: Path) -> bytes:
    """The text of the members of a zip archive, by name, or of the documents of gzipped JSON lines."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return b"".join(archive.read(name) for name in sorted(archive.namelist()))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return "\n".join(json.loads(line)["text"] for line in lines).encode()


def zpaq_bits(name: str, text: bytes) -> dict[str, float | str]:
    """Bits per byte of `zpaq a -m5` on one thread, and whether it ran here."""
    if shutil.which("zpaq") is None:
        return {"zpaq": ZPAQ[name], "zpaq_from": "recorded"} if name in ZPAQ else {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_bytes(text)
        command = ["zpaq", "a", "packed.zpaq", "text", "-m5", "-t1"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        size = (Path(folder) / "packed.zpaq").stat().st_size
    return {"zpaq": round(8 * size / len(text), 4), "zpaq_from": "this run"}


def hard_streams() -> dict[str, bytes]:
    """What slows naive memories down, or makes them lose."""
    chooser = random.Random(0)
    return {
        "random bytes": chooser.randbytes(HARD_BYTES),
        "one byte": b"a" * HARD_BYTES,
        "NUL": bytes(HARD_BYTES),
        "one long line": b" ".join(b"%d" % chooser.randrange(1000) for _ in range(HARD_BYTES // 4)),
        "made to collide": colliding_text(HARD_BYTES),
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
    parser.add_argument("--only", nargs="*", default=[""], help="streams whose names contain one of these")
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    rows = []
    for name, text in streams():
        if not any(part in name for part in arguments.only):
            continue
        peers, zpaq = measure(text), zpaq_bits(name, text)
        for contexts in arguments.contexts:
            row = measure_stream(name, text, contexts)
            row |= {"xz": round(peers.xz, 4), "ppmd": round(peers.ppmd, 4), **zpaq}
            if zpaq:
                row["under_zpaq"] = round(1 - float(row["bits"]) / float(zpaq["zpaq"]), 4)
            rows.append(row)
            print(row, flush=True)
    for name, text in hard_streams().items():
        if not any(part in name for part in arguments.only):
            continue
        for contexts in arguments.contexts:
            rows.append(measure_stream(name, text, contexts))
            print(rows[-1], flush=True)
    if arguments.keep:
        question = "How well does the count memory alone predict, and how fast is it on one core?"
        keep("memory-counts", question, {"streams": len(rows)}, rows)


if __name__ == "__main__":
    main()

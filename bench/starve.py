"""Is the learner ever without text, and what does a crawler beside it on the same cores cost it?

`livelm run` at size tiny over text that is there at once: files, a NATS stream filled before, a crawl of many hosts
without a gap. All have the same text, all run for the same time, in turns. Two figures each: the share of active time
spent in the span `wait` of the journal, with and without what it took until the first report (a crawl must start its
processes); and graded bytes/s after that report, beside those of the files, where nothing else works. The crawl runs
at the default niceness and at none. It stores what it reads in the spool, so it is never slowed down by the learner.
The site is served by a process on the same cores; its processor time is in the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.live.broker_servers import Server, nats_command

from bench.local_streams import Site
from bench.record import keep
from bench.stream_kills import crawl_options
from livelm.sources.brokers.nats import NatsPublisher
from livelm.types import Document

N_HOSTS = 64
N_PAGES = 100_000
N_MORE = 14  # pages of 8 KB
N_DOCUMENTS = 1000
"""Documents in the file and in the broker: more than a tiny model reads in a minute."""


def learned(folder: Path, source: str, seconds: float, settings: list[str]) -> dict[str, float]:
    """Run the command and read its journal: waiting, bytes/s, and what the source said last."""
    options = [word for setting in ("memory.name=none", *settings) for word in ("--set", setting)]
    command = [sys.executable, "-m", "livelm", "run", source, "--for", f"{seconds:g}s", "--out", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True)
    n_bytes, reports, said = 0, [], {"at_s": 0.0, "said": {}}
    with (folder / "journal.jsonl").open(encoding="utf-8") as journal:
        for record in map(json.loads, journal):
            if record["kind"] == "scored":
                n_bytes += record["n_bytes"]
            elif record["kind"] == "spans":
                reports.append((record["at_s"], n_bytes, record["wait_s"]))
            elif record["kind"] == "source":
                said = record
    (start_s, start_bytes, _), (end_s, end_bytes, _) = reports[0], reports[-1]
    return {
        "wait_percent": 100 * sum(wait_s for _, _, wait_s in reports) / end_s,
        "wait_percent_started": 100 * sum(wait_s for _, _, wait_s in reports[1:]) / (end_s - start_s),
        "start_s": start_s,
        "bytes_per_s": (end_bytes - start_bytes) / (end_s - start_s),
        "pages_per_s": said["said"].get("pages", 0) / max(said["at_s"], 1e-9),
    }


def from_crawl(folder: Path, seconds: float, niceness: int) -> dict[str, float]:
    """A crawl of a site that has more pages than can be read; with what its server took of the processor."""
    with closing(Site(N_PAGES, N_HOSTS, n_more=N_MORE)) as site:
        settings = [*crawl_options(site, "source.crawl"), f"source.crawl.niceness={niceness}"]
        row = learned(folder, f"crawl:{site.url(0)}", seconds, settings)
        return {**row, "server_cores": site.used_s / seconds}


def texts() -> list[str]:
    """What the pages say."""
    with closing(Site(N_DOCUMENTS, 1, n_more=N_MORE)) as site:
        return ["\n".join(site.paragraphs(k)) for k in range(N_DOCUMENTS)]


def measure(seconds: float, repeats: int) -> list[dict[str, Any]]:
    """All streams in turns; the median of each figure."""
    documents = texts()
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "text.txt"
        file.write_text("\n".join(documents), "utf-8")
        streams: dict[str, Callable[[Path], dict[str, float]]] = {
            "files": lambda run: learned(run, str(file), seconds, []),
            "crawl, niceness 10": lambda run: from_crawl(run, seconds, 10),
            "crawl, niceness 0": lambda run: from_crawl(run, seconds, 0),
        }
        command = nats_command()
        server = None if command is None else Server(command, folder / "nats")
        if server is not None:
            server.start()
            uri = f"nats://{server.place}/DOCS/docs"
            with closing(NatsPublisher(uri)) as publisher:
                publisher.publish([Document(text=t.encode(), id=f"d{k}", source="x") for k, t in enumerate(documents)])
            streams["nats"] = lambda run: learned(run, uri, seconds, [])
        try:
            for turn in range(repeats):
                for kind, stream in streams.items():
                    rows.setdefault(kind, []).append(stream(folder / f"{kind}-{turn}"))
                    print(kind, {k: round(v, 3) for k, v in rows[kind][-1].items()}, flush=True)
        finally:
            if server is not None:
                server.kill()
    return [{"stream": kind, **_median(found)} for kind, found in rows.items()]


def _median(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(row[name] for row in found), 3) for name in found[0]}


def main() -> None:
    """Parse the command line, measure, print a table, keep a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of one run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)  # learner, crawler and servers inherit it
    rows = measure(arguments.seconds, arguments.repeats)
    alone = next(row["bytes_per_s"] for row in rows if row["stream"] == "files")
    for row in rows:
        row["of_alone_percent"] = round(100 * row["bytes_per_s"] / alone, 1)
        print(
            f"{row['stream']:<20} wait {row['wait_percent']:.2f} % ({row['wait_percent_started']:.2f} % once started), "
            f"{row['bytes_per_s']:8,.0f} bytes/s ({row['of_alone_percent']:5.1f} % of alone), "
            f"{row['pages_per_s']:6.1f} pages/s, server {row.get('server_cores', 0.0):.2f} cores"
        )
    if arguments.keep:
        figures = {f"{row['stream']}: wait %": row["wait_percent_started"] for row in rows}
        figures |= {f"{row['stream']}: % of bytes/s alone": row["of_alone_percent"] for row in rows}
        question = "How long does the learner wait for text, and what does a crawler beside it on two cores cost it?"
        keep("starve", question, {**figures, "cores": len(cores), "seconds": arguments.seconds}, rows)


if __name__ == "__main__":
    main()

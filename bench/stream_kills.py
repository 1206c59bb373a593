"""Kill whatever moves a live stream, again and again; nothing may be lost and nothing graded twice.

Real commands in real processes on loopback, killed with SIGKILL at random moments and given again: a crawl into a
broker that another process learns from (`outgrow`: crawler, learner and nats-server die), a run that crawls, one that
follows sessions while they grow, one that reads a feed which breaks off all the time. Then it is counted, from the
journal and the graded bytes, against what the site, the writer and the feed have.
"""

import argparse
import json
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bench.deaths import BrokerServer, Deaths, Learner, Program
from bench.local_streams import Feed, Site, prose
from bench.record import keep
from livelm.feed.spool import Spool
from livelm.sources.brokers.nats import Nats, NatsPublisher, NatsSettings
from livelm.types import Document

PAD = Document(text=b"The end. " * 16, id="pad", source="pad")
"""What comes last in a stream without an end: it fills the last update of what counts."""


def graded(learner: Learner) -> tuple[list[str], Counter[str]]:
    """The ids of documents in the order of the journal, and how many bytes of each were graded.

    Raises RuntimeError when the journal counts wrongly.
    """
    ids: dict[int, str] = {}
    n_bytes: Counter[str] = Counter()
    names: list[str] = []
    facts = [record for record in learner.journal() if "seq" in record]
    if [record["seq"] for record in facts] != list(range(len(facts))):
        raise RuntimeError("facts of the journal are missing or doubled")
    for record in facts:
        if record["kind"] == "document":
            ids[record["ordinal"]] = record["id"]
            names.append(record["id"])
        elif record["kind"] == "scored":
            for ordinal, _, n in record["documents"]:
                n_bytes[ids[ordinal]] += n
    return names, n_bytes


def compare(
    learner: Learner, documents: Sequence[Document], wanted: dict[str, str], pad: str = PAD.id
) -> dict[str, int]:
    """What is wrong with a run: `wanted` texts by id that never came, came twice; graded bytes that differ.

    `documents` is the stream as the broker or the spool has it. The pad is not counted, but may follow.
    """
    names, n_bytes = graded(learner)
    came = Counter(d.id for d in documents if d.id != pad)
    whole = {d.id for d in documents if d.id in wanted and wanted[d.id] in " ".join(d.text.decode().split())}
    text = b"".join(d.text for d in documents if d.id != pad)
    found = (learner.run / "graded.bytes").read_bytes()
    lengths = {d.id: len(d.text) for d in documents}
    return {
        "documents": len(wanted),
        "lost": len(wanted.keys() - set(names)) + len(wanted.keys() - whole),
        "twice": sum(n - 1 for n in came.values()) + sum(n - 1 for n in Counter(names).values()),
        "strange": len(set(names) - wanted.keys() - {pad}),
        "bytes": len(text),
        "bytes_wrong": sum(abs(lengths[d] - n_bytes[d]) for d in wanted.keys() & lengths.keys())
        + (not (text + PAD.text).startswith(found) or len(found) < len(text)),
    }


def crawl_options(site: Site, prefix: str) -> list[str]:
    """Settings of a crawl of this site: who asks, no pause, and its private addresses allowed."""
    values = {"contact": "https://example.org/", "scope": "links", "gap_s": 0.0, "answer_factor": 0.0}
    values |= {"allow": site.hosts}
    return [f"{prefix}.{name}={json.dumps(value)}" for name, value in values.items()]


def outgrow(folder: Path, n_kills: int, n_documents: int, seed: int) -> dict[str, Any]:
    """A crawler that writes to a broker, a learner that reads it, and the broker: all of them die."""
    with _closing(Site(n_documents, 8, 0.25)) as site:
        broker = BrokerServer(folder / "nats", lambda: site.n_asked)
        uri, run = f"nats://{broker.place}/PAGES/pages", folder / "run"
        options = [word for setting in crawl_options(site, "source.crawl") for word in ("--set", setting)]
        words = ["crawl", site.url(0), "--to", uri, "--out", folder / "crawl", *options]
        crawler = Program(lambda: words, lambda: site.n_asked, folder / "crawler.log")
        learner = Learner(run, uri, [], folder / "learner.log")
        deaths = Deaths({"broker": broker, "crawler": crawler, "learner": learner}, seed)
        broker.start()
        try:
            crawler.start()
            deaths.wait(lambda: site.n_asked > 10)
            learner.start()
            deaths.take(_turns(["crawler", "learner", "broker"], n_kills, seed), reach=n_documents // 8)
            deaths.wait(lambda: crawler.ended() == 0)
            with closing(NatsPublisher(uri)) as publisher:
                publisher.publish([PAD])
            with closing(Nats(uri, NatsSettings(durable="count", until_empty=True, dedupe_messages=0))) as source:
                documents = [document for document, _ in source.read(None)]
            n_bytes = sum(len(d.text) for d in documents if d.id != PAD.id)
            deaths.wait(lambda: learner.n_graded() >= n_bytes)
            _stop(learner)
            return _row("outgrow", deaths, compare(learner, documents, site.pages()))
        finally:
            for victim in (crawler, learner, broker):
                victim.kill()


def crawl(folder: Path, n_kills: int, n_documents: int, seed: int) -> dict[str, Any]:
    """A run that crawls by itself."""
    with _closing(Site(n_documents, 8, 0.15)) as site:
        settings = crawl_options(site, "source.crawl")
        learner = Learner(folder / "run", f"crawl:{site.url(0)}", settings, folder / "learner.log")
        deaths = Deaths({"learner": learner}, seed)
        learner.work = lambda: site.n_asked
        learner.start()
        try:
            deaths.take(["learner"] * n_kills, reach=n_documents // 8)
            deaths.wait(lambda: learner.ended() == 0)
        finally:
            learner.kill()
        return _row("crawl", deaths, compare(learner, spooled(learner), site.pages()))


def sse(folder: Path, n_kills: int, n_documents: int, seed: int) -> dict[str, Any]:
    """A run that reads a feed which breaks off once in 25 events."""
    texts = [prose(f"e{k}", 24) for k in range(n_documents)]
    with _closing(Feed([*texts, PAD.text.decode()], seed)) as feed:
        settings = ['source.sse.allow=["127.0.0.1"]', 'source.sse.text_fields=["text"]', "source.sse.backoff_s=0.05"]
        learner = Learner(folder / "run", f"sse:{feed.url}", settings, folder / "learner.log")
        deaths = Deaths({"learner": learner}, seed)
        learner.start()
        try:
            deaths.take(["learner"] * n_kills, reach=10_000)
            n_bytes = sum(map(len, texts))
            deaths.wait(lambda: learner.n_graded() >= n_bytes)
            _stop(learner)
        finally:
            learner.kill()
        documents = spooled(learner)
        by_text = {d.text.decode(): d.id for d in documents}
        wanted = {by_text.get(text, f"never came: {text[:40]}"): text for text in texts}
        return _row("sse", deaths, compare(learner, documents, wanted, pad=by_text.get(PAD.text.decode(), "")))


def sessions(folder: Path, n_kills: int, n_documents: int, seed: int, secrets: Sequence[str] = ()) -> dict[str, Any]:
    """A run that follows conversations while they are written; `secrets` are said in them, by everybody.

    Every answer has a text of its own, which must be among the graded bytes once.
    """
    logs, answers = folder / "logs", [prose(f"a{k}", 24) for k in range(n_documents)]
    logs.mkdir()
    settings = ["source.sessions.poll_s=0.05", "source.sessions.settle_s=0.3"]
    learner = Learner(folder / "run", f"sessions:{logs}", settings, folder / "learner.log")
    deaths = Deaths({"learner": learner}, seed)
    written = _write_turns(logs, answers, secrets)
    n_first = len(answers) // (n_kills + 1)
    for _ in range(n_first):
        next(written)
    learner.start()
    try:
        for _ in range(n_kills):
            deaths.take(["learner"], reach=6000)
            for _ in range(n_first):
                next(written)
        for _ in written:
            pass
        graded_bytes = learner.run / "graded.bytes"
        deaths.wait(lambda: graded_bytes.exists() and all(a.encode() in graded_bytes.read_bytes() for a in answers))
        _stop(learner)
    finally:
        learner.kill()
    found = graded_bytes.read_bytes()
    counts = [found.count(answer.encode()) for answer in answers]
    wrong = {"lost": counts.count(0), "twice": sum(n - 1 for n in counts if n), "documents": len(answers)}
    _, n_bytes = graded(learner)
    return _row("sessions", deaths, wrong | {"bytes": len(found), "bytes_wrong": abs(n_bytes.total() - len(found))})


def _write_turns(logs: Path, answers: Sequence[str], secrets: Sequence[str]) -> Iterator[None]:
    """Append a question and an answer to one of two logs of Claude Code, at each step; at last the pad to both."""
    before: dict[Path, str | None] = {}
    for k, answer in enumerate([*answers, PAD.text.decode(), PAD.text.decode()]):
        path = logs / f"session-{k % 2}.jsonl"
        secret = f" The key is {secrets[k % len(secrets)]} and stays here." if secrets else ""
        call = {"type": "tool_use", "id": f"t{k}", "name": "Bash", "input": {"command": f"true #{secret}"}}
        said = {
            "user": [{"type": "text", "text": f"Question {k}?{secret}"}],
            "assistant": [{"type": "text", "text": f"{answer}{secret}"}, call],
            "result": [{"type": "tool_result", "tool_use_id": f"t{k}", "content": f"It says:{secret}"}],
        }
        with path.open("a") as log:
            for name, content in said.items():
                role = "assistant" if name == "assistant" else "user"
                message = {"role": role, "content": content, "id": f"m{k}{name}"}
                row = {"type": role, "uuid": f"u{k}{name}", "parentUuid": before.get(path), "sessionId": path.stem}
                log.write(json.dumps({**row, "message": message}) + "\n")
                before[path] = f"u{k}{name}"
        yield


def spooled(learner: Learner) -> list[Document]:
    """The stream of a run as its spool has it."""
    spool = Spool(learner.run / "spool")
    spool.finish() if not spool.ended else None
    with closing(spool):
        return [document for document, _ in spool.read(None)]


def _stop(learner: Learner) -> None:
    code = learner.stop()
    if code not in (0, -signal.SIGTERM):  # told to end while it still loads, a process has nothing to save
        raise RuntimeError(f"the learner ended with {code}, see {learner.log}")


def _turns(names: Sequence[str], n_kills: int, seed: int) -> list[str]:
    turns = [names[k % len(names)] for k in range(n_kills)]
    random.Random(seed).shuffle(turns)
    return turns


def _row(kind: str, deaths: Deaths, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "stream": kind,
        "kills": deaths.kills.total(),
        "killed": dict(deaths.kills),
        "exits": dict(deaths.exits),
        **counts,
    }


@contextmanager
def _closing(server: Any) -> Iterator[Any]:
    try:
        yield server
    finally:
        server.close()


KINDS: dict[str, Callable[[Path, int, int, int], dict[str, Any]]] = {
    "outgrow": outgrow,
    "crawl": crawl,
    "sessions": sessions,
    "sse": sse,
}
WRONG = ("lost", "twice", "strange", "bytes_wrong")


def soak(kind: str, n_kills: int, per_run: int, n_documents: int, seed: int) -> dict[str, Any]:
    """Runs of one kind until `n_kills` deaths. Raises RuntimeError at the first thing lost or doubled."""
    total: Counter[str] = Counter()
    while total["kills"] < n_kills:
        with tempfile.TemporaryDirectory() as folder:
            row = KINDS[kind](Path(folder), min(per_run, n_kills - total["kills"]), n_documents, seed + total["runs"])
        if any(row.get(name) for name in WRONG):
            raise RuntimeError(f"something was lost or doubled (seed {seed + total['runs']}): {row}")
        total.update({name: row[name] for name in ("kills", "documents", "bytes")} | {"runs": 1})
        print(row, flush=True)
    return {"stream": kind, **total, "lost": 0, "twice": 0}


def main() -> None:
    """Parse the command line, soak, and keep a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="per kind of stream")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--per-run", type=int, default=12, help="kills in one run, after which another begins")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    rows = [soak(k, arguments.kills, arguments.per_run, arguments.documents, arguments.seed) for k in arguments.kinds]
    if arguments.keep:
        figures = {name: sum(row[name] for row in rows) for name in ("kills", "documents", "lost", "twice")}
        question = "Crawler, learner and broker are killed with SIGKILL at random: what is lost, what graded twice?"
        keep("stream-kills", question, figures, rows)


if __name__ == "__main__":
    main()

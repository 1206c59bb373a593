"""Feeds whose servers drop, repeat, truncate, stall and send garbage: no gap, no double, whatever they do."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.live.feed_servers import (
    HOST,
    OK,
    Answers,
    BadJetstream,
    BadSse,
    header,
    is_post,
    jetstream,
    observed,
    serving,
    some,
    sse,
    texts,
    through_json,
)

from livelm.feed.spool import Spool
from livelm.feed.spooled import Spooled
from livelm.types import Cursor, Document

pytestmark = pytest.mark.alone


@pytest.mark.slow
def test_sse_has_no_gap_and_no_double_over_hundreds_of_broken_connections() -> None:
    server = BadSse(5500)
    with serving(Answers(server)) as port:
        source = sse(port)
        read = some(source, None, server.n)
        seen = observed(source)
    assert texts(read) == [f"event {k}" for k in range(server.n)]
    assert seen["reconnects"] >= 150
    assert server.n_connections >= 200
    assert seen["gaps"] == 0
    assert seen["drops"]["repeat"] > 500
    assert seen["drops"]["malformed"] > 100
    assert seen["failed_connects"] > 20


@pytest.mark.slow
def test_jetstream_has_no_gap_and_no_double_over_hundreds_of_broken_connections() -> None:
    server = BadJetstream(7500)
    posts = [k for k in range(server.n) if is_post(k)]
    with serving(server) as port:
        source = jetstream(port)
        read = some(source, None, len(posts))
        seen = observed(source)
    assert sorted(texts(read)) == sorted(f"event {k}" for k in posts)
    assert seen["reconnects"] >= 200
    assert seen["gaps"] == 0
    assert seen["drops"]["delete"] in {n := sum(k % 7 != 3 and k % 11 == 5 for k in range(server.n)), n - 1}
    assert seen["drops"]["malformed"] > 50
    assert len({document.id for document, _ in read}) == len(posts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sse", "ws"])
def test_a_new_source_continues_from_any_cursor_without_gap_or_double(kind: str) -> None:
    n = 900
    expected = [f"event {k}" for k in range(n) if kind == "sse" or is_post(k)]
    chance = random.Random(3)
    read: list[tuple[Document, Cursor]] = []
    with serving(Answers(BadSse(n)) if kind == "sse" else BadJetstream(n)) as port:
        while len(read) < len(expected):
            source = sse(port) if kind == "sse" else jetstream(port)
            left = len(expected) - len(read)
            read += some(source, through_json(read[-1][1]) if read else None, min(left, chance.randrange(1, 120)))
    assert sorted(texts(read)) == sorted(expected)
    assert max(len(json.dumps(dict(cursor.at))) for _, cursor in read) < 2500


CHILD = """
import json, sys
from livelm.sources.feeds import *
from livelm.types import Cursor
kind, target, path = sys.argv[1:]
quick = dict(allow=("127.0.0.1",), backoff_s=0.004, backoff_max_s=0.02, idle_timeout_s=0.1, start_tries=100)
if kind == "sse":
    source = Sse(target, SseSettings(**quick, text_fields=("text",)))
else:
    source = WebSocket(target, WebSocketSettings(**quick, rewind_s=0.01))
lines = open(path).read().splitlines()
cursor = Cursor(kind, json.loads(lines[-1])["cursor"]) if lines else None
with open(path, "a") as out:
    for document, after in source.read(cursor):
        out.write(json.dumps({"text": document.text.decode(), "cursor": dict(after.at)}) + chr(10))
        out.flush()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sse", "ws"])
def test_kill_9_at_random_moments_loses_and_doubles_nothing(kind: str, tmp_path: Path) -> None:
    n, path, chance = 1500, tmp_path / "read.jsonl", random.Random(5)
    path.touch()
    expected = sorted(f"event {k}" for k in range(n) if kind == "sse" or is_post(k))
    with serving(Answers(BadSse(n)) if kind == "sse" else BadJetstream(n)) as port:
        target = f"http://{HOST}:{port}/" if kind == "sse" else f"ws://{HOST}:{port}/subscribe"
        for kill in range(3):
            n_before = path.read_bytes().count(b"\n")
            child = subprocess.Popen([sys.executable, "-c", CHILD, kind, target, str(path)])
            try:
                wanted = len(expected) if kill == 2 else min(len(expected), n_before + chance.randrange(50, 500))
                deadline = time.monotonic() + 60
                while path.read_bytes().count(b"\n") < wanted and time.monotonic() < deadline:
                    assert child.poll() is None
                    time.sleep(0.005)
            finally:
                child.send_signal(signal.SIGKILL)
                child.wait(10)
            whole = path.read_bytes()
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])  # the spool cuts a torn record off in the same way
    assert sorted(json.loads(line)["text"] for line in path.read_text().splitlines()) == expected


def test_spooled_and_resumed_anywhere_the_rest_is_the_same(tmp_path: Path) -> None:
    with serving(Answers(BadSse(40))) as port:
        whole = some(Spooled(sse(port), Spool(tmp_path / "spool")), None, 30)
        for k in (0, 1, 13, 28):
            rest = some(Spooled(sse(port), Spool(tmp_path / "spool")), through_json(whole[k][1]), 29 - k)
            assert rest == whole[k + 1 :]


def steady(n: int) -> Answers:
    """Sends n events as fast as they are taken, then waits."""

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        for k in range(int(header(head, "Last-Event-ID") or -1) + 1, n):
            writer.write(b'id: %d\ndata: {"text": "event %d"}\n\n' % (k, k))
            await writer.drain()
        await asyncio.sleep(30)

    return Answers(answer)


def test_a_slow_learner_holds_the_feed_back_and_gets_everything() -> None:
    with serving(steady(3000)) as port:
        source = sse(port, queue_events=10, idle_timeout_s=5)
        most = 0
        read = []
        for document, _ in islice(source.read(None), 3000):
            most = max(most, observed(source)["queued_events"])
            read.append(document.text)
            if len(read) % 500 == 0:
                time.sleep(0.05)
        source.close()
    assert read == [b"event %d" % k for k in range(3000)]
    assert most <= 10
    assert observed(source)["drops"] == {}


@pytest.mark.parametrize(("overflow", "reason"), [("drop_oldest", "overflow_oldest"), ("sample", "overflow_sample")])
def test_what_a_slow_learner_misses_by_rule_is_counted(overflow: Any, reason: str) -> None:
    n = 3000
    with serving(steady(n)) as port:
        source = sse(port, queue_events=10, overflow=overflow, idle_timeout_s=5)
        documents = source.read(None)
        read = [next(documents)[0].text]
        deadline = time.monotonic() + 60
        while sum(observed(source)["drops"].values()) + observed(source)["queued_events"] + 1 < n:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # the learner is busy, the feed goes on
        for _ in range(observed(source)["queued_events"]):
            read.append(next(documents)[0].text)
        source.close()
        assert list(documents) == []
    numbers = [int(text.split()[1]) for text in read]
    assert numbers == sorted(set(numbers))
    assert len(read) + observed(source)["drops"][reason] == n
    assert len(read) <= 12
    if overflow == "drop_oldest":
        assert numbers[-1] == n - 1


def test_close_ends_a_read_that_waits() -> None:
    with serving(steady(0)) as port:
        source = sse(port, idle_timeout_s=60)
        ended = threading.Event()
        threading.Thread(target=lambda: (list(source.read(None)), ended.set()), daemon=True).start()
        assert not ended.wait(0.3)
        source.close()
        source.close()
        assert ended.wait(30)
    deadline = time.monotonic() + 30
    while [thread for thread in threading.enumerate() if thread.name == "livelm-sse"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)

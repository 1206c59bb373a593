"""A crawl that was prepared: its processes wait for it, serve it, and never outlive it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.live.test_crawl import Web, children, crawled, settings, tree, wait_for, words

from livelm import run as run_module
from livelm.config import Recipe, load_recipe
from livelm.errors import ConfigError
from livelm.session import Stop
from livelm.sources.mix import Mix
from livelm.sources.web import worker as worker_module
from livelm.sources.web.channel import FRAME, Order
from livelm.sources.web.crawl import Crawl
from livelm.sources.web.item import unpack
from livelm.types import Source

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web(4)
    yield server
    server.close()


def test_a_prepared_crawl_reads_with_the_processes_that_wait_for_it(web: Web) -> None:
    expected, before = tree(web, 24), children(os.getpid())
    crawl = Crawl(web.url(0, "/"), settings(web, processes=2))
    crawl.prepare()
    prepared = children(os.getpid()) - before
    assert len(prepared) == 2
    with closing(crawl):
        stream = crawl.read(None)
        found = {next(stream)[0].url}
        assert children(os.getpid()) - before == prepared
        found |= {document.url for document, _ in stream}
    assert found == expected
    assert children(os.getpid()) - before == set()


def test_one_that_died_while_it_waited_is_replaced(web: Web) -> None:
    expected, before = tree(web, 8), children(os.getpid())
    crawl = Crawl(web.url(0, "/"), settings(web))
    crawl.prepare()
    (pid,) = children(os.getpid()) - before
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
    assert {document.url for document in crawled(crawl)} == expected
    assert crawl.observe()["restarts"] == 0
    assert children(os.getpid()) - before == set()


@pytest.mark.parametrize("wrap", [lambda crawl: crawl, lambda crawl: Mix([crawl], [1.0], ["a"])])
def test_one_that_is_never_read_leaves_no_process(web: Web, wrap: Callable[[Crawl], Source]) -> None:
    before = children(os.getpid())
    source: Any = wrap(Crawl(web.url(0, "/"), settings(web, processes=3)))
    source.prepare()
    assert len(children(os.getpid()) - before) == 3
    source.close()
    source.close()
    assert children(os.getpid()) - before == set()
    assert not web.requests


PREPARED = """
import sys, time
from livelm.sources.web.crawl import Crawl
from livelm.sources.web.crawl_settings import CrawlSettings
Crawl("https://example.org/", CrawlSettings(contact="https://example.org/", processes=2)).prepare()
print("prepared", flush=True)
time.sleep(600)
"""


def test_a_killed_run_takes_the_processes_along_that_still_wait() -> None:
    process = subprocess.Popen([sys.executable, "-c", PREPARED], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "prepared\n"
        started = children(process.pid)
        assert len(started) == 2
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def test_a_run_prepares_its_source_before_the_model_and_closes_it_when_that_fails(
    web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, during = children(os.getpid()), set[int]()

    def build(recipe: Recipe) -> None:
        during.update(children(os.getpid()) - before)
        raise ConfigError("no such model")

    monkeypatch.setattr(run_module, "open_sources", lambda *_: Crawl(web.url(0, "/"), settings(web)))
    monkeypatch.setattr(run_module, "build_parts", build)
    with pytest.raises(ConfigError, match="no such model"):
        run_module.start(load_recipe(None, "tiny"), tmp_path / "run", Stop())
    assert len(during) == 1
    assert children(os.getpid()) - before == set()


def test_the_first_document_is_sent_before_a_commit_is_due(
    web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    web.add(0, "/", words("first"))
    monkeypatch.setattr(worker_module, "COMMIT_S", 3600.0)
    order = Order(
        folder=str(tmp_path),
        shard=0,
        n_shards=1,
        seeds=[web.url(0, "/")],
        settings=json.loads(settings(web).model_dump_json()),
        after=0,
        quota=None,
    )

    async def first_document() -> bytes:
        ours, theirs = socket.socketpair()
        worker = worker_module.Worker(order, *await asyncio.open_connection(sock=theirs))
        running = asyncio.create_task(worker.run())
        reader, writer = await asyncio.open_connection(sock=ours)
        async with asyncio.timeout(30):
            _, n_bytes = FRAME.unpack(await reader.readexactly(FRAME.size))
            document = await reader.readexactly(n_bytes)
        writer.write(b'{"stop": "now"}\n')
        await running
        return document

    assert unpack(asyncio.run(first_document())).url == web.url(0, "/")

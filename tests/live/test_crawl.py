"""A crawl of a small web on loopback: every page once, politely, and nothing lost or doubled, whatever is killed."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from warcio.archiveiterator import ArchiveIterator

from livelm.errors import ConfigError, SourceError
from livelm.sources.demo import Demo, DemoSettings
from livelm.sources.files import Files
from livelm.sources.web.crawl import Crawl
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.types import Document

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers on all of 127.0.0.0/8"),
]
GAP_S = 0.05
LENIENT: dict[str, Any] = {
    "min_characters": 0, "min_words": 0, "min_stop_words": 0, "min_words_with_letter": 0.0, "max_short_lines": 1.0,
    "min_punctuated_lines": 0.0, "max_duplicate_lines": 1.0, "max_repetition": 1.0,
}  # fmt: skip


@dataclass
class Page:
    """What is answered to a request."""

    body: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/html; charset=utf-8"})


@dataclass
class Request:
    """One request as the server saw it."""

    host: str
    path: str
    agent: str
    begin: float
    end: float = 0.0


class Web:
    """Many hosts on 127.x addresses with one port, served by one thread; notes every request."""

    def __init__(self, n_hosts: int) -> None:
        self.pages: dict[tuple[str, str], Page] = {}
        self.requests: list[Request] = []
        self.answer_s = 0.0
        self.hosts = [f"127.0.0.{i + 1}" for i in range(n_hosts)]
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def url(self, host: int, path: str) -> str:
        return f"http://{self.hosts[host]}:{self.port}{path}"

    def add(self, host: int, path: str, text: str, *links: str, **options: Any) -> None:
        anchors = "".join(f'<p><a href="{link}">this way</a></p>' for link in links)
        head = options.pop("head", "")
        body = f"<html><head><title>t</title>{head}</head><body><main><p>{text}</p>{anchors}</main></body></html>"
        self.pages[self.hosts[host], path] = Page(body, **options)

    def seen(self) -> Counter[str]:
        return Counter(f"{r.host}{r.path}" for r in self.requests)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        first = self._loop.run_until_complete(asyncio.start_server(self._serve, self.hosts[0], 0))
        self.port = first.sockets[0].getsockname()[1]
        if self.hosts[1:]:
            self._loop.run_until_complete(asyncio.start_server(self._serve, self.hosts[1:], self.port))
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = writer.get_extra_info("sockname")[0]
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                agent = next((line[12:] for line in lines if line.lower().startswith("user-agent: ")), "")
                request = Request(host, lines[0].split(" ")[1], agent, time.monotonic())
                self.requests.append(request)
                await asyncio.sleep(self.answer_s)
                page = self.pages.get((host, request.path), Page("gone", 404))
                body = page.body.encode()
                headers = "".join(f"{name}: {value}\r\n" for name, value in page.headers.items())
                request.end = time.monotonic()
                writer.write(
                    f"HTTP/1.1 {page.status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web(4)
    yield server
    server.close()


def words(name: str, n: int = 120) -> str:
    """Text that no other page has."""
    chooser = random.Random(name)
    return f"Page {name}. " + " ".join(f"{chooser.choice('bdfgklmnprst')}a{chooser.randrange(10**6)}" for _ in range(n))


def settings(web: Web, **changes: Any) -> CrawlSettings:
    values = {"contact": "mail@example.org", "allow": web.hosts, "gap_s": GAP_S, "answer_factor": 0.0, "scope": "links"}
    values |= {"filters": LENIENT, "niceness": 0} | changes
    return CrawlSettings.model_validate_json(json.dumps(values))


def crawled(crawl: Crawl) -> list[Document]:
    with closing(crawl):
        return [document for document, _ in crawl.read(None)]


def tree(web: Web, n_pages: int) -> set[str]:
    """Pages that link in a tree over all hosts, every one also back to the root; returns their addresses."""
    n_hosts = len(web.hosts)
    place = [(i % n_hosts, f"/page/{i}" if i else "/") for i in range(n_pages)]
    addresses = [web.url(*p) for p in place]
    for i, (host, path) in enumerate(place):
        children = [addresses[j] for j in range(4 * i + 1, min(4 * i + 5, n_pages))]
        web.add(host, path, words(f"{i}"), *children, addresses[0], "?utm_source=x", "#top")
    return set(addresses)


def polite(web: Web, gap_s: float) -> None:
    """One request at a time on each host, and the gap between them."""
    for host in web.hosts:
        requests = sorted((r for r in web.requests if r.host == host), key=lambda r: r.begin)
        for earlier, later in pairwise(requests):
            # a busy machine may note an end late, by less than a gap; over all requests that does not add up
            assert later.begin >= earlier.end - gap_s, (earlier, later)
        if len(requests) > 1:
            assert requests[-1].begin - requests[0].begin >= 0.9 * gap_s * (len(requests) - 1)


def test_manners_and_text_of_one_crawl(web: Web, tmp_path: Path) -> None:
    expected = tree(web, 24)
    root = web.pages[web.hosts[0], "/"]
    extra = [
        "/secret/1",
        "/noindex",
        "/copy",
        "/moved",
        "/loop/a",
        "/outside",
        "/picture",
        "/broken",
        "/only-in-robots",
    ]
    root.body = root.body.replace("</main>", "".join(f'<a href="{path}">x</a>' for path in extra) + "</main>")
    robots = f"User-agent: *\nDisallow: /secret/\nSitemap: {web.url(0, '/sitemap.xml')}\n"
    web.pages[web.hosts[0], "/robots.txt"] = Page(robots)
    sitemap = f"<urlset><url><loc>{web.url(0, '/listed')}</loc></url></urlset>"
    web.pages[web.hosts[0], "/sitemap.xml"] = Page(sitemap, headers={"Content-Type": "application/xml"})
    web.add(0, "/secret/1", words("secret"))
    web.add(0, "/listed", words("listed"))
    web.add(0, "/noindex", words("noindex"), "/behind-noindex", head='<meta name="robots" content="noindex">')
    web.add(0, "/behind-noindex", words("behind"))
    web.pages[web.hosts[0], "/copy"] = web.pages[web.hosts[1], "/page/1"]
    web.add(0, "/moved", "", status=301, headers={"Location": web.url(2, "/target")})
    web.add(2, "/target", words("target"))
    web.add(0, "/loop/a", "", status=302, headers={"Location": "/loop/b"})
    web.add(0, "/loop/b", "", status=302, headers={"Location": "/loop/a"})
    web.add(0, "/outside", "", status=302, headers={"Location": "http://127.9.9.9/"})
    web.add(0, "/picture", "", headers={"Content-Type": "image/png"})
    web.add(0, "/trap/1/1/1", words("trap"))
    crawl = Crawl(web.url(0, "/"), settings(web))
    crawl.keep(tmp_path / "crawl")
    documents = crawled(crawl)

    assert Counter(d.url for d in documents).most_common(1)[0][1] == 1
    found = {d.url for d in documents}
    wanted = expected | {web.url(0, "/listed"), web.url(0, "/behind-noindex"), web.url(2, "/target")}
    assert found in (wanted, wanted - {web.url(1, "/page/1")} | {web.url(0, "/copy")})  # whichever copy came first
    texts = {d.url: d.text.decode() for d in documents}
    assert all(words(f"{i}").split()[5] in texts[web.url(i % 4, f"/page/{i}")] for i in (2, 3, 23))
    seen = web.seen()
    assert max(seen.values()) == 1, seen.most_common(3)
    assert f"{web.hosts[0]}/secret/1" not in seen
    assert {r.agent.split("/")[0] for r in web.requests} == {"livelm"}
    assert all("mail@example.org" in r.agent for r in web.requests)
    polite(web, GAP_S)
    observed = crawl.observe()
    drops = observed["drops"]
    assert isinstance(drops, dict)
    for reason in ("robots", "noindex", "exact_duplicate", "content_type", "http_404", "refused_address"):
        assert drops.get(reason), (reason, drops)
    assert observed["documents"] == len(documents)
    lines = (tmp_path / "crawl" / "drops-0.jsonl").read_text().splitlines()
    assert any("/secret/1" in sample["url"] for line in lines for sample in json.loads(line)["samples"])


def test_two_processes_read_what_one_reads(web: Web, tmp_path: Path) -> None:
    expected = tree(web, 60)
    crawl = Crawl(web.url(0, "/"), settings(web, processes=2))
    crawl.keep(tmp_path / "crawl")
    documents = crawled(crawl)
    assert sorted(d.url or "" for d in documents) == sorted(expected)
    assert max(web.seen().values()) == 1
    assert (tmp_path / "crawl" / "frontier-1.sqlite").exists()
    polite(web, GAP_S)


def test_sites_that_share_an_address_share_the_gap_over_processes(tmp_path: Path) -> None:
    web = Web(1)
    try:
        paths = [f"/{i}" for i in range(12)]
        for path in paths:
            web.add(0, path, words(path))
        starts = " ".join(f"http://{('127.0.0.1', 'localhost')[i % 2]}:{web.port}{p}" for i, p in enumerate(paths))
        documents = crawled(Crawl(starts, settings(web, processes=2, allow=["127.0.0.1", "localhost"])))
        assert len(documents) == len(paths)
        polite(web, GAP_S)
    finally:
        web.close()


def test_max_pages_ends_the_crawl_and_counts_what_was_delivered_before(web: Web, tmp_path: Path) -> None:
    tree(web, 40)
    documents: list[Document] = []
    cursor = None
    for most in (7, 7, 12):
        crawl = Crawl(web.url(0, "/"), settings(web, max_pages=most))
        crawl.keep(tmp_path / "crawl")
        with closing(crawl):
            deliveries = list(crawl.read(cursor))
        documents += [document for document, _ in deliveries]
        cursor = deliveries[-1][1] if deliveries else cursor
    assert len(documents) == len({d.url for d in documents}) == 12


def test_what_nobody_answers_is_an_error(tmp_path: Path) -> None:
    allowed = CrawlSettings(contact="https://example.org", allow=("127.0.0.1:9",), gap_s=0.0)
    allowed = allowed.model_copy(update={"frontier": allowed.frontier.model_copy(update={"tries": 1})})
    with pytest.raises(SourceError, match="not one page"):
        crawled(Crawl("http://127.0.0.1:9/", allowed))
    with pytest.raises(SourceError, match="allow"):
        crawled(Crawl("http://127.0.0.1:9/", CrawlSettings(contact="https://example.org")))


def test_a_start_that_is_no_address_and_a_contact_that_is_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"https://example\.org"):
        Crawl("example.org", CrawlSettings(contact="https://example.org"))
    with pytest.raises(ValueError, match="contact"):
        CrawlSettings(contact="me")


def children(pid: int) -> set[int]:
    return {int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()}


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def test_killed_workers_are_started_again_and_nothing_is_lost_or_doubled(web: Web) -> None:
    expected = tree(web, 80)
    chooser = random.Random(7)
    crawl = Crawl(web.url(0, "/"), settings(web, processes=2, gap_s=0.02))
    before = children(os.getpid())
    documents = []
    with closing(crawl):
        for document, _ in crawl.read(None):
            documents.append(document)
            if len(documents) in (5, 30, 55):
                workers = sorted(children(os.getpid()) - before)
                if workers:
                    os.kill(chooser.choice(workers), signal.SIGKILL)
    assert sorted(d.url or "" for d in documents) == sorted(expected)
    assert crawl.observe()["restarts"]
    assert children(os.getpid()) - before == set()


HARVEST = """
import json, sys
from pathlib import Path
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.harvest import harvest
order = json.loads(sys.argv[1])
settings = CrawlSettings.model_validate_json(json.dumps(order["settings"]))
for progress in harvest(order["urls"], order["target"], settings, Path(order["folder"])):
    print(json.dumps(progress), flush=True)
"""


def harvesting(web: Web, target: Path, **changes: Any) -> "subprocess.Popen[str]":
    order = {"urls": [web.url(0, "/")], "target": str(target), "folder": str(target.parent / "crawl")}
    order["settings"] = json.loads(settings(web, **changes).model_dump_json())
    command = [sys.executable, "-c", HARVEST, json.dumps(order)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_somewhere(web: Web, process: "subprocess.Popen[str]", chooser: random.Random) -> set[int]:
    """Kill -9 a while after a random number of requests more, unless it ends before; returns its workers."""
    n_requests = len(web.requests) + chooser.randint(1, 40)
    try:
        wait_for(lambda: len(web.requests) >= n_requests or process.poll() is not None)
        time.sleep(chooser.uniform(0.0, 0.8))
        return children(process.pid)
    finally:
        process.kill()
        process.wait()


def end(process: "subprocess.Popen[str]") -> set[int]:
    try:
        process.wait(100)
        return set()
    finally:
        process.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["pages.jsonl.zst", "pages.warc.gz"])
def test_a_harvest_killed_at_random_goes_on_and_the_file_holds_each_page_once(
    web: Web, tmp_path: Path, name: str
) -> None:
    expected = tree(web, 120)
    chooser, target, n_kills = random.Random(name), tmp_path / name, 0
    while True:
        process = harvesting(web, target, processes=2, gap_s=0.06)  # slow enough to be killed on the way
        workers = kill_somewhere(web, process, chooser) if n_kills < 4 else end(process)
        wait_for(lambda gone=workers: not any(Path(f"/proc/{pid}").exists() for pid in gone))
        if process.returncode == 0:
            break
        n_kills += 1
    assert n_kills >= 2
    assert process.stdout is not None
    last = json.loads(process.stdout.read().splitlines()[-1])
    assert last["done"]
    assert last["written"] == len(expected)
    assert sorted(urls_in(target)) == sorted(expected)


def urls_in(path: Path) -> list[str]:
    if path.name.endswith(".jsonl.zst"):
        return [json.loads(line)["url"] for line in lines_of(path)]
    with path.open("rb") as file:
        return [r.rec_headers["WARC-Target-URI"] for r in ArchiveIterator(file) if r.rec_type == "response"]


def lines_of(path: Path) -> list[str]:
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        return list(file)


def test_files_reads_what_a_harvest_wrote(web: Web, tmp_path: Path) -> None:
    tree(web, 12)
    target = tmp_path / "pages.jsonl.zst"
    process = harvesting(web, target)
    assert process.wait(100) == 0
    texts = [document.text for document, _ in Files([str(target)]).read(None)]
    assert len(texts) == 12
    assert all(b"Page " in text for text in texts)


def test_the_demo_is_the_same_each_time_and_leaves_no_process() -> None:
    before = children(os.getpid())
    reads = []
    for _ in range(2):
        with closing(Demo(settings=DemoSettings(max_pages=12))) as demo:
            reads.append([(d.id, d.text) for d, _ in demo.read(None)])
    assert len(reads[0]) == 12
    assert reads[0] == reads[1]
    assert children(os.getpid()) - before == set()


def test_the_demo_goes_on_where_it_was_in_the_same_folder(tmp_path: Path) -> None:
    found = []
    cursor = None
    for most in (4, 9):
        demo = Demo(settings=DemoSettings(max_pages=most))
        demo.keep(tmp_path / "demo")
        with closing(demo):
            for document, after in demo.read(cursor):
                found.append(document.id)
                last = after
        cursor = last
    assert len(found) == len(set(found)) == 9


DEMO = """
from livelm.sources.demo import Demo
for document, _ in Demo().read(None):
    print(document.id, flush=True)
"""


def test_a_killed_demo_takes_its_server_and_its_workers_along() -> None:
    process = subprocess.Popen([sys.executable, "-c", DEMO], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("pydoc/")
        started = children(process.pid)
        assert len(started) >= 2
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))

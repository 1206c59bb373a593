"""The crawler from end to end: pages a second of a crawl by two processes, its server and its reader on the same cores.

Measured is everything a run does until there are tokens: frontier, robots.txt, fetch, links, main text, quality,
language, exact and near duplicates, outbox, delivery and tokenising. What is left out: TLS, compression, the network.
The web is made of real pages on many 127.x hosts: any path answers with the next page of a pool, and all links are
led to hosts of this web, so the frontier has as much to do as outside. In copies of a page every word is exchanged for
another of the page, so that they are no duplicates but read like the same language.

With `--scrapy PYTHON` a link-following Scrapy spider (bench/scrapy_spider.py) then reads the same pages from the same
kind of server. It is one process and uses one core, so CPU time is compared as well; main text, filters, duplicates and
tokens are not asked of it.

Needs the extra `bench` (fastokens: the tokenizer of the product would be what is measured).
"""

import argparse
import asyncio
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import closing, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from zlib import crc32

import fastokens  # type: ignore[import-not-found]  # of the extra `bench`
import uvloop

from bench.record import keep
from livelm.sources import pydoc_site
from livelm.sources.web.crawl import Crawl
from livelm.sources.web.crawl_settings import CrawlSettings

DATA = Path(__file__).parents[2] / "shared" / "data"
PAGES = DATA / "pages" / "trafilatura-eval" / "eval-pages.zip"
TOKENIZER = DATA / "tokenizers" / "deepseek-v3" / "tokenizer.json"
BARS = {"docs": 500, "web": 400}
SCRAPY_BAR = 5
"""Times faster than Scrapy."""
MEAN_BYTES = {"docs": 23_000, "web": 145_000}
N_HOSTS = 200
ROBOTS = "User-agent: *\n" + "".join(f"Disallow: /private/{i}/*.php$\n" for i in range(20)) + "Allow: /\n"

_LINK = re.compile(rb"""(href=["'])(?:https?:)?//([^/"'?#<>\s]+)""")
_TEXT = re.compile(rb"(?<=>)[^<>]{3,}(?=<)")
_WORD = re.compile(rb"[A-Za-z]{4,}")


def documentation() -> list[bytes]:
    """pydoc's pages of this Python's library, rendered in a process of its own."""
    code = (
        "import json, sys, runpy; site = runpy.run_path(sys.argv[1]); "
        "names = sorted(n for n in sys.stdlib_module_names if site['is_served'](n)); out = sys.stdout; "
        "sys.stdout = open('/dev/null', 'w'); "
        "out.write(json.dumps([site['render'](f'/{n}.html', 'text/html') for n in names]))"
    )
    command = [sys.executable, "-s", "-S", "-P", "-W", "ignore", "-c", code, str(Path(pydoc_site.__file__))]
    done = subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "0"})
    return [page.encode() for page in json.loads(done.stdout) if "<title>Pydoc: Error" not in page]


def web_pages() -> list[bytes]:
    """The pages of trafilatura's evaluation set."""
    with zipfile.ZipFile(PAGES) as archive:
        return [archive.read(name) for name in sorted(archive.namelist()) if name.endswith(".html")]


def pool(kind: str, n: int, port: int) -> list[bytes]:
    """`n` different pages of the wanted mean size, with their links led into this web."""
    pages = sorted({"docs": documentation, "web": web_pages}[kind](), key=len)
    while sum(map(len, pages)) / len(pages) > MEAN_BYTES[kind]:
        pages.pop()
    while sum(map(len, pages)) / len(pages) < MEAN_BYTES[kind] * 0.98:
        pages.pop(0)
    random.Random(0).shuffle(pages)
    return [_copy(pages[i % len(pages)], i, i // len(pages), port) for i in range(n)]


def _copy(page: bytes, seed: int, copy: int, port: int) -> bytes:
    chooser = random.Random(seed)

    def exchanged(text: re.Match[bytes]) -> bytes:
        return _WORD.sub(lambda word: chooser.choice(words), text[0])

    page = _LINK.sub(lambda link: link[1] + f"http://{_host(crc32(link[2]) % N_HOSTS)}:{port}".encode(), page)
    words = _WORD.findall(b" ".join(_TEXT.findall(page)))
    return _TEXT.sub(exchanged, page) if copy else page


def _host(i: int) -> str:
    return f"127.0.{1 + i // 200}.{1 + i % 200}"


class Answer(asyncio.Protocol):
    """Answers each path it has not met with the next page of the pool."""

    pages: Sequence[bytes] = ()
    given = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        robots = data.startswith(b"GET /robots.txt ")
        kind = b"text/plain" if robots else b"text/html; charset=utf-8"
        body = ROBOTS.encode() if robots else Answer.pages[Answer.given % len(Answer.pages)]
        Answer.given += not robots
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
        self.transport.write(head + body)  # type: ignore[attr-defined]


def serve(kind: str, n: int, pipe: Connection) -> None:
    """The web: tells its port when it is ready, ends when told, and tells what it cost."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        first = await loop.create_server(Answer, _host(0), 0)
        port = first.sockets[0].getsockname()[1]
        await loop.create_server(Answer, [_host(i) for i in range(1, N_HOSTS)], port)
        Answer.pages = pool(kind, n, port)
        begin = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        pipe.send((port, sum(map(len, Answer.pages)) / n))
        await loop.run_in_executor(None, pipe.recv)
        pipe.send((sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - begin, Answer.given))

    uvloop.run(run())


def settings(kind: str, processes: int, in_flight: int) -> CrawlSettings:
    """Those of a real crawl, but for the gap and the private addresses."""
    values: dict[str, Any] = {
        "contact": "https://example.org/bench",
        "scope": "links",
        "gap_s": 0.0,
        "answer_factor": 0.0,
    }
    values |= {
        "allow": [_host(i) for i in range(N_HOSTS)],
        "processes": processes,
        "in_flight": in_flight,
        "niceness": 0,
    }
    if kind == "docs":  # the rules of quality are made for prose; without them more pages go the whole way
        values["filters"] = {
            "min_words_with_letter": 0.0,
            "max_short_lines": 1.0,
            "min_punctuated_lines": 0.0,
            "max_duplicate_lines": 1.0,
            "max_repetition": 1.0,
        }
    return CrawlSettings.model_validate_json(json.dumps(values))


def measure(kind: str, n_pages: int, processes: int, in_flight: int) -> dict[str, Any]:
    """One crawl until so many pages were read; the first fifth is not timed."""
    tokenizer = fastokens.Tokenizer.from_file(str(TOKENIZER))
    server, ours, seeds, mean_bytes = _web(kind, n_pages)
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    own = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        crawl = Crawl(" ".join(seeds), settings(kind, processes, in_flight))
        crawl.keep(Path(folder) / "crawl")
        n = n_bytes = n_tokens = first = last = 0
        begin = end = 0.0
        with closing(crawl):
            for document, cursor in crawl.read(None):
                n_tokens += len(tokenizer.encode(document.text.decode("utf-8", "replace")).ids)
                n_bytes += len(document.text)
                n += 1
                if n % 100 == 0:
                    crawl.commit(cursor)
                last, end = _pages(crawl), time.perf_counter()
                if not first and last >= n_pages // 5:  # processes have begun, files are warm
                    first, begin = last, end
                if last >= n_pages:
                    break
        observed = crawl.observe()
    workers_s = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
    own_s = time.process_time() - own
    server_s, n_served = _end(server, ours)
    rate, n_read = (last - first) / (end - begin), int(str(observed["pages"]))
    return {
        "pages": kind,
        "mean_bytes": round(mean_bytes),
        "pages_per_s": round(rate, 1),
        "bar": BARS[kind],
        "measured_pages": last - first,
        "measured_s": round(end - begin, 2),
        "processes": processes,
        "in_flight": in_flight,
        "worker_cpu_ms_per_page": round(1000 * workers_s / n_read, 3),
        "reader_cpu_ms_per_page": round(1000 * own_s / n_read, 3),
        "server_cpu_ms_per_page": round(1000 * server_s / n_served, 3),
        "documents_per_page": round(n / n_read, 3),
        "text_bytes_per_document": n_bytes // n,
        "tokens_per_document": n_tokens // n,
        "known_urls": observed["known_urls"],
        "drops": observed["drops"],
    }


def measure_scrapy(python: str, kind: str, n_pages: int, own: dict[str, Any]) -> dict[str, Any]:
    """The spider on the same pages, compared with `own`, what `measure` returned."""
    server, ours, seeds, mean_bytes = _web(kind, n_pages)
    try:
        # -P: modules of the standard library must not be looked for beside the spider
        spider = [python, "-P", str(Path(__file__).with_name("scrapy_spider.py")), str(n_pages)]
        done = subprocess.run(spider, check=True, input="\n".join(seeds), stdout=subprocess.PIPE, text=True)
    finally:
        server_s, n_served = _end(server, ours)
    counted = json.loads(done.stdout.splitlines()[-1])
    rate, cpu_ms = counted["timed_pages"] / counted["timed_s"], 1000 * counted["timed_cpu_s"] / counted["timed_pages"]
    return {
        "scrapy": kind,
        "mean_bytes": round(mean_bytes),
        "pages_per_s": round(rate, 1),
        "times_faster": round(own["pages_per_s"] / rate, 2),
        "bar": SCRAPY_BAR,
        "measured_pages": counted["timed_pages"],
        "measured_s": round(counted["timed_s"], 2),
        "spider_cpu_ms_per_page": round(cpu_ms, 3),
        "times_less_cpu": round(cpu_ms / (own["worker_cpu_ms_per_page"] + own["reader_cpu_ms_per_page"]), 2),
        "server_cpu_ms_per_page": round(1000 * server_s / n_served, 3),
        "text_characters_per_page": counted["n_characters"] // counted["n"],
    }


def _web(kind: str, n_pages: int) -> tuple[BaseProcess, Connection, list[str], float]:
    """A server of its own that is ready, the pipe to it, its start addresses, and the mean size of its pages."""
    ours, theirs = get_context("spawn").Pipe()
    server = get_context("spawn").Process(target=serve, args=(kind, n_pages + n_pages // 4, theirs), daemon=True)
    server.start()
    port, mean_bytes = ours.recv()
    return server, ours, [f"http://{_host(i)}:{port}/" for i in range(N_HOSTS)], mean_bytes


def _end(server: BaseProcess, ours: Connection) -> tuple[float, int]:
    """Stop the server: its seconds of CPU and the pages it gave."""
    ours.send(None)
    spent = ours.recv()
    with suppress(Exception):
        server.join(10)
    return spent


def _pages(crawl: Crawl) -> int:
    return int(str(crawl.observe()["pages"]))


def _show(row: dict[str, Any]) -> None:
    print("\n".join(f"{name:26} {value}" for name, value in row.items()), flush=True)


def main() -> None:
    """Parse the command line, measure, print, and keep a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", nargs="+", default=["docs", "web"], choices=list(BARS))
    parser.add_argument("--n", type=int, default=5000, help="pages to read")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--scrapy", metavar="PYTHON", help="a Python that has Scrapy, to compare with")
    parser.add_argument("--scrapy-n", type=int, default=1000, help="pages for Scrapy to read")
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    figures: dict[str, dict[str, Any]] = {}
    for kind in arguments.pages:
        row = measure(kind, arguments.n, arguments.processes, arguments.in_flight)
        rows.append(row)
        figures[kind] = {"pages_per_s": row["pages_per_s"], "bar": row["bar"]}
        _show(row)
        if arguments.scrapy:
            row = measure_scrapy(arguments.scrapy, kind, arguments.scrapy_n, row)
            rows.append(row)
            figures[f"{kind}, times faster than Scrapy"] = {"ratio": row["times_faster"], "bar": row["bar"]}
            _show(row)
        else:
            print("scrapy                     skipped: --scrapy PYTHON names a Python that has it", flush=True)
    if arguments.keep:
        keep("crawl", "How many pages a second does a crawl read on two cores, up to their tokens?", figures, rows)


if __name__ == "__main__":
    main()

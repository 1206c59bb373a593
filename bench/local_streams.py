"""Streams on loopback for benchmarks: a site of any size, and a feed that breaks off, each in a process of its own."""

import asyncio
import json
import os
import random
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

OPEN_S = 600.0
"""How long a feed that has said everything stays open."""
N_PARAGRAPHS = 600
PARAGRAPH_WORDS = 54
COMMON = """river bridge boat stone the of and that water with from light be field to winter have road letter song
morning house window the of and that garden with paper be horse to summer have ship table bread"""
WORDS = COMMON.split()


@cache
def prose(name: str, n_words: int) -> str:
    """Sentences that no other name has, which look like text to the filters of a crawl."""
    chooser = random.Random(name)
    words = [chooser.choice(WORDS) if k % 3 else f"{name}{chooser.randrange(10**4)}" for k in range(n_words)]
    return " ".join(" ".join(words[k : k + 12]).capitalize() + "." for k in range(0, n_words, 12))


class Local:
    """A server on loopback in a process of its own, which counts what it was asked for."""

    def __init__(self, hosts: Sequence[str], answer: Callable[..., Any]) -> None:
        """`answer(host, head of the request, writer)` is a coroutine; it runs in that process."""
        context = get_context("fork")  # at once, and without importing everything again
        ours, theirs = context.Pipe()
        self._asked = context.Value("q", 0)
        self._process = context.Process(target=self._run, args=(hosts, answer, theirs), daemon=True)
        self._process.start()
        self.port: int = ours.recv()

    @property
    def n_asked(self) -> int:
        """Requests so far."""
        return self._asked.value

    @property
    def used_s(self) -> float:
        """Processor time so far (user and system), from Linux's /proc."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()

    def _run(self, hosts: Sequence[str], answer: Callable[..., Any], pipe: Any) -> None:
        asyncio.run(self._serve(hosts, answer, pipe))

    async def _serve(self, hosts: Sequence[str], answer: Callable[..., Any], pipe: Any) -> None:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host = writer.get_extra_info("sockname")[0]
            try:
                while head := await reader.readuntil(b"\r\n\r\n"):
                    self._asked.value += 1
                    await answer(host, head.decode("latin-1"), writer)
                    await writer.drain()
            except (asyncio.IncompleteReadError, OSError):
                pass
            finally:
                writer.close()

        first = await asyncio.start_server(take, hosts[0], 0)
        port = first.sockets[0].getsockname()[1]
        others = [await asyncio.start_server(take, host, port) for host in hosts[1:]]
        pipe.send(port)
        await asyncio.gather(*(server.serve_forever() for server in (first, *others)))


class Site(Local):
    """Pages that link in a tree over many hosts (Linux: all of 127.0.0.0/8 answers); each answer takes `answer_s`.

    A page is a paragraph of its own and `n_more` of some hundred that it shares with others.
    """

    def __init__(self, n_pages: int, n_hosts: int, answer_s: float = 0.0, n_more: int = 0) -> None:
        self.hosts = [f"127.0.1.{k + 1}" for k in range(n_hosts)]
        self._n_pages, self._answer_s, self._n_more = n_pages, answer_s, n_more
        self._shared = [prose(f"s{k}", PARAGRAPH_WORDS) for k in range(N_PARAGRAPHS if n_more else 0)]
        super().__init__(self.hosts, self._answer)

    def url(self, k: int) -> str:
        """The address of page `k`."""
        return f"http://{self._place(k, self.port)}"

    def pages(self) -> dict[str, str]:
        """The text of every address, paragraphs joined by blanks."""
        return {self.url(k): " ".join(self.paragraphs(k)) for k in range(self._n_pages)}

    def paragraphs(self, k: int) -> list[str]:
        """The text of page `k`."""
        return [prose(f"p{k}", PARAGRAPH_WORDS), *random.Random(k).choices(self._shared, k=self._n_more)]

    def _place(self, k: int, port: int) -> str:
        return f"{self.hosts[k % len(self.hosts)]}:{port}/" + (f"page/{k}" if k else "")

    async def _answer(self, host: str, head: str, writer: asyncio.StreamWriter) -> None:
        if self._answer_s:
            await asyncio.sleep(self._answer_s)
        path, port = head.split(" ")[1], writer.get_extra_info("sockname")[1]
        number = path.removeprefix("/page/") if path != "/" else "0"
        k = int(number) if number.isdecimal() else self._n_pages
        is_there = k < self._n_pages and self._place(k, port) == f"{host}:{port}{path}"
        body = self._page(k, port).encode() if is_there else b""
        status = 200 if is_there else 404
        head = f"HTTP/1.1 {status} -\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    def _page(self, k: int, port: int) -> str:
        targets = [0, *range(4 * k + 1, min(4 * k + 5, self._n_pages))]
        links = "".join(f'<li><a href="http://{self._place(j, port)}">next</a>' for j in targets)
        text = "".join(f"<p>{paragraph}</p>\n" for paragraph in self.paragraphs(k))
        return f"<!doctype html><title>{k}</title><main>{text}</main><nav><ul>{links}</ul></nav>"


class Feed(Local):
    """Server-sent events that break off after a random while, once in 25, in the middle of one."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self._texts, self._chooser = texts, random.Random(seed)
        super().__init__(["127.0.0.1"], self._answer)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/"

    async def _answer(self, host: str, head: str, writer: asyncio.StreamWriter) -> None:
        after = next((line[14:] for line in head.split("\r\n") if line.lower().startswith("last-event-id:")), "-1")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\nretry: 10\n\n")
        for k in range(int(after) + 1, len(self._texts)):
            event = f"id: {k}\ndata: {json.dumps({'text': self._texts[k]})}\n\n".encode()
            if self._chooser.random() < 0.04:
                writer.write(event[: self._chooser.randrange(len(event))])
                writer.close()
                return
            writer.write(event)
            await writer.drain()
            await asyncio.sleep(0.03)
        await asyncio.sleep(OPEN_S)

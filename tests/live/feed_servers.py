"""Servers of feeds that drop, repeat, truncate, stall and send garbage, and how the tests read from them."""

import asyncio
import json
import random
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlsplit

import websockets.asyncio.server as ws_server

from livelm.sources.feeds import Sse, SseSettings, WebSocket, WebSocketSettings
from livelm.types import Cursor, Document, Source

HOST = "127.0.0.1"
QUICK: dict[str, Any] = {"allow": (HOST,), "backoff_s": 0.004, "backoff_max_s": 0.02, "idle_timeout_s": 0.1}
PATIENT = QUICK | {"start_tries": 100}
Start = Callable[[], Awaitable[Any]]


@contextmanager
def serving(start: Callable[[socket.socket], Awaitable[Any]]) -> Iterator[int]:
    """Runs a server in a thread of its own; gives its port."""
    listening = socket.create_server((HOST, 0))
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def begin() -> None:
        server = await start(listening)
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    def work() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            for left in asyncio.all_tasks(loop):
                left.cancel()
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()

    task = loop.create_task(begin())
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield listening.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


class Answers:
    """A raw HTTP server: `answer(request head, writer)` says what comes back."""

    def __init__(self, answer: Callable[[str, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, listening: socket.socket) -> asyncio.Server:
        return await asyncio.start_server(self._serve, sock=listening)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            await self._answer(head, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"


def header(head: str, name: str) -> str | None:
    found = [
        line.partition(":")[2].strip() for line in head.split("\r\n") if line.lower().startswith(name.lower() + ":")
    ]
    return found[0] if found else None


class BadSse:
    """Sends `n` events and does everything wrong on the way."""

    def __init__(self, n: int, seed: int = 1) -> None:
        self.n, self.random = n, random.Random(seed)
        self.n_connections = 0

    def frame(self, k: int) -> bytes:
        line_end = self.random.choice([b"\n", b"\r\n", b"\r"])
        data = json.dumps({"text": f"event {k}", "n": k}).encode()
        return line_end.join([b"event: message", b"id: %d" % k, b"data: " + data, b"", b""])

    def events(self, after: int) -> Iterator[bytes]:
        for k in range(max(0, after + 1 - self.random.randrange(12)), self.n):  # overlaps what the client has
            yield self.frame(k)
            if self.random.random() < 0.05:
                yield self.frame(k)  # says it twice
            if self.random.random() < 0.05:
                yield self.random.choice([b": still here\n", b"data: {garbage\n\n", b"data: \xff\xfe\n\n", b"\x00\n\n"])

    async def __call__(self, head: str, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        how = self.random.choice(["end", "end", "reset", "truncate", "truncate", "stall", "busy", "lie"])
        if self.n_connections == 1:
            how = "end"
        if how == "busy":
            writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
            return
        if how == "lie":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<p>maintenance")
            return
        writer.write(OK + b"retry: 1\n\n")
        stop_after = self.random.randrange(1, 45)
        for n, frame in enumerate(self.events(int(header(head, "Last-Event-ID") or -1))):
            cut = self.random.randrange(len(frame))
            writer.write(frame[:cut])
            if n == stop_after and how == "truncate":
                return
            await asyncio.sleep(0)
            writer.write(frame[cut:])
            await writer.drain()
            if n >= stop_after and how == "stall":
                await asyncio.sleep(0.3)
                return
            if n >= stop_after and how == "reset":
                writer.transport.abort()
                return
            if n >= stop_after:
                return
        await asyncio.sleep(30)  # all was said


def post(k: int) -> dict[str, Any]:
    """Event k of a Jetstream: mostly posts, some likes and deletions."""
    commit: dict[str, Any] = {
        "rev": f"r{k}",
        "operation": "create",
        "collection": "app.bsky.feed.post",
        "rkey": f"k{k}",
    }
    if k % 7 == 3:
        commit["collection"] = "app.bsky.feed.like"
        commit["record"] = {"subject": "at://x"}
    elif k % 11 == 5:
        commit["operation"] = "delete"
    else:
        commit["record"] = {"text": f"event {k}", "langs": ["en"]}
    return {"did": f"did:plc:{k % 5}", "time_us": time_of(k), "kind": "commit", "commit": commit}


def time_of(k: int) -> int:
    return 1_700_000_000_000_000 + 1000 * (k // 2)  # two events share each time


def is_post(k: int) -> bool:
    return k % 7 != 3 and k % 11 != 5


class BadJetstream:
    """A Jetstream of `n` events that breaks off, repeats, reorders a little, and sends what is no event."""

    def __init__(self, n: int, seed: int = 1) -> None:
        self.n, self.random = n, random.Random(seed)
        self.n_connections = 0

    async def __call__(self, listening: socket.socket) -> Any:
        return await ws_server.serve(self._serve, sock=listening, ping_interval=None)

    async def _serve(self, connection: ws_server.ServerConnection) -> None:
        self.n_connections += 1
        assert connection.request is not None
        cursor = parse_qs(urlsplit(connection.request.path).query).get("cursor")
        first = 0 if cursor is None else next((k for k in range(self.n) if time_of(k) >= int(cursor[0])), self.n)
        order = list(range(first, self.n))
        for at in range(3, len(order) - 1, 5):  # slightly out of order, but not the very first
            order[at], order[at + 1] = order[at + 1], order[at]
        how = self.random.choice(["close", "abort", "truncate", "stall", "nonsense"])
        stop_after = self.random.randrange(20, 70)
        for n, k in enumerate(order):
            text = json.dumps(post(k))
            if n >= stop_after:
                if how == "close":
                    await connection.close(1001)
                elif how == "truncate":
                    connection.transport.write(b"\x81\x7e\x01\x00" + text.encode()[:50])  # says 256 bytes, sends 50
                    await asyncio.sleep(0.001)
                elif how == "nonsense":
                    connection.transport.write(b"\x81\x02\xff\xfe\x83\x00")  # no UTF-8; then an unknown kind of frame
                    await asyncio.sleep(0.001)
                elif how == "stall":
                    await asyncio.sleep(0.3)
                connection.transport.abort()
                return
            await connection.send(text)
            if self.random.random() < 0.05:
                await connection.send(text)
            if self.random.random() < 0.05:
                await connection.send(self.random.choice([b"\x00\xff", "{not json", "[]", "9e999", "null"]))
        await asyncio.sleep(30)


def sse(port: int, **settings: Any) -> Sse:
    return Sse(f"http://{HOST}:{port}/stream", SseSettings(**{**PATIENT, "text_fields": ("text",), **settings}))


def jetstream(port: int, **settings: Any) -> WebSocket:
    target = f"ws://{HOST}:{port}/subscribe?wantedCollections=app.bsky.feed.post"
    return WebSocket(target, WebSocketSettings(**{**PATIENT, "rewind_s": 0.01, **settings}))


def some(source: Source, cursor: Cursor | None, n: int) -> list[tuple[Document, Cursor]]:
    with closing(source):
        return list(islice(source.read(cursor), n))


def texts(read: list[tuple[Document, Cursor]]) -> list[str]:
    return [document.text.decode() for document, _ in read]


def through_json(cursor: Cursor) -> Cursor:
    return Cursor(cursor.source, json.loads(json.dumps(cursor.at)))


def observed(source: Sse | WebSocket) -> dict[str, Any]:
    return source.observe()

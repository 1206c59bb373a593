"""A web server that misbehaves on purpose, one way per path; it runs in a thread of its own.

    with HostileServer() as server:
        server.url("/bomb/gzip")

/ and /page/N              good pages that link to each other           /robots.txt   what `robots` holds
/status/N                  an empty answer with that status             /deep/N       HTML nested N deep
/later/429/120             that status, Retry-After in seconds          /later/503/date/3600   the same as a date
/encoded/gzip              a good page in that encoding (br, deflate, zstd)
/drip  /drip/headers       a byte now and then                          /silence      no answer at all
/endless  /endless/chunks  a body without end                           /endless/headers /endless/line
                                                           /endless/trailers /endless/100 /endless/answers
/bomb/gzip                 64 MiB of nothing (br, deflate, zstd)        /bomb/members thousands of gzip members
/lie/gzip                  plain text said to be gzip (br, ...)         /lie/layers   Content-Encoding: gzip, gzip
/lie/longer /lie/shorter   a Content-Length that is not true            /lie/huge /lie/negative /lie/two
/cut/gzip                  half of the compressed page                  /lie/unknown  an encoding nobody asked for
/die/now /die/header /die/body /die/chunk /die/reset                    the connection ends there
/redirect/loop /redirect/round/N /redirect/many/N /redirect/to/URL /redirect/nowhere /redirect/garbage
/garbage/bytes /garbage/status /garbage/header /garbage/chunk /garbage/ssh /garbage/switch    what is not HTTP
/calendar/N                a page that links to N + 1, for ever
"""

import asyncio
import gzip
import itertools
import random
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

import brotli
import zstandard

PAGE = b"<!doctype html><title>A page</title><p>" + b"Some honest text about rivers, bridges and boats. " * 40
ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}
BOMB_BYTES = 64 << 20
STEP_S = 0.05
Writer = asyncio.StreamWriter


def head(*lines: str, status: str = "200 OK") -> bytes:
    """The start of an answer, up to the body."""
    lines = (f"HTTP/1.1 {status}", "Content-Type: text/html; charset=utf-8", *lines)
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    """An answer that is as it should be."""
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def self_signed(folder: Path, host: str, *, days: int = 2) -> tuple[Path, Path] | None:
    """A certificate for `host` (a name, or "IP:127.0.0.1") that signs itself, and its key; None without openssl.

    With negative `days` it ran out that long ago.
    """
    if shutil.which("openssl") is None:
        return None
    made, certificate, key = folder / "made.pem", folder / "certificate.pem", folder / "key.pem"
    names = host if host.startswith("IP:") else f"DNS:{host}"
    create = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    create += ["-keyout", str(key), "-out", str(made), "-subj", "/CN=hostile", "-addext", f"subjectAltName={names}"]
    date = ["openssl", "x509", "-in", str(made), "-signkey", str(key), "-days", str(days), "-out", str(certificate)]
    for command in (create, date):  # `req` knows no days before today
        subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class HostileServer:
    """Serves on loopback until the `with` ends; counts what it was asked for."""

    def __init__(self, host: str = "127.0.0.1", certificate: tuple[Path, Path] | None = None) -> None:
        """With a certificate and its key it speaks TLS."""
        self._host, self._certificate = host, certificate
        self.port = 0
        self.paths: Counter[str] = Counter()
        """Requests for each path."""
        self.requests: list[bytes] = []
        """Every request as it came."""
        self.left: Counter[str] = Counter()
        """Answers that the client did not wait for, by path."""
        self.n_connections = 0
        self.reached_at: Counter[str] = Counter()
        """Connections to each address of this machine."""
        self.robots: bytes | int = 404
        """The body of /robots.txt, or the status it fails with."""
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="hostile-server", daemon=True)

    def url(self, path: str, host: str | None = None) -> str:
        """The address of `path`, perhaps under another name of this machine."""
        return f"{'https' if self._certificate else 'http'}://{host or self._host}:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "the hostile server did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels every answer still under way
            runner.run(self._serve())

    async def _serve(self) -> None:
        tls = None
        if self._certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*self._certificate)
        server = await asyncio.start_server(self._connected, self._host, 0, ssl=tls, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.n_connections += 1
        self.reached_at[writer.get_extra_info("sockname")[0]] += 1
        path = ""
        try:
            while request := await _request(reader):
                self.requests.append(request)
                path = request.split(b" ", 2)[1].decode("latin-1")
                self.paths[path] += 1
                if not await self._answer(path, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.left[path] += 1  # the client had enough, or the test is over
        finally:
            writer.close()

    async def _answer(self, path: str, writer: Writer) -> bool:
        """Whether the connection can go on."""
        name, _, rest = path.lstrip("/").partition("/")
        if name == "robots.txt":
            found = self.robots
            writer.write(whole(b"", status=f"{found} Robots") if isinstance(found, int) else whole(found))
        elif name in PLAIN:
            writer.write(PLAIN[name](rest))
        elif name in STRANGE:
            await STRANGE[name](rest, writer)
            await writer.drain()
            return False
        else:
            writer.write(whole(b"no such page", status="404 Not Found"))
        await writer.drain()
        return True


async def _request(reader: asyncio.StreamReader) -> bytes:
    try:
        first = await reader.readexactly(1)
        if first == b"\x16":  # how TLS begins
            return b"GET /status/400 HTTP/1.1\r\n\r\n"
        return first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _index(rest: str) -> bytes:
    return whole(
        b"<!doctype html><title>Start</title>" + b"".join(b'<a href="/page/%d">%d</a>' % (n, n) for n in range(20))
    )


def _page(rest: str) -> bytes:
    return whole(PAGE + b'<a href="/page/%d">next</a><a href="/">start</a>' % (int(rest or 0) + 1))


def _deep(rest: str) -> bytes:
    depth = int(rest or 10_000)
    return whole(b"<div>" * depth + b"the bottom" + b"</div>" * depth)


def _calendar(rest: str) -> bytes:
    return whole(PAGE + b'<a href="/calendar/%d">next month</a>' % (int(rest or 0) + 1))


def _status(rest: str) -> bytes:
    return whole(b"", f"ETag: {chr(34)}v1{chr(34)}", status=f"{rest} Status")


def _later(rest: str) -> bytes:
    status, _, wait = rest.partition("/")
    if wait.startswith("date/"):
        wait = formatdate(time.time() + float(wait.removeprefix("date/")), usegmt=True)
    return whole(b"", f"Retry-After: {wait}", status=f"{status} Later")


def _encoded(rest: str) -> bytes:
    return whole(ENCODE[rest](PAGE), f"Content-Encoding: {rest}")


@lru_cache
def _bomb_bytes(rest: str) -> bytes:
    if rest == "members":
        return gzip.compress(b"") * 20_000
    if rest == "br":
        return brotli.compress(bytes(BOMB_BYTES), quality=1)
    return ENCODE[rest](bytes(BOMB_BYTES))


def _bomb(rest: str) -> bytes:
    return whole(_bomb_bytes(rest), f"Content-Encoding: {'gzip' if rest == 'members' else rest}")


def _redirect(rest: str) -> bytes:
    kind, _, more = rest.partition("/")
    places = {
        "loop": "/redirect/loop",
        "round": f"/redirect/round/{(int(more or 0) + 1) % 3}" if kind == "round" else "",
        "many": f"/redirect/many/{int(more or 0) + 1}" if kind == "many" else "",
        "to": unquote(more),
        "garbage": "http://[::bad/\udcff\udcfe",
    }
    lines = [f"Location: {places[kind]}"] if kind in places else []
    return whole(b"moved", *lines, status="302 Found")


async def _drip(rest: str, writer: Writer) -> None:
    data = itertools.repeat(b"x")
    if rest == "headers":
        writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    else:
        writer.write(head("Content-Length: 1000000"))
    for piece in data:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(STEP_S)


async def _silence(rest: str, writer: Writer) -> None:
    await asyncio.sleep(3600)


async def _endless(rest: str, writer: Writer) -> None:
    piece = PAGE * 8
    starts = {
        "": (head("Connection: close"), piece),
        "chunks": (head("Transfer-Encoding: chunked"), b"%x\r\n%s\r\n" % (len(piece), piece)),
        "headers": (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n" * 100),
        "trailers": (head("Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n", b"X-More: 1\r\n" * 100),
        "line": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a" * 4096),
        "answers": (whole(PAGE), whole(b"") * 100),
        "100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    }
    start, more = starts[rest]
    writer.write(start)
    await asyncio.sleep(STEP_S)  # so that the client has taken the start by itself
    while True:
        writer.write(more)
        await writer.drain()
        await asyncio.sleep(0)


async def _lie(rest: str, writer: Writer) -> None:
    n = len(PAGE)
    answers = {
        "longer": head(f"Content-Length: {n + 1000}") + PAGE,
        "shorter": head(f"Content-Length: {n - 1000}") + PAGE,
        "huge": head(f"Content-Length: {10**15}") + PAGE,
        "negative": head("Content-Length: -5") + PAGE,
        "two": head("Content-Length: 10", "Content-Length: 20") + PAGE,
        "layers": whole(gzip.compress(gzip.compress(PAGE)), "Content-Encoding: gzip, gzip"),
        "unknown": whole(PAGE, "Content-Encoding: snappy"),
    }
    writer.write(answers.get(rest) or whole(PAGE, f"Content-Encoding: {rest}"))


async def _cut(rest: str, writer: Writer) -> None:
    encoded = ENCODE[rest](PAGE)
    writer.write(whole(encoded[: len(encoded) // 2], f"Content-Encoding: {rest}"))


async def _die(rest: str, writer: Writer) -> None:
    sent = {
        "now": b"",
        "header": b"HTTP/1.1 200 OK\r\nContent-Ty",
        "body": head("Content-Length: 100000") + PAGE,
        "chunk": head("Transfer-Encoding: chunked") + b"ffff\r\n" + PAGE,
        "reset": head("Content-Length: 100000") + PAGE,
    }
    writer.write(sent[rest])
    await writer.drain()
    if rest == "reset":
        await asyncio.sleep(STEP_S)
        plug: socket.socket = writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with RST


async def _garbage(rest: str, writer: Writer) -> None:
    answers = {
        "bytes": random.Random(0).randbytes(5000),
        "status": b"HTTP/1.1 OK 200\r\n\r\n",
        "header": b"HTTP/1.1 200 OK\r\nX\x00Y: \x01\r\n: no name\r\nContent-Length: 2\r\n\r\nok",
        "chunk": head("Transfer-Encoding: chunked") + b"zz\r\nnot a number\r\n",
        "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
        "switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + PAGE,
    }
    writer.write(answers[rest])


PLAIN: dict[str, Callable[[str], bytes]] = {
    "": _index,
    "page": _page,
    "deep": _deep,
    "calendar": _calendar,
    "status": _status,
    "later": _later,
    "encoded": _encoded,
    "bomb": _bomb,
    "redirect": _redirect,
}
STRANGE: dict[str, Callable[[str, Writer], Awaitable[None]]] = {
    "drip": _drip,
    "silence": _silence,
    "endless": _endless,
    "lie": _lie,
    "cut": _cut,
    "die": _die,
    "garbage": _garbage,
}

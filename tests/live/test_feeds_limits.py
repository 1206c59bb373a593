"""Feeds refuse what they should, at once or after some tries, and stay within their bounds."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.server as ws_server
import zstandard
from tests.live.feed_servers import (
    HOST,
    OK,
    QUICK,
    Answers,
    header,
    jetstream,
    observed,
    post,
    serving,
    some,
    sse,
    texts,
)

from livelm.errors import ConfigError, SourceError
from livelm.sources.feeds import Sse, SseSettings, WebSocket, WebSocketSettings
from livelm.sources.feeds import live as live_module


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_feed_that_never_answers_is_an_error_after_some_tries(scheme: str) -> None:
    with closing(socket.create_server((HOST, 0))) as listening:
        port = listening.getsockname()[1]
    source = sse(port, start_tries=3) if scheme == "http" else jetstream(port, start_tries=3)
    with pytest.raises(SourceError, match=r"cannot be reached.*3 tries"):
        some(source, None, 1)
    assert observed(source)["failed_connects"] == 3


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_feed_that_refuses_is_an_error_at_once(scheme: str) -> None:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with serving(Answers(answer)) as port:
        source = sse(port) if scheme == "http" else jetstream(port)
        with pytest.raises(SourceError, match="403"):
            some(source, None, 1)
    assert observed(source)["failed_connects"] == 1


@pytest.mark.parametrize("host", [HOST, "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0x7f.1", "2130706433"])
@pytest.mark.parametrize("make", [Sse, WebSocket])
def test_private_addresses_are_refused_unless_allowed(make: type[Sse] | type[WebSocket], host: str) -> None:
    scheme = "http" if make is Sse else "ws"
    target, allow = f"{scheme}://{host}:9/", ("elsewhere.example",)
    source = Sse(target, SseSettings(allow=allow)) if make is Sse else WebSocket(target, WebSocketSettings(allow=allow))
    with pytest.raises(SourceError, match="refused"):
        some(source, None, 1)


def test_a_redirect_is_followed_but_not_to_a_private_address() -> None:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        path = head.split()[1]
        if path == "/stream":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /real\r\nContent-Length: 0\r\n\r\n")
        elif path == "/real":
            writer.write(OK + b'data: {"text": "arrived"}\n\n')
            await asyncio.sleep(1)
        else:
            away = b"http://127.0.0.2:%d/real" % writer.get_extra_info("sockname")[1]
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: " + away + b"\r\nContent-Length: 0\r\n\r\n")

    with serving(Answers(answer)) as port:
        assert texts(some(sse(port), None, 1)) == ["arrived"]
        with pytest.raises(SourceError, match=r"127\.0\.0\.2.*refused: loopback"):
            some(Sse(f"http://{HOST}:{port}/away", SseSettings(**QUICK)), None, 1)


def test_the_server_is_told_who_asks_and_where_to_continue() -> None:
    heads: list[str] = []

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(OK + b'id: [{"at": "\xc3\xa9"}]\ndata: {"text": "a"}\n\ndata: {"text": "%d"}\n\n' % len(heads))

    with serving(Answers(answer)) as port:
        source = sse(port, contact="mailto:me@example.org", from_cursor="start-here")
        assert texts(some(source, None, 3)) == ["a", "1", "2"]
    assert header(heads[0], "User-Agent") == f"livelm/{version('livelm')} (+mailto:me@example.org)"
    assert header(heads[0], "Last-Event-ID") == "start-here"
    assert (header(heads[1], "Last-Event-ID") or "").encode("latin-1").decode() == '[{"at": "é"}]'


def test_a_server_that_asks_to_wait_is_not_asked_sooner() -> None:
    waits: list[float] = []

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        waits.append(time.monotonic())
        if len(waits) == 1:
            writer.write(b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(OK + b'id: 1\ndata: {"text": "a"}\n\n')

    with serving(Answers(answer)) as port:
        assert texts(some(sse(port), None, 1)) == ["a"]
    assert waits[1] - waits[0] >= 0.99


def test_a_feed_that_cannot_continue_says_that_there_is_a_gap() -> None:
    async def serve(connection: ws_server.ServerConnection) -> None:
        await connection.send('{"message": "hello"}')
        await connection.close()

    async def start(listening: socket.socket) -> Any:
        return await ws_server.serve(serve, sock=listening)

    with serving(start) as port:
        source = WebSocket(f"ws://{HOST}:{port}/", WebSocketSettings(**QUICK))
        assert texts(some(source, None, 3)) == ['{"message": "hello"}'] * 3  # without identity nothing is a repetition
    assert observed(source)["gaps"] == 2


def test_a_message_beyond_all_bounds_does_not_stop_the_feed() -> None:
    """Continuing before it would meet it again and again; after some tries the feed goes on without it."""

    async def serve(connection: ws_server.ServerConnection) -> None:
        assert connection.request is not None
        if "cursor=" in connection.request.path:
            await connection.send("x" * 100_000)
        await connection.send(json.dumps(post(0 if "first" not in said else 2)))
        said.append("first")
        await asyncio.sleep(0.01)

    async def start(listening: socket.socket) -> Any:
        return await ws_server.serve(serve, sock=listening, compression=None)

    said: list[str] = []
    with serving(start) as port:
        source = jetstream(port, max_event_bytes=1000)
        read = some(source, None, 2)
    assert texts(read) == ["event 0", "event 2"]
    assert observed(source)["drops"]["too_large"] == live_module.STUCK_FAILURES - 1
    assert observed(source)["gaps"] == 1


def test_compressed_frames_are_read_and_bombs_are_not(tmp_path: Path) -> None:
    samples: list[Any] = [json.dumps(post(k)).encode() for k in range(2000)]
    dictionary = zstandard.train_dictionary(4096, samples)
    (tmp_path / "dictionary").write_bytes(dictionary.as_bytes())
    compressor = zstandard.ZstdCompressor(dict_data=dictionary)
    bomb = compressor.compress(b"[" * 50_000_000)
    streamed = compressor.compressobj()  # says nothing about its size
    unsized = streamed.compress(b"[" * 50_000_000) + streamed.flush()
    paths = []

    async def serve(connection: ws_server.ServerConnection) -> None:
        assert connection.request is not None
        paths.append(connection.request.path)
        for frame in (bomb, unsized, zstandard.MAGIC_NUMBER.to_bytes(4, "little") + b"broken"):
            await connection.send(frame)
        await connection.send(compressor.compress(samples[0]))
        await asyncio.sleep(5)

    async def start(listening: socket.socket) -> Any:
        return await ws_server.serve(serve, sock=listening)

    with serving(start) as port:
        source = jetstream(port, zstd_dictionary=str(tmp_path / "dictionary"))
        assert texts(some(source, None, 1)) == ["event 0"]
    assert observed(source)["drops"] == {"malformed_frame": 3}
    assert paths[0].endswith("&compress=true")
    with pytest.raises(ConfigError, match="cannot be read"):
        jetstream(port, zstd_dictionary=str(tmp_path / "missing"))


def test_certificates_are_checked_against_the_name_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    async def serve(connection: ws_server.ServerConnection) -> None:
        await connection.send(json.dumps(post(0)))
        await asyncio.sleep(5)

    async def start(listening: socket.socket) -> Any:
        return await ws_server.serve(serve, sock=listening, ssl=tls)

    def read(target: str) -> list[str]:
        settings = WebSocketSettings(**{**QUICK, "allow": ("localhost", HOST), "start_tries": 1})
        return texts(some(WebSocket(target, settings), None, 1))

    with serving(start) as port:
        with pytest.raises(SourceError, match=r"(?i)certificate"):
            read(f"wss://localhost:{port}/")
        with pytest.raises(SourceError, match=r"(?i)certificate"):
            some(Sse(f"https://localhost:{port}/", SseSettings(allow=("localhost",), start_tries=1)), None, 1)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert read(f"wss://localhost:{port}/") == ["event 0"]
        with pytest.raises(SourceError, match=r"(?i)certificate"):
            read(f"wss://{HOST}:{port}/")

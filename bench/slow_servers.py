"""How many pages a second one process fetches from servers that take 0.5 to 1.5 s to answer, 2,000 requests at once.

What bounds it is time and not bandwidth: n requests in flight over 1 s of waiting are at most n pages/s. The servers
run in a process of their own; every host has a name, and (as a polite crawl has it) one request at a time.
"""

import argparse
import asyncio
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import uvloop

from bench.record import keep
from livelm.sources.web.address import AddressSettings
from livelm.sources.web.fetch import Fetcher, FetchError, FetchSettings

N_PORTS = 8
PAGE = (b"<!doctype html><title>slow</title><p>" + b"A river, a bridge, a boat, and time. " * 700)[:23_000]


class SlowServer(asyncio.Protocol):
    """Answers each request of a connection after a while; it looks for the end of a request and at nothing else."""

    def __init__(self, chance: random.Random, answer: bytes, close: bool) -> None:
        self._chance, self._answer, self._close = chance, answer, close
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it

    def data_received(self, data: bytes) -> None:
        self._held += data
        while b"\r\n\r\n" in self._held:
            _, _, self._held = self._held.partition(b"\r\n\r\n")
            asyncio.get_running_loop().call_later(self._chance.uniform(0.5, 1.5), self._reply)

    def _reply(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._answer)
            if self._close:
                self._transport.close()


async def serve(fresh: bool) -> None:
    """Listen, print the ports, and go on until killed."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(PAGE)}\r\n"
    answer = (head + ("Connection: close\r\n\r\n" if fresh else "\r\n")).encode() + PAGE
    chance, loop, ports = random.Random(0), asyncio.get_running_loop(), []
    for _ in range(N_PORTS):
        server = await loop.create_server(lambda: SlowServer(chance, answer, fresh), "127.0.0.1", 0, backlog=4096)
        ports.append(server.sockets[0].getsockname()[1])
    print(*ports, flush=True)
    await asyncio.Event().wait()


async def fetch_all(ports: Sequence[int], in_flight: int, n_pages: int) -> dict[str, Any]:
    """Fetch `n_pages` with `in_flight` hosts side by side; the figures, ramp and tail included."""
    hosts = [f"host-{n}.test:{ports[n % len(ports)]}" for n in range(in_flight)]

    async def lookup(host: str) -> list[str]:
        return ["127.0.0.1"]

    settings = FetchSettings(
        user_agent="livelm-bench (loopback only)",
        in_flight=in_flight,
        connections_per_host=1,
        max_idle=in_flight,
        address=AddressSettings(allow=tuple(hosts)),
    )
    left = iter(range(n_pages))
    n_fetched = n_failed = 0

    async def visit(fetcher: Fetcher, host: str) -> None:
        nonlocal n_fetched, n_failed
        for number in left:
            try:
                response = await fetcher.get(f"http://{host}/page/{number}")
                n_fetched += len(response.body) == len(PAGE)
            except FetchError:
                n_failed += 1

    async with Fetcher(settings, lookup) as fetcher:
        begin, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(visit(fetcher, host) for host in hosts))
        wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    return {
        "in_flight": in_flight,
        "pages": n_fetched,
        "failed": n_failed,
        "pages_per_s": round(n_fetched / wall_s, 1),
        "cpu_ms_per_page": round(1000 * cpu_s / max(1, n_fetched), 4),
    }


def measure(in_flight: int, n_pages: int, fresh: bool) -> dict[str, Any]:
    """Start the servers, fetch, stop the servers."""
    command = [sys.executable, "-m", "bench.slow_servers", "--serve", *(["--fresh"] if fresh else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ports = [int(port) for port in server.stdout.readline().split()]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                figures = runner.run(fetch_all(ports, in_flight, n_pages))
        finally:
            server.kill()
    return {"connections": "fresh" if fresh else "kept", **figures}


def main() -> None:
    """Parse the command line, fetch over kept connections and over fresh ones, print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=2000)
    parser.add_argument("--pages", type=int, default=20_000)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    parser.add_argument("--serve", action="store_true", help="be the servers")
    parser.add_argument("--fresh", action="store_true", help="with --serve: close the connection after each page")
    arguments = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one open file for each connection
    if arguments.serve:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(arguments.fresh))
    rows = [measure(arguments.in_flight, arguments.pages, fresh) for fresh in (False, True)]
    for row in rows:
        print(
            f"{row['connections']:>5} connections, {row['in_flight']} in flight: {row['pages_per_s']:,.0f} pages/s, "
            f"{row['cpu_ms_per_page']:.3f} ms CPU per page, {row['failed']} of {arguments.pages} failed"
        )
    if arguments.keep:
        question = "How many pages/s does one process fetch from servers that answer after 0.5 to 1.5 s?"
        figures = {f"{row['connections']}_{k}": row[k] for row in rows for k in ("pages_per_s", "cpu_ms_per_page")}
        keep("slow-servers", question, figures, rows)


if __name__ == "__main__":
    main()

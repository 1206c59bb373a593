"""Worker processes of a crawl from their start to their first order.

A worker imports for half a second before it can do anything. One that is started ahead has done that by the time the
crawl knows what to tell it.
"""

import os
import socket
import subprocess
import sys
from collections import deque

Started = tuple[subprocess.Popen[bytes], socket.socket]
"""A process, and our end of the socket that is its standard input."""


class Spares:
    """Workers that wait for their first order. For any thread."""

    def __init__(self) -> None:
        self._waiting: deque[Started] = deque()

    def start(self, n: int) -> None:
        """Start `n` of them ahead; returns at once."""
        self._waiting.extend(_start() for _ in range(n))

    def take(self) -> Started:
        """One that was started ahead and lives, else a new one."""
        while (started := self._pop()) is not None:
            if started[0].poll() is None:
                return started
            _end(started)
        return _start()

    def close(self) -> None:
        """End those that nobody took; safe to call more than once."""
        while (started := self._pop()) is not None:
            _end(started)

    def _pop(self) -> Started | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None


def _start() -> Started:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: S603  (our own program)
            [sys.executable, "-P", "-m", "livelm.sources.web.worker", str(os.getpid())],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the crawl, which then ends its workers
        )
    return process, ours


def _end(started: Started) -> None:
    process, channel = started
    channel.close()
    process.kill()  # without an order it holds nothing
    process.wait()
    if process.stderr is not None:
        process.stderr.close()

"""Brokers that tests and benchmarks may kill, and a learner that dies as often as it is told to."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

from livelm.sources.brokers.message import Publisher
from livelm.types import Cursor, Document, Source

LIMIT_S = 60
PACE_S = 0.002
"""A learner rests so long at each checkpoint: the fastest brokers would be read before anybody could kill anything."""


class Server:
    """A server process on a loopback port, with a folder that outlives it."""

    def __init__(self, command: Callable[[Path, int], list[str]], folder: Path) -> None:
        self._command, self._folder = command, folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(self._command(self._folder, self.port), stdout=log, stderr=log)
        until(self._listens)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "server.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def nats_command(*options: str) -> Callable[[Path, int], list[str]] | None:
    """How to start nats-server; None where there is none."""
    beside = Path(sys.executable).parent / "nats-server"
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if program is None:
        return None
    return lambda folder, port: [program, "-js", "-sd", str(folder), "-a", "127.0.0.1", "-p", str(port), *options]


def redis_command(*options: str) -> Callable[[Path, int], list[str]] | None:
    """How to start redis-server; None where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        return None
    fixed = ["--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--loglevel", "warning"]
    return lambda folder, port: [program, "--port", str(port), "--dir", str(folder), *fixed, *options]


def until(true: Callable[[], object]) -> None:
    """Wait for something that other processes do; never longer than a broken test may last."""
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def documents(n: int, n_bytes: int = 200) -> list[Document]:
    """Different ones, in order."""
    return [Document(text=f"{i} ".encode() * (n_bytes // 5), id=f"d{i}", source="crawl") for i in range(n)]


def learn(make: Callable[[], Source], folder: Path, n: int, every: int = 37) -> None:
    """What a run does: grade, checkpoint now and then, acknowledge; a resumed one forgets what came after the last.

    Ends after `n` documents.
    """
    saved = folder / "checkpoint.json"
    checkpoint = json.loads(saved.read_text()) if saved.exists() else {"n": 0, "n_bytes": 0, "cursor": None}
    journal = folder / "journal"
    with journal.open("ab") as file:
        file.truncate(checkpoint["n_bytes"])
    cursor = None if checkpoint["cursor"] is None else Cursor(*checkpoint["cursor"])
    count, source = checkpoint["n"], make()
    if count < n:
        with journal.open("ab") as file:
            for document, after in source.read(cursor):
                file.write(f"{document.id}\n".encode())
                count += 1
                if count % every == 0 or count == n:
                    file.flush()
                    state = {"n": count, "n_bytes": file.tell(), "cursor": [after.source, dict(after.at)]}
                    (folder / "new").write_text(json.dumps(state))
                    (folder / "new").replace(saved)
                    source.commit(after)  # type: ignore[attr-defined]
                    time.sleep(PACE_S)
                if count == n:
                    break
    source.close()


def learn_killed(
    make: Callable[[], Source], folder: Path, n: int, n_kills: int, also: Callable[[], None] = lambda: None
) -> list[str]:
    """Learn in processes that are killed `n_kills` times, each after a random number of documents more.

    `also()` is called with each kill. Returns the ids that were graded, in order.
    """
    chooser, journal, n_hits = random.Random(0), folder / "journal", 0
    context = get_context("fork")  # seconds faster than to import everything again
    journal.touch()
    for life in range(n_kills + 1):
        n_bytes = journal.stat().st_size + chooser.randint(1, 6 * n // (n_kills + 1))  # an id and its line end
        process = context.Process(target=learn, args=(make, folder, n))
        process.start()
        assert process.pid is not None
        if life < n_kills:
            end = time.monotonic() + LIMIT_S
            while process.is_alive() and journal.stat().st_size < n_bytes and time.monotonic() < end:
                process.join(0.001)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            also()
            process.join()
            n_hits += process.exitcode == -signal.SIGKILL
        else:
            process.join(LIMIT_S)
            assert process.exitcode == 0
    assert n_hits > n_kills // 2, "the learner was done too early"
    return journal.read_text().split()


def read_while_killed(
    server: Server, make_publisher: Callable[[], Publisher], source: Source, n: int
) -> tuple[list[str], Cursor | None]:
    """Publish `n` documents and read them while the server is killed and started again five times.

    Acknowledges now and then, and closes the source. The ids that came, in order, and the last cursor.
    """
    stop, got, cursor = threading.Event(), list[str](), None

    def write() -> None:
        with closing(make_publisher()) as publisher:
            for i in range(0, n, 200):
                publisher.publish(documents(n)[i : i + 200])

    def kill() -> None:
        for n_read in range(n // 6, 6 * (n // 6), n // 6):
            while len(got) < n_read and not stop.wait(0.005):
                pass
            if not stop.is_set():
                server.kill()
                server.start()

    threads = [threading.Thread(target=write), threading.Thread(target=kill)]
    for thread in threads:
        thread.start()
    try:
        for document, cursor in source.read(None):
            got.append(document.id)
            if len(got) % 500 == 0 or len(got) == n:
                source.commit(cursor)  # type: ignore[attr-defined]
            if len(got) == n:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        source.close()
    return got, cursor

"""Kill a learning process again and again; what it leaves must be what a run that was never killed leaves.

Children are forked from one process that has imported everything, learn on one thread, and die by SIGKILL: half of
them at a random record, half at a random moment (inside a save, a write or a wait, as it comes).
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 - torch imports it at the first optimizer: once here, not in each child

from bench.record import keep
from livelm.config import load_recipe
from livelm.run import resume, run_session, start
from livelm.session import Stop

SETTINGS = [
    "run.threads=1",
    "memory.name=none",
    "model.name=transformer",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context=32",
    "model.ngrams=[2, 3]",
    "model.ngram_rows=64",
    "feed.update_tokens=32",
    "checkpoint.every_s=0.02",
    "spool.segment_bytes=4096",
]
KINDS = ("files", "spool", "tail")


class Grim:
    """A view that ends the process at its n-th record."""

    def __init__(self, n: int) -> None:
        self.left = n

    def take(self, record: Mapping[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def facts(run: Path) -> list[bytes]:
    """The reproducible lines of a journal, without the identity of the run and of the machine."""
    lines = [line for line in (run / "journal.jsonl").read_bytes().splitlines() if b'"seq":' in line[:40]]
    return lines[1:]


def text_of(n_bytes: int, seed: int) -> bytes:
    """Words of a small vocabulary, so that there is something to learn."""
    chooser = random.Random(seed)
    words = [b"alpha", b"beta", b"gamma", b"delta\n", "épsilon".encode(), b"zeta,", b"\x00\xff"]
    return b" ".join(chooser.choice(words) for _ in range(n_bytes))[:n_bytes]


def in_child(act: Callable[[], None]) -> int:
    """Fork, act in the child, and return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
        act()
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> bool:
    """Wait for a child; True when it came to its own end, False when it was killed. Anything else is a failure."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"a child failed with {os.waitstatus_to_exitcode(status)}")
    return True


class Life:
    """One run over one stream, lived through many deaths."""

    def __init__(self, kind: str, folder: Path, n_bytes: int, seed: int) -> None:
        # with the mark a whole number of updates: a followed file never ends, a part of one would wait for ever
        self.kind, self.folder, self.text = kind, folder, text_of(n_bytes // 32 * 32 - 1, seed)
        folder.mkdir(parents=True)
        self.file = folder / "stream.txt"
        self.file.write_bytes(self.text if kind != "tail" else b"")
        self.written = 0

    def settings(self) -> list[str]:
        uri = {"files": str(self.file), "spool": "-", "tail": f"tail:{self.file}"}[self.kind]
        budget = [f"run.budget={len(self.text)}B"] if self.kind == "tail" else []
        return [*SETTINGS, f"source.uris={json.dumps([uri])}", *budget]

    def live(self, run: Path, view: Grim | None, first: bool) -> None:
        """One session, in a child: begin or go on, until the end or death."""
        if self.kind == "spool":
            os.dup2(os.open(self.file if first else os.devnull, os.O_RDONLY), 0)
        session = start(load_recipe(None, "tiny", self.settings()), run, Stop()) if first else resume(run, "", Stop())
        run_session(session, [view] if view else [])

    def grow(self, chooser: random.Random) -> None:
        """Let the followed file grow a little."""
        n = chooser.randint(1, 400)
        with self.file.open("ab") as file:
            file.write(self.text[self.written : self.written + n])
        self.written = min(self.written + n, len(self.text))


def uninterrupted(life: Life) -> Path:
    """The run that is never killed, over the same stream."""
    run = life.folder / "never-killed"
    if life.kind == "tail":
        life.file.write_bytes(life.text)
    if not ended(in_child(lambda: life.live(run, None, first=True))):
        raise RuntimeError("the uninterrupted run was killed")
    if life.kind == "tail":
        life.file.unlink()
        life.file.write_bytes(b"")
    return run


def killed(life: Life, chooser: random.Random, most: int) -> tuple[Path, int]:
    """The run that is killed up to `most` times; returns it when it has come to its end."""
    run, n_kills, done = life.folder / "killed", 0, False
    while not done:
        first = not (run / "checkpoints").exists() or not any((run / "checkpoints").glob("[0-9]*"))
        if first and run.exists():
            _forget(run)
        by_record = chooser.random() < 0.5 or first
        last = n_kills >= most or (first and life.kind == "spool")
        view = Grim(chooser.randint(3, 150)) if by_record and not last else None
        pid = in_child(lambda: life.live(run, view, first))  # noqa: B023
        stop = threading.Event()
        growing = threading.Thread(target=_feed, args=(life, chooser.randint(0, 1 << 30), stop))
        growing.start()
        if life.kind == "spool" and first:
            _wait_for_spool(life, run)
            os.kill(pid, signal.SIGKILL)
        elif not by_record and not last:
            time.sleep(chooser.uniform(0.05, 0.5))
            os.kill(pid, signal.SIGKILL)
        done = ended(pid)
        n_kills += not done
        stop.set()
        growing.join()
    return run, n_kills


def _feed(life: Life, seed: int, stop: threading.Event) -> None:
    chooser = random.Random(seed)
    while life.kind == "tail" and life.written < len(life.text) and not stop.is_set():
        life.grow(chooser)
        time.sleep(0.002)


def _forget(run: Path) -> None:
    """A run that died before its first checkpoint begins anew."""
    for path in sorted(run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _wait_for_spool(life: Life, run: Path) -> None:
    """Until all of standard input is in the spool: what was never read from a pipe cannot be read again."""
    while sum(p.stat().st_size for p in (run / "spool").glob("*")) < len(life.text):
        time.sleep(0.01)
    time.sleep(0.2)


def soak(kind: str, n_kills: int, n_bytes: int, seed: int) -> dict[str, Any]:
    """Kill runs over one kind of source until `n_kills` deaths; raises RuntimeError at the first difference."""
    deaths, runs, begin = 0, 0, time.monotonic()
    while deaths < n_kills:
        chooser = random.Random(f"{seed}-{kind}-{runs}")
        with tempfile.TemporaryDirectory() as folder:
            life = Life(kind, Path(folder) / "life", n_bytes, seed + runs)
            expected = uninterrupted(life)
            run, died = killed(life, chooser, n_kills - deaths)
            if facts(run) != facts(expected):
                raise RuntimeError(f"{kind}: the journal differs after {died} kills (seed {seed}, run {runs})")
            if (run / "graded.bytes").read_bytes() != life.text:
                raise RuntimeError(f"{kind}: bytes were lost or doubled after {died} kills (seed {seed}, run {runs})")
        deaths, runs = deaths + died, runs + 1
    print(f"{kind}: {deaths} kills in {runs} runs, {time.monotonic() - begin:.0f} s: no difference", flush=True)
    return {"source": kind, "kills": deaths, "runs": runs, "bytes_per_run": n_bytes, "differences": 0}


def main() -> None:
    """Parse the command line, soak, and keep a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=334, help="per kind of source")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(len(arguments.kinds), mp_context=get_context("spawn")) as pool:
        work = [pool.submit(soak, k, arguments.kills, arguments.bytes, arguments.seed) for k in arguments.kinds]
        rows = [job.result() for job in work]
    if arguments.keep:
        total = sum(row["kills"] for row in rows)
        keep(
            "kills",
            "Does a run that is killed with SIGKILL at random leave the journal of a run that never was?",
            {"kills": total, "differences": 0},
            rows,
        )


if __name__ == "__main__":
    main()

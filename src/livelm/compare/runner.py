"""One run of a comparison in a process of its own: an ordinary run, but it learns only when it is its turn.

A process for each run keeps memory, random numbers and threads apart. It is led through its standard input and
answers on its standard output, one JSON object a line. Outside its turns its clock stands still.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from livelm.compiled import tell_compiling
from livelm.config import Recipe, validate
from livelm.errors import LivelmError
from livelm.evaluate.baselines import Baselines
from livelm.run import run_session, start
from livelm.session import Session, Stop
from livelm.telemetry.terminal import say_compiling


class Dropped(LivelmError):
    """The leader wants nothing of this run: it was a pilot."""


class Leader:
    """The process that gives the turns."""

    def __init__(self, orders: BinaryIO, answers: BinaryIO) -> None:
        self._orders, self._answers = orders, answers

    def ask(self, **said: Any) -> dict[str, Any]:
        """Say something and wait for an order; a leader that is gone is an order to stop."""
        try:
            self.say(**said)
            line = self._orders.readline()
        except OSError:
            line = b""
        return json.loads(line) if line else {"stop": "nobody leads the comparison any more"}

    def say(self, **said: Any) -> None:
        """Answer without waiting."""
        self._answers.write(json.dumps(said).encode() + b"\n")
        self._answers.flush()


class Turns:
    """A view that lets the run go on until its turn is over, then holds it until the next."""

    def __init__(self, session: Session, leader: Leader) -> None:
        self._session, self._leader = session, leader
        self._n_bytes, self._bits, self._active_s = 0, 0.0, 0.0
        self._until_s, self._until_bytes = 0.0, inf

    def take(self, record: Mapping[str, Any]) -> None:
        """Count what was scored; wait at the beginning, and between two updates when the turn is over."""
        if record["kind"] == "scored":
            self._n_bytes, self._bits = self._n_bytes + record["n_bytes"], self._bits + record["bits"]
        if record["kind"] == "update":
            self._active_s = self._session.clock.active_s
        over = self._active_s >= self._until_s or self._n_bytes >= self._until_bytes
        if record["kind"] == "run" or (record["kind"] == "update" and over):
            self._wait()

    def counted(self) -> dict[str, float]:
        """What was graded, and the time on this run's clock after the last update."""
        return {"n_bytes": self._n_bytes, "bits": self._bits, "active_s": self._active_s}

    def _wait(self) -> None:
        with self._session.clock.paused():
            order = self._leader.ask(said="turn", **self.counted())
        if "drop" in order:
            raise Dropped("not wanted any more")
        if "stop" in order:
            self._session.stop.request(order["stop"])
        self._until_s, self._until_bytes = order.get("until_s", inf), order.get("until_bytes") or inf

    def __enter__(self) -> "Turns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LedBaselines:
    """In the place of a `BaselineWorker`: the leader measures the bytes that all runs read, once for all."""

    def __init__(self, turns: Turns, session: Session, leader: Leader) -> None:
        self._turns, self._session, self._leader = turns, session, leader

    def grown(self, n_bytes: int) -> None:
        """Nothing is measured while others learn."""

    def poll(self) -> Baselines | None:
        """Nothing was measured yet."""
        return None

    def finish(self, n_bytes: int, timeout_s: float) -> Baselines | None:
        """Everything is learned and saved; what the leader measured when all are that far."""
        with self._session.clock.paused():
            order = self._leader.ask(said="learned", **self._turns.counted())
        return Baselines(**order["baselines"]) if "baselines" in order else None

    def warnings(self) -> Iterator[str]:
        """There are none."""
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


def main() -> int:
    """Read the recipe and the folder from the first line, then run as led."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the leader too, which stops all alike
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else can get between the answers
    tell_compiling(say_compiling)
    leader = Leader(sys.stdin.buffer, answers)
    first = json.loads(sys.stdin.buffer.readline())
    try:
        session = start(validate(Recipe, first["recipe"], ""), Path(first["out"]), Stop())
        session.fresh = False  # no checkpoint of random weights: a second of the clock for a large table
        turns = Turns(session, leader)
        session.baselines = LedBaselines(turns, session, leader)  # type: ignore[assignment]
        run_session(session, [turns])
    except Dropped:
        return 0
    except LivelmError as error:
        leader.say(said="failed", kind=type(error).__name__, message=str(error))
        return error.exit_code
    leader.say(said="ended", reason=session.stop.reason or "source ended")
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # everything is saved; taking torch down in order takes seconds on a busy machine

"""A run of a comparison, as seen by the process that leads it."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from livelm import errors
from livelm.config import Recipe
from livelm.errors import LivelmError, RunError
from livelm.evaluate.baselines import Baselines

PATIENCE_S = 60.0
"""How long a run that was told to end may take to save itself before it is left alone."""


class Rider:
    """Starts `livelm.compare.runner` for a recipe and gives it turns. Nothing runs outside `go` and `end`."""

    def __init__(self, label: str, recipe: Recipe, out: Path) -> None:
        """Start its process; `ready` waits for it, so that several can start at the same time."""
        self.label, self.out = label, out
        self.n_bytes, self.bits, self.active_s = 0, 0.0, 0.0
        self.learned = False
        """Whether it has used up its budget, or its stream."""
        self.reason: str | None = None
        """Why it ended; None while it has not."""
        command = [sys.executable, "-m", "livelm.compare.runner"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        self._order(recipe=recipe.model_dump(mode="json", exclude_none=True), out=str(out))

    def ready(self) -> None:
        """Wait until it has opened everything and stands still. Raises what it could not do, with its label."""
        self._listen()

    @property
    def bits_per_byte(self) -> float:
        """Of everything graded so far; infinite before the first byte."""
        return self.bits / self.n_bytes if self.n_bytes else float("inf")

    def go(self, until_s: float, until_bytes: int | None = None) -> None:
        """Learn until its own clock shows `until_s`, or it has graded `until_bytes`, or its budget is spent."""
        self._order(until_s=until_s, until_bytes=until_bytes)
        self._listen()

    def close(self, baselines: Baselines) -> None:
        """Give a run that has learned everything the baselines of its bytes, and wait until it has ended."""
        self._order(baselines=asdict(baselines))
        self._listen()
        self._process.wait(PATIENCE_S)

    def stop(self, reason: str) -> None:
        """Make it save what it has learned and end; never raises, for several may have to be stopped."""
        if self._process.poll() is None:
            with suppress(LivelmError, subprocess.TimeoutExpired, OSError):
                self._order(stop=reason)
                while self.reason is None and self._process.poll() is None:
                    self._listen()
                self._process.wait(PATIENCE_S)

    def drop(self) -> None:
        """Make it leave nothing behind (a pilot)."""
        with suppress(LivelmError, subprocess.TimeoutExpired, OSError):
            self._order(drop=True)
            self._process.wait(PATIENCE_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _order(self, **order: Any) -> None:
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            raise self._died() from None

    def _listen(self) -> None:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise self._died()
        said = json.loads(line)
        if said["said"] == "failed":
            kind = getattr(errors, said["kind"], RunError)
            raise kind(f"{self.label}: {said['message']}")
        if said["said"] in ("turn", "learned"):
            self.n_bytes, self.bits, self.active_s = said["n_bytes"], said["bits"], said["active_s"]
        self.learned = self.learned or said["said"] == "learned"
        self.reason = said.get("reason", self.reason)

    def _died(self) -> RunError:
        code = self._process.wait()
        advice = "Perhaps there was too little memory" if code in (-9, 137) else "What it said is above"
        return RunError(f"{self.label}: its process ended with {code} before its turn was over. {advice}.")

"""Say when a signal has changed for good, and, apart from that, when a single window stood out."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

SLACK = 0.5
"""Standard deviations per window that count as no change (the delta of Page and Hinkley)."""
MOST = 4.0
"""Standard deviations that one window counts at most, so that no single one can be a drift."""
MEMORY = 0.98
"""Decay per window of the running mean and variance: about the last 50 windows."""
LEAST_DEVIATION = 0.01
"""What a standard deviation counts at least: bits per byte, or hundredths of a signal from 0 to 1."""

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Alarm:
    """What was noticed about one signal."""

    alarm: Literal["drift", "spike"]
    direction: Direction
    before: float
    """The running mean until then."""
    now: float
    """The mean since the change began; of a spike, its value."""
    n_windows: int
    """Windows since the change began, this one included; of a spike 2: it shows when the next one is as before."""


@dataclass(slots=True)
class _Sum:
    """Page's sum in one direction, and what was summed since it was last zero."""

    height: float = 0.0
    total: float = 0.0
    n: int = 0

    def add(self, deviation: float, value: float) -> None:
        self.height = max(0.0, self.height + deviation - SLACK)
        self.total, self.n = (self.total + value, self.n + 1) if self.height else (0.0, 0)


class DriftDetector:
    """The test of Page (1954) and Hinkley (1971) on one signal, with a mean and variance that forget.

    z is the distance of a window from the running mean in running standard deviations; g = max(0, g + z - SLACK), and
    the same downwards; a drift is g > `threshold`. z is cut at MOST, so it takes several windows; after an alarm,
    everything is learned anew. Forgetting as in Gama, Sebastiao and Rodrigues (2013, "On evaluating stream learning
    algorithms", section 4). A spike is a window with |z| > `spike` before and after which |z| is small.
    """

    def __init__(self, threshold: float, spike: float, burn_in: int, directions: tuple[Direction, ...]) -> None:
        """`burn_in` windows only teach what is usual; other `directions` than those given raise no alarm."""
        self._threshold, self._spike, self._burn_in, self._directions = threshold, spike, burn_in, directions
        self._reset()

    def take(self, value: float) -> list[Alarm]:
        """Add a window's value; what it gives reason to say."""
        deviation = max(math.sqrt(self._variance), LEAST_DEVIATION)
        z = (value - self._mean) / deviation if self._n >= self._burn_in else 0.0
        found = self._spikes(z, value)
        cut = max(-MOST, min(MOST, z))
        for sign, direction in ((1, "up"), (-1, "down")):
            height = self._sums[direction]
            height.add(sign * cut, value)
            if height.height > self._threshold and direction in self._directions:
                found.append(Alarm("drift", direction, self._mean, height.total / height.n, height.n))
        if found and found[-1].alarm == "drift":
            self._reset()
        else:
            self._absorb(self._mean + cut * deviation if self._n >= self._burn_in else value)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        sums = {direction: asdict(s) for direction, s in self._sums.items()}
        return {"n": self._n, "mean": self._mean, "variance": self._variance, "sums": sums, "odd": self._odd}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._n, self._mean, self._variance = state["n"], state["mean"], state["variance"]
        self._sums = {direction: _Sum(**values) for direction, values in state["sums"].items()}
        self._odd = None if state["odd"] is None else (float(state["odd"][0]), float(state["odd"][1]))

    def _reset(self) -> None:
        self._n, self._mean, self._variance = 0, 0.0, 0.0
        self._sums: dict[str, _Sum] = {"up": _Sum(), "down": _Sum()}
        self._odd: tuple[float, float] | None = None  # z and value of the window before, if it stood out

    def _spikes(self, z: float, value: float) -> list[Alarm]:
        odd, self._odd = self._odd, (z, value) if abs(z) > self._spike else None
        if odd is None or abs(z) > self._spike / 2:
            return []
        direction: Direction = "up" if odd[0] > 0 else "down"
        return [Alarm("spike", direction, self._mean, odd[1], 2)] if direction in self._directions else []

    def _absorb(self, value: float) -> None:
        keep = min(MEMORY, self._n / (self._n + 1))  # an exact mean while few were seen
        step = value - self._mean
        self._mean += (1 - keep) * step
        self._variance = keep * (self._variance + (1 - keep) * step * step)
        self._n += 1

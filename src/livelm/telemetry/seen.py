"""What the signals of a run have been, folded from its journal: the latest, their range, alarms, the gate."""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

NAMES = {
    "negentropy": "K of the input",
    "complexity": "C of the input",
    "disorder": "disorder of the input",
    "prediction_negentropy": "K of the predictions",
    "prediction_complexity": "C of the predictions",
    "symbiosis": "S",
    "divergence": "divergence, bits",
    "bits_per_byte": "bits per byte",
}
"""The signals, in the order they are shown."""
_MAX_ALARMS = 20


class Range(NamedTuple):
    """A signal over all windows so far."""

    latest: float
    mean: float
    least: float
    greatest: float


class Noticed(NamedTuple):
    """An alarm, and where it was raised."""

    n_bytes: int
    """Bytes graded until then."""
    alarm: str
    """`drift` or `spike`."""
    signal: str
    direction: str
    before: float
    now: float


class SignalsSeen:
    """Folds the records `signals`, `alarm` and `gate`; memory is bounded."""

    def __init__(self) -> None:
        self.n_windows = 0
        self.ranges: dict[str, Range] = {}
        self.n_alarms = {"drift": 0, "spike": 0}
        self.alarms: deque[Noticed] = deque(maxlen=_MAX_ALARMS)
        self.gate_closed = False
        self.gate_mean: float | None = None
        """Of the gate's signal, when it last moved."""
        self.n_closed = 0
        """How often the gate closed."""
        self.n_refused = self.n_refused_bytes = 0
        """Updates that the gate refused, and their bytes."""

    def take_signals(self, record: Mapping[str, Any]) -> None:
        """Add a window."""
        self.n_windows += 1
        for name in NAMES:
            value = float(record[name])
            old = self.ranges.get(name, Range(value, value, value, value))
            mean = old.mean + (value - old.mean) / self.n_windows
            self.ranges[name] = Range(value, mean, min(old.least, value), max(old.greatest, value))

    def take_alarm(self, record: Mapping[str, Any], n_bytes: int) -> None:
        """Add an alarm raised when `n_bytes` were graded."""
        alarm, signal, direction = (str(record[name])[:40] for name in ("alarm", "signal", "direction"))
        self.n_alarms[alarm] = self.n_alarms.get(alarm, 0) + 1
        self.alarms.append(Noticed(n_bytes, alarm, signal, direction, float(record["before"]), float(record["now"])))

    def take_gate(self, record: Mapping[str, Any]) -> None:
        """The gate moved."""
        self.gate_closed, self.gate_mean = bool(record["closed"]), float(record["mean"])
        self.n_closed += self.gate_closed

    def take_update(self, n_bytes: int) -> None:
        """A batch of `n_bytes` was learned, or refused if the gate is closed."""
        self.n_refused += self.gate_closed
        self.n_refused_bytes += n_bytes * self.gate_closed

    def summary(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "n_windows": self.n_windows,
            "ranges": {name: values._asdict() for name, values in self.ranges.items()},
            "n_drifts": self.n_alarms["drift"],
            "n_spikes": self.n_alarms["spike"],
            "latest_alarms": [noticed._asdict() for noticed in self.alarms],
            "gate_closed": self.gate_closed,
            "n_gate_closed": self.n_closed,
            "n_refused_updates": self.n_refused,
            "n_refused_bytes": self.n_refused_bytes,
        }

"""A gate before learning: closed while the stream looks like garbage, with memory, burn-in and hysteresis."""

from typing import Any

from livelm.config import SignalsSettings


class Gate:
    """Follows one signal by an exponential mean; `closed` says whether updates are refused.

    It closes when the mean reaches `gate_close` and opens when it has come back to `gate_open`; between the two it
    stays as it is. With `gate_close` above `gate_open` high values close it, else low ones. The first `burn_in` windows
    cannot close it.
    """

    def __init__(self, settings: SignalsSettings) -> None:
        self._settings = settings
        self._n_seen = 0
        self.mean = 0.0
        self.closed = False

    def take(self, value: float) -> bool:
        """Add a window's value; whether the gate moved."""
        keep = min(self._settings.gate_decay, self._n_seen / (self._n_seen + 1))  # an exact mean while few were seen
        self.mean = keep * self.mean + (1 - keep) * value
        self._n_seen += 1
        before = self.closed
        sign = 1 if self._settings.gate_close > self._settings.gate_open else -1
        if sign * self.mean >= sign * self._settings.gate_close:
            self.closed = self._n_seen > self._settings.burn_in
        elif sign * self.mean <= sign * self._settings.gate_open:
            self.closed = False
        return self.closed != before

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"n_seen": self._n_seen, "mean": self.mean, "closed": self.closed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._n_seen, self.mean, self.closed = state["n_seen"], state["mean"], state["closed"]

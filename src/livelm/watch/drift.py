"""The slow change of a whole stream, kept apart from single surprises: the alarms of `telemetry.signals`."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from livelm.config import SignalsSettings
from livelm.telemetry.signals.drift import DriftDetector
from livelm.telemetry.signals.formulas import Measure
from livelm.telemetry.signals.monitor import DIGITS, WATCHED
from livelm.types import LN_2, Record


class Drift:
    """Measures windows of the stream, and says when bits per byte, K, C or S have changed for good."""

    def __init__(self, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._measure = Measure()
        self._text = bytearray()
        self._bits = np.empty(0)
        limits = SignalsSettings()
        self._detectors = {
            name: DriftDetector(limits.drift, limits.spike, limits.burn_in, directions)
            for name, directions in WATCHED.items()
        }

    def take(self, text: bytes, bits: NDArray[np.float64]) -> list[Record]:
        """Add bytes and what each cost; the changes they give reason to say."""
        self._text += text
        self._bits = np.concatenate([self._bits, bits])
        found = []
        while len(self._text) >= self._window_bytes:
            window, costs = bytes(self._text[: self._window_bytes]), self._bits[: self._window_bytes]
            del self._text[: self._window_bytes]
            self._bits = self._bits[self._window_bytes :]
            signals = self._measure.window(window, costs * LN_2)
            for name, detector in self._detectors.items():
                for alarm in detector.take(getattr(signals, name)):
                    if alarm.alarm == "drift":  # a spike is a single window: scores say that better
                        values = {key: value for key, value in asdict(alarm).items() if key != "alarm"}
                        values |= {key: round(values[key], DIGITS) for key in ("before", "now")}
                        found.append({"kind": "drift", "signal": name, **values})
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors for what waits, plain numbers for what is usual."""
        return {
            "text": self._text.hex(),
            "bits": torch.from_numpy(self._bits.copy()),
            "detectors": {name: detector.state_dict() for name, detector in self._detectors.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._text = bytearray.fromhex(state["text"])
        self._bits = state["bits"].numpy().copy()
        for name, values in state["detectors"].items():
            self._detectors[name].load_state_dict(values)

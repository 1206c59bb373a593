"""Cut what was graded into windows, measure each, and say what changed; a few windows at a time."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from livelm.config import SignalsSettings
from livelm.telemetry.signals.drift import Direction, DriftDetector
from livelm.telemetry.signals.formulas import Measure, Signals
from livelm.telemetry.signals.gate import Gate
from livelm.tokenize.decoder import Decoder
from livelm.types import Batch, Record, Scored, Tokenizer

WATCHED: dict[str, tuple[Direction, ...]] = {
    "bits_per_byte": ("up",),  # that it falls is what learning is for
    "negentropy": ("up", "down"),
    "complexity": ("up", "down"),
    "symbiosis": ("down",),
}
"""The signals that raise alarms, and in which direction."""
DIGITS = 6


class Monitor:
    """Turns what the learner graded into records: `signals` of each window, `alarm`, and `gate` when it moves.

    They are facts: they depend on nothing but what was graded, in whatever sessions. A window belongs to one lane and
    closes with the token that completes `window_bytes`; what does not fill one waits, also at the end of a run.
    Nothing is touched until a window may be full: work between two updates costs several times as much as in a burst.
    """

    def __init__(self, settings: SignalsSettings, tokenizer: Tokenizer, n_lanes: int) -> None:
        self._settings = settings
        self._measure = Measure()
        self._lanes = [_Lane(settings, tokenizer) for _ in range(n_lanes)]
        self._gate = Gate(settings) if settings.gate != "off" else None
        self._batches: list[tuple[Batch, Tensor]] = []
        self._n_since = self._fullest = 0  # bytes graded since the last look, bytes in the fullest lane then

    @property
    def refusal(self) -> str | None:
        """Why what was just graded must not be learned; None to learn it."""
        if self._gate is None or not self._gate.closed:
            return None
        return f"the gate is closed: {self._settings.gate} is {self._gate.mean:.3f}"

    def take(self, scored: Scored) -> Sequence[Record]:
        """Add what was graded; the records it gives reason for."""
        self._batches.append((scored.batch, scored.nats))
        self._n_since += scored.n_bytes
        if self._n_since + self._fullest < self._settings.window_bytes:
            return ()
        self._absorb()
        records = [
            record
            for number, lane in enumerate(self._lanes)
            for window in lane.cut(self._settings.window_bytes)
            for record in self._records(lane, {"batch": scored.batch.index, "lane": number}, *window)
        ]
        self._n_since, self._fullest = 0, max(lane.n_bytes for lane in self._lanes)
        return records

    def state_dict(self) -> dict[str, Any]:
        """Everything later records depend on: what waits, the detectors, the gate."""
        self._absorb()  # the counters stay: when the next window is looked for must not depend on when a run is saved
        return {
            "lanes": [lane.state_dict() for lane in self._lanes],
            "gate": None if self._gate is None else self._gate.state_dict(),
            "n_since": self._n_since,
            "fullest": self._fullest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for lane, values in zip(self._lanes, state["lanes"], strict=True):
            lane.load_state_dict(values)
        if self._gate is not None:
            self._gate.load_state_dict(state["gate"])
        self._n_since, self._fullest = state["n_since"], state["fullest"]

    def _absorb(self) -> None:
        """Move the batches that wait into the windows of their lanes."""
        batches, self._batches = self._batches, []
        if not batches:
            return
        parts = [(b.tokens.numpy(), b.graded.numpy(), b.n_bytes.numpy(), costs.numpy()) for b, costs in batches]
        tokens, graded, n_bytes, nats = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        for number, lane in enumerate(self._lanes):
            kept = graded[number]
            lane.add(tokens[number][kept].tolist(), n_bytes[number][kept], nats[number][kept])

    def _records(self, lane: "_Lane", where: Record, text: bytes, nats: NDArray[np.float64]) -> list[Record]:
        found = self._measure.window(text, nats)
        rounded = {name: round(value, DIGITS) for name, value in found._asdict().items()}
        records: list[Record] = [{"kind": "signals", **where, "n_bytes": len(text), "n_tokens": len(nats), **rounded}]
        records += [{"kind": "alarm", **where, **alarm} for alarm in lane.judge(found)]
        if self._gate is not None and self._gate.take(getattr(found, self._settings.gate)):
            mean = round(self._gate.mean, DIGITS)
            records.append({"kind": "gate", **where, "closed": self._gate.closed, "mean": mean})
        return records


class _Lane:
    """What of one lane waits to fill a window, and what is usual there."""

    def __init__(self, settings: SignalsSettings, tokenizer: Tokenizer) -> None:
        self._decoder = Decoder(tokenizer)
        self._text = bytearray()
        self._sizes, self._nats = np.empty(0, np.int64), np.empty(0)
        limits = settings.drift, settings.spike, settings.burn_in
        self._detectors = {name: DriftDetector(*limits, directions) for name, directions in WATCHED.items()}

    @property
    def n_bytes(self) -> int:
        """Bytes that wait."""
        return int(self._sizes.sum())

    def add(self, ids: list[int], sizes: NDArray[np.int64], nats: NDArray[np.float64]) -> None:
        """Append graded tokens: their numbers, how many each covers, what each cost."""
        self._text += self._decoder.feed(ids)
        self._sizes, self._nats = np.concatenate([self._sizes, sizes]), np.concatenate([self._nats, nats])

    def cut(self, window_bytes: int) -> list[tuple[bytes, NDArray[np.float64]]]:
        """Take away and return every full window: its bytes and the nats of its tokens."""
        windows = []
        while self.n_bytes >= window_bytes:
            n_tokens = int(np.searchsorted(np.cumsum(self._sizes), window_bytes)) + 1
            n_bytes = int(self._sizes[:n_tokens].sum())
            windows.append((bytes(self._text[:n_bytes]), self._nats[:n_tokens]))
            del self._text[:n_bytes]
            self._sizes, self._nats = self._sizes[n_tokens:], self._nats[n_tokens:]
        return windows

    def judge(self, signals: Signals) -> list[dict[str, Any]]:
        """The alarms that a window gives reason for, as fields of records."""
        found = []
        for name, detector in self._detectors.items():
            for alarm in detector.take(getattr(signals, name)):
                values = asdict(alarm)
                values |= {key: round(values[key], DIGITS) for key in ("before", "now")}
                found.append({"signal": name, **values})
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors for what waits, plain numbers for what is usual."""
        return {
            "held": list(self._decoder.held),
            "text": torch.tensor(list(self._text), dtype=torch.uint8),
            "sizes": torch.from_numpy(self._sizes.copy()),
            "nats": torch.from_numpy(self._nats.copy()),
            "detectors": {name: detector.state_dict() for name, detector in self._detectors.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._decoder.held = list(state["held"])
        self._text = bytearray(state["text"].numpy().tobytes())
        self._sizes, self._nats = state["sizes"].numpy(), state["nats"].numpy()
        for name, values in state["detectors"].items():
            self._detectors[name].load_state_dict(values)

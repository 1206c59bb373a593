"""The signals on labelled windows: AUROC of each by class, calibration, drift alarms on real shifts, and their cost.

The predictions are those of the count memory, which learns while it reads, as in a run: each class comes after prose.
Every seed has its own places in the texts and its own garbage.
"""

import argparse
import base64
import gzip
import json
import lzma
import os
import random
import re
import statistics
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.record import keep
from livelm.config import SignalsSettings, load_recipe
from livelm.memory import CountMemory, CountMemorySettings
from livelm.run import run_session, start
from livelm.session import Stop
from livelm.telemetry.signals.drift import DriftDetector
from livelm.telemetry.signals.formulas import Measure, Signals
from livelm.telemetry.signals.lz76 import PhraseCounter, complexity
from livelm.telemetry.signals.monitor import WATCHED
from livelm.types import LN_2

DATA = Path(__file__).parents[2] / "shared" / "data"
ORDINARY = ("text", "web", "code", "logs", "scripts")
SHOWN = Signals._fields
N_PREFIX = 48_000
"""Bytes of prose that the memory reads before each class."""


def stretch(name: str, n_bytes: int, chooser: random.Random) -> bytes:
    """That many bytes of a class, from a random place where it is a text."""
    match name:
        case "random":
            return chooser.randbytes(n_bytes)
        case "base64":
            return base64.encodebytes(chooser.randbytes(n_bytes))[:n_bytes]
        case "hex":
            return chooser.randbytes(n_bytes // 2 + 1).hex().encode()[:n_bytes]
        case "digits":
            return bytes(chooser.choices(b"0123456789", k=n_bytes))
        case "deflate":
            return _part(zlib.compress(_text("text") + _text("web"), 9), n_bytes, chooser)
        case "xz":
            return _part(lzma.compress(_text("text") + _text("web")), n_bytes, chooser)
        case "line":
            return (b"%d all work and no play makes it dull\n" % chooser.randrange(10**6) * n_bytes)[:n_bytes]
        case "byte":
            return bytes([chooser.randrange(256)]) * n_bytes
    return _part(_text(name), n_bytes, chooser)


GARBAGE = ("random", "deflate", "xz", "base64", "hex", "digits", "line", "byte")
_texts: dict[str, bytes] = {}


def _text(name: str) -> bytes:
    if name not in _texts:
        _texts[name] = _read(name)
    return _texts[name]


def _read(name: str) -> bytes:
    match name:
        case "text":
            return (DATA / "text/wikitext-2/test.txt").read_bytes()
        case "prose":
            return (DATA / "text/tinyshakespeare/input.txt").read_bytes()
        case "web":
            with gzip.open(DATA / "text/openwebtext-1000/openwebtext-1000.jsonl.gz") as lines:
                return "\n".join(json.loads(line)["text"] for line in islice(lines, 300)).encode()
        case "code":  # of this Python's own library
            files = sorted(Path(os.__file__).parent.glob("*.py"))
            return b"".join(path.read_bytes() for path in files)[:4_000_000]
        case "logs":
            kinds = ("Apache", "BGL", "HDFS", "Hadoop", "Linux", "OpenSSH", "Zookeeper")
            return b"".join((DATA / f"logs/{kind}/{kind}_2k.log").read_bytes()[:150_000] for kind in kinds)
        case "scripts":  # Arabic, Chinese, Greek, Hindi, Japanese, Korean, Russian
            with zipfile.ZipFile(DATA / "text/udhr/udhr-html.zip") as archive:
                names = [n for n in archive.namelist() if re.search("(arb|cmn|ell|hin|jpn|kor|rus).*html$", n)]
                return re.sub(rb"(<[^>]*>|\s)+", b" ", b"".join(map(archive.read, names)))
    raise ValueError(f"there is no class called {name!r}")


def _part(text: bytes, n_bytes: int, chooser: random.Random) -> bytes:
    begin = chooser.randrange(len(text) - n_bytes)
    return text[begin : begin + n_bytes]


def costs(text: bytes) -> NDArray[np.float64]:
    """Nats per byte of a memory that learns while it reads."""
    memory = CountMemory(CountMemorySettings.model_validate({"contexts": "fast"}))
    return np.asarray(memory.score(text), np.float64) * LN_2


def windows(text: bytes, nats: NDArray[np.float64], n_bytes: int) -> Iterator[Signals]:
    """The signals of each full window."""
    measure = Measure()
    for begin in range(0, len(text) - n_bytes + 1, n_bytes):
        yield measure.window(text[begin : begin + n_bytes], nats[begin : begin + n_bytes])


def area(positive: list[float], negative: list[float]) -> float:
    """AUROC: the chance that a value of the first list is above one of the second (Hanley and McNeil 1982)."""
    a, b = np.array(positive)[:, None], np.array(negative)[None, :]
    return float((a > b).mean() + 0.5 * (a == b).mean())


def ancestor(s: Signals) -> float:
    """S of the form that specs give the ancestor, K - K0 + C - C0 - KL with K0, C0 of prose, before its sigmoid."""
    return (s.negentropy - 0.41) + (s.complexity - 0.38) - s.divergence


@cache
def measure_classes(seed: int, n_bytes: int, n_windows: int) -> dict[str, list[Signals]]:
    """The windows of every class, each read after prose."""
    chooser = random.Random(seed)
    found = {}
    for name in (*ORDINARY, *GARBAGE):
        text = stretch("prose", N_PREFIX, chooser) + stretch(name, n_windows * n_bytes, chooser)
        nats = costs(text)
        found[name] = list(windows(text[N_PREFIX:], nats[N_PREFIX:], n_bytes))
    return found


def roc(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """AUROC of each signal: every class of garbage against all that is ordinary; and what is ordinary against text."""
    rows = []
    for n_bytes in arguments.window_bytes:
        seeds = [measure_classes(seed, n_bytes, arguments.windows) for seed in range(arguments.seeds)]
        print(f"\nAUROC, windows of {n_bytes} bytes, {arguments.seeds} seeds (mean, and sd where above 0.01)")
        print(f"{'class':16}" + "".join(f"{name[:21]:>22}" for name in (*SHOWN, "S, ancestor's form")))
        for name in (*GARBAGE, *ORDINARY[1:]):
            others = ORDINARY if name in GARBAGE else ("text",)
            row: dict[str, Any] = {"class": name, "against": "+".join(others), "window_bytes": n_bytes}
            for signal in (*SHOWN, "ancestor"):
                get = ancestor if signal == "ancestor" else lambda s, signal=signal: getattr(s, signal)
                areas = [area([*map(get, f[name])], [get(s) for o in others for s in f[o]]) for f in seeds]
                sd = statistics.stdev(areas) if len(areas) > 1 else 0.0
                row |= {signal: round(statistics.mean(areas), 3), f"{signal}_sd": round(sd, 3)}
            rows.append(row)
            sds = {s: row[f"{s}_sd"] for s in (*SHOWN, "ancestor")}
            cells = (f"{row[s]:.3f}" + (f" ±{sd:.2f}" if sd > 0.01 else "") for s, sd in sds.items())
            print(f"{name:16}" + "".join(f"{cell:>22}" for cell in cells))
        print("false alarms and hits of the gate's defaults, share of windows at or above gate_close:")
        close = SignalsSettings().gate_close
        shares = {n: statistics.mean(s.complexity >= close for f in seeds for s in f[n]) for n in (*ORDINARY, *GARBAGE)}
        print("  " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
        rows.append({"window_bytes": n_bytes, "share_at_gate_close": shares})
    return rows


def calibrate(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Mean and range of every signal by class; and of K and C over bits."""
    rows = []
    n_bytes = arguments.window_bytes[0]
    seeds = [measure_classes(seed, n_bytes, arguments.windows) for seed in range(arguments.seeds)]
    print(f"\nmean (5th to 95th percentile) over windows of {n_bytes} bytes")
    for name in (*ORDINARY, *GARBAGE):
        row: dict[str, Any] = {"class": name, "window_bytes": n_bytes}
        for signal in SHOWN:
            values = [getattr(s, signal) for found in seeds for s in found[name]]
            row[signal] = [round(float(v), 3) for v in (np.mean(values), *np.quantile(values, (0.05, 0.95)))]
        rows.append(row)
        cells = (f"{s[:12]} {row[s][0]:.2f} ({row[s][1]:.2f} to {row[s][2]:.2f})" for s in SHOWN)
        print(f"{name:9}" + "  ".join(cells))
    chooser, counter = random.Random(0), PhraseCounter(2)
    print(f"over the bits of the same windows ({8 * n_bytes} bits)")
    for name in (*ORDINARY, *GARBAGE):
        bits = np.unpackbits(np.frombuffer(stretch(name, n_bytes, chooser), np.uint8))
        ones = min(max(float(bits.mean()), 1e-12), 1 - 1e-12)
        k = 1 + ones * np.log2(ones) + (1 - ones) * np.log2(1 - ones)
        rows.append({"class": name, "bits": True, "negentropy": round(float(k), 3),
                     "complexity": round(complexity(counter.count(bits), len(bits), 2), 3)})  # fmt: skip
        print(f"{name:9}K {rows[-1]['negentropy']:.3f}  C {rows[-1]['complexity']:.3f}")
    return rows


def drift(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Delays of the alarms at real shifts, and how many come without one."""
    rows = []
    n_bytes, defaults = arguments.window_bytes[0], SignalsSettings()
    streams = {"prose only": ["prose"], "text only": ["text"], "prose, code, logs": ["prose", "code", "logs"],
               "logs, prose, web": ["logs", "prose", "web"], "text, scripts": ["text", "scripts"]}  # fmt: skip
    for title, parts in streams.items():
        for seed in range(arguments.seeds):
            chooser, n = random.Random(seed), arguments.windows * n_bytes * 3 // len(parts)
            text = b"".join(stretch(name, n, chooser) for name in parts)
            begun, shifts = windows(text, costs(text), n_bytes), [i * n // n_bytes for i in range(1, len(parts))]
            row = _drifts(list(begun), shifts, defaults)
            rows.append({"stream": title, "seed": seed, "windows": len(text) // n_bytes, **row})
            print(rows[-1], flush=True)
    return rows


def _drifts(found: list[Signals], shifts: list[int], defaults: SignalsSettings) -> dict[str, Any]:
    """By signal: windows from each shift to the alarm (None: not within 20), alarms elsewhere, spikes."""
    limits = defaults.drift, defaults.spike, defaults.burn_in
    delays, elsewhere, spikes = {}, {}, {}
    for name, directions in WATCHED.items():
        detector = DriftDetector(*limits, directions)
        noticed = [(at, a.alarm) for at, s in enumerate(found) for a in detector.take(getattr(s, name))]
        drifts = [at for at, alarm in noticed if alarm == "drift"]
        delays[name] = [next((at - s + 1 for at in drifts if s <= at < s + 20), None) for s in shifts]
        elsewhere[name] = sum(not any(s <= at < s + 20 for s in shifts) for at in drifts)
        spikes[name] = len(noticed) - len(drifts)
    return {"delays": delays, "elsewhere": elsewhere, "spikes": spikes}


class Timed:
    """A monitor whose work is timed where it is done: between updates, with caches full of weights."""

    def __init__(self, monitor: Any) -> None:
        self._monitor, self.seconds = monitor, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._monitor, name)

    def take(self, scored: Any) -> Any:
        begin = time.thread_time()
        records = self._monitor.take(scored)
        self.seconds += time.thread_time() - begin
        return records


def overhead(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Share of the learner's processor time that the monitor takes in a run of `tiny` with updates of 128 tokens."""
    rows = []
    Measure().window(b"compile", np.ones(7))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_bytes(stretch("prose", 100_000, random.Random(0)))
        for n_bytes in arguments.window_bytes:
            changes = ["feed.update_tokens=128", f"signals.window_bytes={n_bytes}", "signals.gate=complexity"]
            changes += ["memory.name=none"]
            recipe = load_recipe(None, "tiny", [*changes, f'source.uris=["{folder}/text"]', "checkpoint.every_s=1e9"])
            session = start(recipe, Path(folder) / str(n_bytes), Stop())
            timed: Any = Timed(session.monitor)
            session.monitor = timed
            begin = time.thread_time()
            run_session(session, [])
            share = timed.seconds / (time.thread_time() - begin - timed.seconds)
            rows.append({"window_bytes": n_bytes, "update_tokens": 128, "per_cent": round(100 * share, 2)})
            rows[-1]["us_per_window"] = round(1e6 * timed.seconds / (100_000 // n_bytes))
            print(rows[-1])
    return rows


def cost(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Processor time of a window, warm, by class."""
    rows, measure, chooser = [], Measure(), random.Random(0)
    for n_bytes in arguments.window_bytes:
        for name in ("text", "random", "line", "digits"):
            text = stretch(name, n_bytes, chooser)
            nats = np.abs(np.random.default_rng(0).normal(1.5, 1.0, n_bytes))
            turns = []
            for _ in range(50):
                begin = time.process_time()
                measure.window(text, nats)
                turns.append(time.process_time() - begin)
            rows.append({"window_bytes": n_bytes, "class": name, "us": round(1e6 * statistics.median(turns[5:]), 1)})
            print(rows[-1])
    return rows


def main() -> None:
    """Parse the command line, measure, print."""
    what = {"roc": roc, "calibrate": calibrate, "drift": drift, "cost": cost, "overhead": overhead}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=list(what), choices=list(what))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=48, help="of each class")
    parser.add_argument("--window-bytes", type=int, nargs="+", default=[1024, 512])
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    rows = [{"measured": name, **row} for name in arguments.what for row in what[name](arguments)]
    if arguments.keep:
        question = "Which signal tells garbage and repetition from text, how soon is drift noticed, what does it cost?"
        keep("signals", question, {"windows": arguments.windows, "seeds": arguments.seeds}, rows)


if __name__ == "__main__":
    main()

"""What simple models and good compressors make of the very same bytes, measured beside a run without slowing it.

Run as a program (`python -m livelm.evaluate.baselines FILE N`) it prints the baselines of the first N bytes of FILE as
one line of JSON. That process must start fast and stay small, so nothing here imports torch.
"""

import json
import lzma
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyppmd

from livelm.errors import LivelmError, RunError

FIRST_BYTES = 64 << 10
"""The shortest prefix a worker measures; the next is twice as long, and so on."""
LAST_BYTES = 64 << 20
"""The longest prefix a worker measures, however much the file holds: xz then needs about 700 MB for a minute."""
PPMD_ORDERS = (8, 16, 32)
PPMD_MEMORY = 256 << 20
"""Bytes of model memory of PPMd; it starts afresh when they are full (after about 20 MB of text)."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """Bits per byte over the first `n_bytes` bytes of a stream; headers of the compressed forms count."""

    n_bytes: int
    uniform: float
    """Every byte costs 8 bits."""
    unigram: float
    """Adaptive order 0: Krichevsky-Trofimov, (count + 1/2) / (seen + 128)."""
    xz: float
    """LZMA at preset 9 extreme, in its `.lzma` form (13 bytes of header, what `xz --format=lzma -9e` writes)."""
    ppmd: float
    """PPMd variant H (7-zip's), best of orders 8, 16 and 32; no header, 5 bytes of coder tail."""

    def record(self, at_s: float) -> dict[str, Any]:
        """As an observation for the journal; `at_s` in active seconds."""
        return {"kind": "baseline", "at_s": at_s, **asdict(self)}


def measure(data: bytes) -> Baselines:
    """Measure every baseline on `data`. Raises RunError if it is empty: bits per byte of nothing has no value."""
    if not data:
        raise RunError("cannot measure baselines of 0 bytes; wait until something was graded")
    n = len(data)
    return Baselines(
        n_bytes=n,
        uniform=8.0,
        unigram=unigram_bits(data) / n,
        xz=8 * _xz_bytes(data) / n,
        ppmd=8 * min(_ppmd_bytes(data, order) for order in PPMD_ORDERS) / n,
    )


def measure_prefix(path: Path, n_bytes: int) -> Baselines:
    """Measure the first `n_bytes` bytes of a file. Raises RunError if it cannot be read or holds less."""
    try:
        with path.open("rb") as file:
            data = file.read(n_bytes)
    except OSError as error:
        raise RunError(f"cannot read {path} to measure baselines: {error.strerror}") from None
    if len(data) < n_bytes:
        raise RunError(f"{path} holds {len(data)} bytes, but baselines of the first {n_bytes} were asked for")
    return measure(data)


def unigram_bits(data: bytes) -> float:
    """Code length of the sequential Krichevsky-Trofimov estimator over 256 symbols, in bits.

    The product of (count + 1/2) / (seen + 128) does not depend on the order of the bytes, so it has a closed form in
    gamma functions. (Krichevsky and Trofimov, 1981, "The performance of universal encoding".)

    >>> unigram_bits(b"a")
    8.0
    """
    nats = math.lgamma(len(data) + 128) - math.lgamma(128)
    for count in Counter(data).values():
        nats -= math.lgamma(count + 0.5) - math.lgamma(0.5)
    return nats / math.log(2)


def unigram_bits_reference(data: bytes) -> float:
    """The slow twin of `unigram_bits`: predict each byte from the counts before it, then count it."""
    counts = [0.5] * 256
    total = 128.0
    bits = 0.0
    for byte in data:
        bits -= math.log2(counts[byte] / total)
        counts[byte] += 1
        total += 1
    return bits


def _xz_bytes(data: bytes) -> int:
    # A window wider than the data finds nothing more and costs 11 times its size in memory.
    window = min(64 << 20, max(4096, 1 << (len(data) - 1).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    coder = lzma.LZMACompressor(lzma.FORMAT_ALONE, filters=filters)
    return sum(len(coder.compress(piece)) for piece in _pieces(data)) + len(coder.flush())


def _ppmd_bytes(data: bytes, order: int) -> int:
    coder = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
    return sum(len(coder.encode(piece)) for piece in _pieces(data)) + len(coder.flush())


def _pieces(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[i : i + _PIECE] for i in range(0, len(data), _PIECE))


class BaselineWorker:
    """Measures ever longer prefixes of a growing file in a child process of the lowest nice priority.

    A child that dies costs its measurement, never the run: the reason waits in `warnings`. Not for several threads.
    """

    def __init__(self, path: Path) -> None:
        """`path`: the file to which the run appends its graded bytes; what `grown` announces must be flushed."""
        self._path = path
        self._child: subprocess.Popen[bytes] | None = None
        self._size = 0  # what the child measures
        self._due = FIRST_BYTES
        self._latest: Baselines | None = None
        self._warnings: list[str] = []

    def grown(self, n_bytes: int) -> None:
        """Say that the file now holds `n_bytes`; starts the next measurement if one is due and none runs."""
        if n_bytes < self._due or self._due > LAST_BYTES or self._child is not None:
            return
        size = min(LAST_BYTES, FIRST_BYTES << (n_bytes // FIRST_BYTES).bit_length() - 1)
        self._due = size * 2
        self._start(size)

    def poll(self) -> Baselines | None:
        """The measurement that has ended since the last call, if any. Never waits."""
        if self._child is None or self._child.poll() is None:
            return None
        return self._collect(timeout_s=1.0)

    def finish(self, n_bytes: int, timeout_s: float = 300.0) -> Baselines | None:
        """Measure the first `n_bytes` (at most `LAST_BYTES`) now, and wait for it no longer than `timeout_s`.

        Returns the newest measurement there is: a shorter one if this one failed, None if there is none at all.
        """
        size = min(n_bytes, LAST_BYTES)
        deadline = time.monotonic() + timeout_s
        if self._child is not None and (self._size == size or self._child.poll() is not None):
            self._collect(max(0.0, deadline - time.monotonic()))
        if size > 0 and (self._latest is None or self._latest.n_bytes != size):
            self.close()  # what it measures is no longer asked for
            self._start(size)
            self._collect(max(0.0, deadline - time.monotonic()))
        return self._latest

    def warnings(self) -> list[str]:
        """What went wrong since the last call, for the journal."""
        taken, self._warnings = self._warnings, []
        return taken

    def close(self) -> None:
        """End the child if one runs; safe to call more than once."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _start(self, size: int) -> None:
        command = [sys.executable, "-m", "livelm.evaluate.baselines", str(self._path), str(size)]
        try:
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,  # Ctrl-C is for the run, which ends the child itself
            )
            self._size = size
        except OSError as error:
            self._warnings.append(f"baselines of the first {size} bytes were not measured: {error}")

    def _collect(self, timeout_s: float) -> Baselines | None:
        if self._child is None:
            return None
        child = self._child
        try:
            out, complaint = child.communicate(timeout=timeout_s)
            self._child = None
            if child.returncode == 0:
                self._latest = Baselines(**json.loads(out))
                return self._latest
            said = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            reason = f"the process ended with {child.returncode}" + (f" ({said})" if said else "")
        except subprocess.TimeoutExpired:
            self.close()
            reason = f"stopped after {timeout_s:.0f} s"
        self._warnings.append(f"baselines of the first {self._size} bytes were not measured: {reason}")
        return None


def _step_back() -> None:
    """Take the least time, and no memory that the run needs; each of these is refused on some machines."""
    # nice 19 is 1.5 % of a busy core. SCHED_IDLE would be less, but there it never ended: 128 KB took more than 30 s
    # (nice 19: 11 s, nice 10: 1.7 s) on a core that a run kept busy, and a run shows no baselines until it has them.
    with suppress(OSError):
        os.nice(19)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with suppress(OSError):  # if memory runs out, this process goes, not the run
        Path("/proc/self/oom_score_adj").write_text("1000")


def _leave_with(parent: int) -> None:
    """End this process when the run that wanted the answer is gone, even by SIGKILL."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(arguments: list[str]) -> int:
    """Print the baselines of FILE's first N bytes as JSON; `arguments` are FILE and N."""
    _step_back()
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    try:
        path, n_bytes = arguments
        sys.stdout.write(json.dumps(asdict(measure_prefix(Path(path), int(n_bytes)))) + "\n")
    except (LivelmError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

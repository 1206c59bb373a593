"""What several suites need: the command line as a user runs it."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from livelm.cli import main


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="of the models that conformance checks")


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels for a card run here too, slowly; read when triton is imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # some tests want deterministic algorithms of a card

torch.set_num_threads(1)  # small models: two threads that wait for one another on a busy machine take ten times as long

TINY = [
    "--threads", "1",
    "--set", "memory.name=none",
    "--set", "model.name=transformer",
    "--set", "model.d_model=16",
    "--set", "model.n_layers=1",
    "--set", "model.n_heads=2",
    "--set", "model.context=32",
    "--set", "model.ngrams=[]",
    "--set", "feed.update_tokens=32",
]  # fmt: skip


class Command:
    """Runs `livelm` in a process of its own; by default it must succeed."""

    tiny = TINY
    """Options that make a run cheap."""
    python = sys.executable

    def __call__(self, *arguments: Any, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "livelm", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=290, check=False, **options)
        assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: Any, **options: Any) -> "subprocess.Popen[str]":
        """Begin and do not wait."""
        command = [sys.executable, "-m", "livelm", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, text=True, **pipes)


@pytest.fixture(scope="session")
def livelm_command() -> Command:
    return Command()


@dataclass(frozen=True)
class Said:
    """What a command wrote, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def livelm_here() -> Callable[..., Said]:
    """The same command line in this process: without the seconds that a new one takes to begin."""

    def call(*arguments: Any, code: int = 0) -> Said:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["livelm", *map(str, arguments)])
                patch.setattr(sys, "stdout", out)
                patch.setattr(sys, "stderr", err)
                with pytest.raises(SystemExit) as left:
                    main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        said = []
        for stream in (out, err):
            stream.flush()
            said.append(stream.buffer.getvalue().decode(errors="replace"))  # type: ignore[attr-defined]
        found = left.value.code if isinstance(left.value.code, int) else 0
        assert found == code, f"{arguments} ended with {found}:\n{said[0]}\n{said[1]}"
        assert "Traceback" not in said[1]
        return Said(found, *said)

    return call


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Real test data beside the repository; a test that needs it is skipped where it is absent."""

    def find(name: str) -> Path:
        path = Path(__file__).parents[2] / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"needs the test data {name}, which is not beside this checkout")
        return path

    return find

"""What several suites need: the command line as a user runs it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = [
    "--threads", "1",
    "--set", "model.name=transformer",
    "--set", "model.d_model=16",
    "--set", "model.n_layers=1",
    "--set", "model.n_heads=2",
    "--set", "model.context=32",
    "--set", "feed.update_tokens=32",
]  # fmt: skip


class Command:
    """Runs `livelm` in a process of its own; by default it must succeed."""

    tiny = TINY
    """Options that make a run cheap."""

    def __call__(self, *arguments: Any, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "livelm", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, **options)
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


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Real test data beside the repository; a test that needs it is skipped where it is absent."""

    def find(name: str) -> Path:
        path = Path(__file__).parents[2] / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"needs the test data {name}, which is not beside this checkout")
        return path

    return find

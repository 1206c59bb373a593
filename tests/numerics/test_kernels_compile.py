"""What is written for a card compiles for one, on a machine without: types, shared memory, and when it waits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels for CUDA need Triton")


@pytest.mark.timeout(240)
def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # one that two runs share loses files
    command = [sys.executable, "-m", "tests.numerics.compile_kernels"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 20
    assert max(one["shared_bytes"] for one in found.values()) <= 227 << 10  # what a program on Hopper can have
    alone = {name for name, one in found.items() if not one["waits"]}
    assert {name.split()[0] for name in alone} == {"_walk", "_add_up", "_send_back", "teach"}
    assert not {name for name, one in found.items() if one["too_early"]}

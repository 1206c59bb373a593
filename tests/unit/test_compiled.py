"""Whoever waits for a compilation is told so, once, and nobody else is."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from numba.core.caching import FunctionCache

from livelm.compiled import compiled, tell_compiling


def one_more(n: int) -> int:
    return n + 1


def one_less(n: int) -> int:
    return n - 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where machine code is kept, still empty."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    return tmp_path


def test_it_is_told_once_and_before_anything_is_compiled(folder: Path) -> None:
    told: list[Path | None] = []

    def listen(where: Path | None) -> None:
        assert not list(folder.rglob("*.nbc"))
        told.append(where)

    tell_compiling(listen)
    assert (compiled(one_more)(1), compiled(one_less)(1)) == (2, 0)
    assert told == [next(folder.rglob("*.nbc")).parent]


def test_what_was_kept_is_loaded_without_a_word(folder: Path) -> None:
    compiled(one_more)(1)
    told: list[Path | None] = []
    tell_compiling(told.append)
    assert compiled(one_more)(1) == 2  # as another process would
    assert not told
    assert compiled(one_more)(1.0) == 2.0  # of other types it must be compiled
    assert len(told) == 1


def test_it_is_told_that_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FunctionCache._impl_class, "_locator_classes", [])
    told: list[Path | None] = []
    tell_compiling(told.append)
    assert (compiled(one_more)(1), compiled(one_less)(1)) == (2, 0)
    assert told == [None]


def test_every_command_says_it_on_the_error_stream(
    folder: Path, livelm_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    livelm_here("doctor")
    compiled(one_more)(1)
    out, err = capsys.readouterr()
    assert (
        err
        == "livelm: compiling for this processor, which may take a minute; once for each version of livelm and numba\n"
    )
    assert not out


@pytest.mark.slow
def test_a_first_run_says_it_and_a_second_does_not(tmp_path: Path, livelm_command: Any) -> None:
    """By torch but for head and optimizer, which compile in seconds."""
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("some text to learn from\n" * 50)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    by_torch = ["--set", "model.gate=true", "--for", "300B"]
    first = livelm_command("run", text, "--out", run, "--json", *livelm_command.tiny, *by_torch, env=environment)
    assert first.stderr.count("livelm: compiling") == 1
    assert all(json.loads(line) for line in first.stdout.splitlines())
    assert "compiling" not in livelm_command("resume", run, "--for", "300B", env=environment).stderr

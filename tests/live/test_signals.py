"""Real processes: signals, pipes that stall or break, two at once, and files that change while they are followed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 60

pytestmark = pytest.mark.slow


def until(true: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait for something that other processes do; never longer than a broken test may last."""
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, "it never happened"
        assert process is None or process.poll() is None, f"the process ended early:\n{process.communicate()}"
        time.sleep(0.02)


def journal(run: Path) -> list[dict[str, Any]]:
    """What a journal holds so far; a line that is being written is left out."""
    path = run / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def n_bytes(run: Path) -> int:
    return sum(record["n_bytes"] for record in journal(run) if record["kind"] == "scored")


def options(run: Path, command: Any, *more: str) -> list[Any]:
    return ["--out", run, *command.tiny, *more]


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """More text than a test has time for."""
    path = tmp_path / "endless.txt"
    path.write_text("".join(f"line {i} of a text that goes on and on\n" for i in range(100_000)))
    return path


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_saves_and_leaves_a_run_that_goes_on(
    number: int, reason: str, endless: Path, tmp_path: Path, livelm_command: Any, livelm_here: Any
) -> None:
    run = tmp_path / "run"
    process = livelm_command.start("run", endless, *options(run, livelm_command), start_new_session=True)
    until(lambda: n_bytes(run), process)
    os.killpg(process.pid, number)  # as a terminal does: the whole group gets it
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "livelm resume" in err
    assert f"stopped: {reason}" in out
    records = journal(run)
    assert records[-1]["kind"] == "stopped"
    assert [r["batch"] for r in records if r["kind"] == "saved"][-1] == sum(r["kind"] == "scored" for r in records)
    before = n_bytes(run)
    livelm_here("resume", run, "--for", "500B")
    assert n_bytes(run) >= before + 500
    assert (run / "graded.bytes").read_bytes() == endless.read_bytes()[: n_bytes(run)]


def test_a_second_signal_leaves_at_once_and_what_was_saved_stays(
    endless: Path, tmp_path: Path, livelm_command: Any, livelm_here: Any
) -> None:
    run = tmp_path / "run"
    # the first signal waits for the batch at hand, which takes far longer than this test has
    slow = ["--set", "feed.update_tokens=4096", "--set", "model.context=8192", "--set", "model.n_layers=24"]
    process = livelm_command.start("run", endless, *options(run, livelm_command, *slow))
    until(lambda: (run / "checkpoints" / "00000000").exists(), process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGINT
    assert "no complete checkpoint" not in livelm_here("generate", run, "--bytes", "1").err


def test_a_followed_file_survives_kill_rotation_and_truncation(tmp_path: Path, livelm_command: Any) -> None:
    log, run = tmp_path / "app.log", tmp_path / "run"
    written: list[bytes] = []

    def write(text: str, mode: str = "ab") -> None:
        with log.open(mode) as file:
            file.write(text.encode())
        written.append(text.encode())

    def stored(text: str, process: "subprocess.Popen[str]") -> None:
        until(lambda: text.encode() in b"".join(p.read_bytes() for p in sorted((run / "spool").glob("*"))), process)

    write("first generation, line\n" * 10)
    more = ["--set", "checkpoint.every_s=0.05"]
    process = livelm_command.start("run", f"tail:{log}", *options(run, livelm_command, *more))
    until(lambda: n_bytes(run), process)
    time.sleep(0.1)  # a checkpoint is due, and is taken after the next update
    write("appended while it runs\n" * 10)
    stored("appended while it runs\n" * 10, process)
    until(lambda: any(r["kind"] == "saved" and r["batch"] for r in journal(run)), process)
    process.kill()
    process.communicate()

    write("appended while nobody looks\n" * 10)
    log.rename(tmp_path / "app.log.1")
    write("second generation\n" * 20, "wb")
    process = livelm_command.start("resume", run)
    stored("second generation\n" * 20, process)
    write("truncated, third\n" * 5, "wb")
    stored("truncated, third\n" * 5, process)
    process.kill()
    process.communicate()

    expected = b"".join(written)
    write("x" * 64)  # so that the last update of what counts is full
    process = livelm_command.start("resume", run)
    until(lambda: n_bytes(run) >= len(expected), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=LIMIT_S) == 0
    process.communicate()
    found = (run / "graded.bytes").read_bytes()
    assert len(found) >= len(expected)
    assert (expected + b"x" * 64).startswith(found)


def test_a_pipe_that_stalls_is_waited_for(tmp_path: Path, livelm_command: Any) -> None:
    run = tmp_path / "run"
    process = livelm_command.start("run", "-", *options(run, livelm_command), stdin=subprocess.PIPE)
    first, second = "before the pause " * 20, "and after it " * 20
    process.stdin.write(first)
    process.stdin.flush()
    until(lambda: n_bytes(run) >= len(first) - 32, process)
    time.sleep(0.5)
    _, err = process.communicate(second, timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert (run / "graded.bytes").read_bytes() == (first + second).encode()


def test_a_pipe_that_stalls_can_be_left(tmp_path: Path, livelm_command: Any) -> None:
    run = tmp_path / "run"
    process = livelm_command.start("run", "-", *options(run, livelm_command), stdin=subprocess.PIPE)
    process.stdin.write("only this " * 20)
    process.stdin.flush()
    until(lambda: n_bytes(run) >= 160, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=LIMIT_S) == 0
    process.stdin.close()
    livelm_command("resume", run, input="and the rest\n")
    assert (run / "graded.bytes").read_bytes() == b"only this " * 20 + b"and the rest\n"


def test_a_run_is_used_by_one_process_and_shown_while_it_runs(
    endless: Path, tmp_path: Path, livelm_command: Any, livelm_here: Any
) -> None:
    run = tmp_path / "run"
    process = livelm_command.start("run", endless, *options(run, livelm_command, "--set", "checkpoint.every_s=1000"))
    until(lambda: n_bytes(run), process)  # long before the next checkpoint
    said = livelm_here("resume", run, code=4)
    assert "is in use" in said.err
    assert "holds a run already" in livelm_here("run", endless, *options(run, livelm_command), code=4).err
    shown = json.loads(livelm_here("show", run, "--json").out)
    assert 0 < shown["n_bytes"] < endless.stat().st_size
    assert shown["n_bytes"] <= n_bytes(run)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=LIMIT_S) == 0
    process.communicate()


@pytest.mark.parametrize("more", [["--json"], []], ids=["json", "plain"])
def test_a_run_whose_reader_goes_away_saves_and_ends(
    more: list[str], endless: Path, tmp_path: Path, livelm_command: Any, livelm_here: Any
) -> None:
    run = tmp_path / "run"
    process = livelm_command.start("run", endless, *options(run, livelm_command), *more)
    assert process.stdout.readline()
    process.stdout.close()
    if not more:
        process.send_signal(signal.SIGINT)  # the plain view writes its next line only after ten seconds
    err = process.stderr.read()
    assert process.wait(timeout=LIMIT_S) in (0, 1, 141)
    process.stderr.close()
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert journal(run)[-1]["reason"] in ("nobody reads the output any more", "interrupted")
    livelm_here("resume", run, "--for", "200B")


def test_every_line_of_json_of_a_run_is_a_record_of_its_journal(
    endless: Path, tmp_path: Path, livelm_command: Any, livelm_here: Any
) -> None:
    run = tmp_path / "run"
    said = livelm_here("run", endless, *options(run, livelm_command), "--for", "1KB", "--json")
    assert [json.loads(line) for line in said.out.splitlines()] == journal(run)

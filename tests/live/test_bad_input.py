"""Bad input gets a clear error with its exit code, and nothing that was saved is lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from livelm.learn import list_checkpoints

TEXT = "".join(f"line {i} of a text that goes on and on\n" for i in range(60))
Call = Callable[..., Any]

pytestmark = pytest.mark.slow


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def begun(text: Path, tmp_path: Path, livelm_here: Call, livelm_command: Any) -> Path:
    """A run that stopped in the middle of its stream, with two checkpoints."""
    run = tmp_path / "run"
    livelm_here("run", text, "--out", run, "--for", "600B", *livelm_command.tiny)
    livelm_here("resume", run, "--for", "600B")
    assert len(list_checkpoints(run / "checkpoints")) == 2
    return run


def facts(run: Path) -> list[bytes]:
    lines = (run / "journal.jsonl").read_bytes().splitlines()
    return [line for line in lines if b'"seq":' in line[:40]][1:]


def edit_first_record(run: Path, **values: Any) -> None:
    first, _, rest = (run / "journal.jsonl").read_bytes().partition(b"\n")
    (run / "journal.jsonl").write_bytes(json.dumps(json.loads(first) | values).encode() + b"\n" + rest)


def test_a_missing_file_is_named_with_the_nearest_name(text: Path, tmp_path: Path, livelm_here: Call) -> None:
    said = livelm_here("run", tmp_path / "texd.txt", "--out", tmp_path / "run", code=3)
    assert "there is no file or directory" in said.err
    assert "Did you mean" in said.err
    assert "text.txt" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(text: Path, tmp_path: Path, livelm_here: Call) -> None:
    text.chmod(0)
    assert f"{str(text)!r} cannot be read" in livelm_here("run", text, "--out", tmp_path / "run", code=3).err


def test_a_file_that_refuses_to_open_is_named(
    text: Path, tmp_path: Path, livelm_here: Call, livelm_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == text:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    said = livelm_here("run", text, "--out", tmp_path / "run", *livelm_command.tiny, code=3)
    assert f"{str(text)!r} cannot be read: Permission denied" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["empty file", "empty directory", "directory of empty files"])
def test_a_stream_without_a_byte_leaves_no_run_behind(
    kind: str, tmp_path: Path, livelm_here: Call, livelm_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    if kind == "empty file":
        source.touch()
    else:
        source.mkdir()
    if kind == "directory of empty files":
        (source / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert "empty stream" in livelm_here("run", source, *livelm_command.tiny, code=3).err
    assert [p.name for p in tmp_path.iterdir()] == ["source"], "the default folder runs/ must go too"


def test_standard_input_without_a_byte_leaves_no_run_behind(tmp_path: Path, livelm_command: Any) -> None:
    said = livelm_command("run", "-", *livelm_command.tiny, "--out", tmp_path / "run", code=3, stdin=subprocess.DEVNULL)
    assert "standard input ended without a single byte" in said.stderr
    assert "Traceback" not in said.stderr
    assert not (tmp_path / "run").exists()


def test_a_directory_of_one_own_is_kept_when_the_stream_is_empty(
    tmp_path: Path, livelm_here: Call, livelm_command: Any
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep me")
    livelm_here("run", tmp_path / "empty.txt", "--out", tmp_path / "mine", *livelm_command.tiny, code=3)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("[model]\nname = 'transformer'\nd_modle = 8\n", ["'model.d_modle'", "Did you mean 'd_model'?"]),
        ("[feed]\nlane = 2\n", ["'feed.lane'", "Did you mean 'lanes'?"]),
        ("[feed]\nlanes = 'two'\n", ["'feed.lanes'", "'two'", "integer"]),
        ("[model]\nname = 'transformr'\n", ["'transformr'", "Did you mean 'transformer'?"]),
        ("[model]\nname = 'transformer'\nd_model = 30\nn_heads = 4\n", ["d_model=30", "n_heads=4"]),
        ("[schedule]\nname = 'cooldown'\n", ["'cooldown'", "budget", "--for"]),
        ("[model\n", ["cannot be read", "line 1"]),
    ],
)
def test_a_wrong_recipe_is_explained(
    recipe: str, words: list[str], text: Path, tmp_path: Path, livelm_here: Call
) -> None:
    (tmp_path / "r.toml").write_text(recipe)
    said = livelm_here("run", tmp_path / "r.toml", text, "--out", tmp_path / "run", code=2)
    assert all(word in said.err for word in words), said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], ["No such command 'bogus'"]),
        (["run", "TEXT", "--bogus"], ["No such option"]),
        (["run"], ["Missing argument"]),
        (["run", "nowhere.toml", "TEXT"], ["there is no recipe 'nowhere.toml'"]),
        (["run", "TEXT", "--for", "soon"], ["'soon'", "60s"]),
        (["run", "TEXT", "--for", "0s"], ["'0s'"]),
        (["run", "TEXT", "--for", f"{10**400}h"], ["--for is"]),
        (["run", "TEXT", "--size", "huge"], ["'huge'", "tiny"]),
        (["run", "TEXT", "--set", "lanes"], ["section.key=value"]),
        (["run", "TEXT", "--set", "feed.lanes=many"], ["'feed.lanes'", "'many'"]),
        (["run", "TEXT", "--seed", str(10**30)], ["run.seed"]),
        (["run", "TEXT", "--threads", "90000"], ["run.threads"]),
        (["run", "gopher:somewhere"], ["there is no source 'gopher'", "tail:PATH"]),
        (["run", "TEXT", "-"], ["cannot be combined"]),
        (["run", "na\udcffme.txt"], ["not valid UTF-8"]),
        (["compare", "TEXT"], ["at least two"]),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], words: list[str], text: Path, tmp_path: Path, livelm_here: Call, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    said = livelm_here(*[str(text) if a == "TEXT" else a for a in arguments], code=2)
    assert all(word in said.err for word in words), said.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["show", "generate", "resume", "eval", "fork", "compare"])
def test_what_is_no_run_is_refused(verb: str, text: Path, tmp_path: Path, livelm_here: Call) -> None:
    rest = {"eval": [text], "fork": [text], "compare": [tmp_path]}.get(verb, [])
    assert "is not a run directory" in livelm_here(verb, tmp_path, *rest, code=4).err


def test_a_run_is_not_begun_over_another(begun: Path, text: Path, livelm_here: Call, livelm_command: Any) -> None:
    before = (begun / "journal.jsonl").read_bytes()
    said = livelm_here("run", text, "--out", begun, *livelm_command.tiny, code=4)
    assert "holds a run already" in said.err
    assert "livelm resume" in said.err
    assert (begun / "journal.jsonl").read_bytes() == before


def test_a_run_directory_that_is_a_file_is_named(text: Path, livelm_here: Call, livelm_command: Any) -> None:
    assert "cannot be written" in livelm_here("run", text, "--out", text, *livelm_command.tiny, code=5).err
    assert text.read_text() == TEXT


def test_a_checkpoint_of_another_run_is_refused(begun: Path, text: Path, tmp_path: Path, livelm_here: Call) -> None:
    livelm_here("fork", begun, text, "--out", tmp_path / "other", "--for", "900B")
    mine, theirs = (list_checkpoints(r / "checkpoints")[-1] for r in (begun, tmp_path / "other"))
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    for verb in ("resume", "generate"):
        assert "belongs to another run" in livelm_here(verb, begun, code=4).err


def test_a_newer_checkpoint_is_refused(begun: Path, livelm_here: Call) -> None:
    manifest = list_checkpoints(begun / "checkpoints")[-1] / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))
    said = livelm_here("resume", begun, code=4)
    assert "schema 99" in said.err
    assert "Upgrade" in said.err


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_flipped_byte_is_found_and_the_checkpoint_before_goes_on(
    name: str, begun: Path, text: Path, tmp_path: Path, livelm_here: Call, livelm_command: Any
) -> None:
    newest = list_checkpoints(begun / "checkpoints")[-1]
    damaged = bytearray((newest / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / name).write_bytes(damaged)
    said = livelm_here("resume", begun, code=4)
    assert str(newest) in said.err
    shutil.rmtree(newest)  # what the message says
    livelm_here("resume", begun, "--for", "1MB")
    livelm_here("run", text, "--out", tmp_path / "whole", *livelm_command.tiny)
    assert facts(begun) == facts(tmp_path / "whole")


def test_what_a_user_puts_beside_the_checkpoints_does_no_harm(begun: Path, livelm_here: Call) -> None:
    newest = list_checkpoints(begun / "checkpoints")[-1]
    shutil.copytree(newest, newest.with_name(f"{newest.name}.bak"))
    livelm_here("resume", begun, "--for", "100B")


def test_a_run_without_a_checkpoint_says_what_to_do(begun: Path, livelm_here: Call) -> None:
    shutil.rmtree(begun / "checkpoints")
    said = livelm_here("resume", begun, code=4)
    assert "no complete checkpoint" in said.err
    assert "start the run again" in said.err


def test_a_newer_journal_is_refused(begun: Path, livelm_here: Call) -> None:
    edit_first_record(begun, schema=99)
    for verb in ("show", "resume"):
        assert "schema 99" in livelm_here(verb, begun, code=4).err


@pytest.mark.parametrize("foreign", [b"", b"hello\n", b"[1]\n", b'{"kind": "run", "schema": "x"}\n', b"\x00\xff\n"])
def test_a_foreign_file_is_no_journal(foreign: bytes, begun: Path, livelm_here: Call) -> None:
    (begun / "journal.jsonl").write_bytes(foreign)
    for verb in ("show", "resume"):
        assert "it is not a journal" in livelm_here(verb, begun, code=4).err


def test_a_journal_that_was_cut_is_refused(begun: Path, livelm_here: Call) -> None:
    journal = begun / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:3000])
    said = livelm_here("resume", begun, code=4)
    assert "has 3000 bytes, but the checkpoint was taken after" in said.err


@pytest.mark.parametrize(
    "stream",
    [
        TEXT.encode() + "é".encode()[:1],
        TEXT.encode() + "🙂".encode()[:3],
        b"\x00" * 1000,
        TEXT.encode() + b"\x00\x00" + TEXT.encode(),
        bytes(range(256)) * 4,
        b"x",
    ],
    ids=["half an accent", "half an emoji", "NUL only", "NUL inside", "every byte", "one byte"],
)
def test_any_bytes_are_graded_as_they_are(
    stream: bytes, tmp_path: Path, livelm_here: Call, livelm_command: Any
) -> None:
    (tmp_path / "stream").write_bytes(stream)
    livelm_here("run", tmp_path / "stream", "--out", tmp_path / "run", *livelm_command.tiny)
    assert (tmp_path / "run" / "graded.bytes").read_bytes() == stream
    assert json.loads(livelm_here("show", tmp_path / "run", "--json").out)["n_bytes"] == len(stream)


def test_a_line_of_a_gigabyte_takes_no_memory(tmp_path: Path, livelm_command: Any) -> None:
    with (tmp_path / "long.txt").open("wb") as file:
        file.truncate(1 << 30)  # sparse: one line of NULs that takes no room
    run = tmp_path / "run"
    code = (
        "import resource, sys; from livelm.cli import main; sys.argv[0] = 'livelm'\n"
        "import atexit; atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
        "main()"
    )
    options = ["--out", run, "--for", "2KB", *livelm_command.tiny]
    small = tmp_path / "small.txt"
    small.write_bytes(bytes(4096))
    peaks = []
    for path in (small, tmp_path / "long.txt"):
        shutil.rmtree(run, ignore_errors=True)
        command = [livelm_command.python, "-c", code, "run", path, *options]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100, check=True)
        peaks.append(int(done.stdout.split()[-1]) << 10)
    assert peaks[1] - peaks[0] < 64 << 20


def refuse_beyond(limit: int) -> Callable[[], None]:
    """Files may not grow beyond `limit` bytes: what a full disk does, for anybody and everywhere."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_disk_that_refuses_stops_the_run_with_its_last_checkpoint_intact(
    tmp_path: Path, livelm_command: Any, livelm_here: Call
) -> None:
    stream = tmp_path / "stream.txt"
    stream.write_text(TEXT * 10)
    options = [*livelm_command.tiny, "--set", "checkpoint.every_s=0"]
    run = tmp_path / "run"
    said = livelm_command("run", stream, "--out", run, *options, code=5, preexec_fn=refuse_beyond(140_000))
    assert "Traceback" not in said.stderr
    assert "cannot be written" in said.stderr
    assert "make room" in said.stderr
    livelm_here("resume", run, "--for", "1KB")
    done = json.loads(livelm_here("show", run, "--json").out)["n_bytes"]
    assert (run / "graded.bytes").read_bytes() == stream.read_bytes()[:done]
    livelm_here("run", stream, "--out", tmp_path / "whole", *options, "--for", f"{done}B")
    assert facts(run) == facts(tmp_path / "whole")


def test_a_disk_that_refuses_the_very_first_checkpoint_leaves_nothing(
    text: Path, tmp_path: Path, livelm_command: Any
) -> None:
    said = livelm_command(
        "run", text, "--out", tmp_path / "run", *livelm_command.tiny, code=5, preexec_fn=refuse_beyond(20_000)
    )
    assert "Traceback" not in said.stderr
    assert not (tmp_path / "run").exists(), "a run that cannot be resumed must not stand in the way of the next"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "livelm-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    held = [file for fd in Path("/proc/self/fd").iterdir() if str(disk) in (file := os.path.realpath(fd))]
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert not held, "a run that failed must let go of its files"


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    small_disk: Path, tmp_path: Path, livelm_command: Any, livelm_here: Call
) -> None:
    stream = tmp_path / "stream.txt"
    stream.write_text(TEXT * 20)
    ballast, run = small_disk / "ballast", small_disk / "run"
    ballast.write_bytes(bytes(2_200_000))
    options = [*livelm_command.tiny, "--set", "checkpoint.every_s=0"]
    said = livelm_here("run", stream, "--out", run, *options, code=5)
    assert "cannot be written" in said.err
    assert "make room" in said.err
    assert len(list_checkpoints(run / "checkpoints")) >= 1
    said = livelm_here("resume", run, "--for", "100KB", code=5)
    ballast.unlink()
    livelm_here("resume", run, "--for", "1KB")
    done = json.loads(livelm_here("show", run, "--json").out)["n_bytes"]
    assert (run / "graded.bytes").read_bytes() == stream.read_bytes()[:done]
    livelm_here("run", stream, "--out", tmp_path / "whole", *options, "--for", f"{done}B")
    assert facts(run) == facts(tmp_path / "whole")


def test_a_model_that_cannot_fit_is_refused_before_it_is_built(text: Path, livelm_here: Call) -> None:
    said = livelm_here("run", text, "--set", "model.d_model=10000000", "--set", "model.n_heads=1000", code=2)
    assert "parameters and needs" in said.err

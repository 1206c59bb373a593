"""Watching as a user does: files that grow, pipes, receivers that misbehave, kills, and the same command again."""

import http.server
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from livelm.watch import webhook
from livelm.watch.webhook import MAX_WAITING, Webhook

LIMIT_S = 60
PLANTED = "kernel panic: not syncing, attempted to kill init"

pytestmark = pytest.mark.slow


def until(true: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait for something that others do; never longer than a broken test may last."""
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, "it never happened"
        assert process is None or process.poll() is None, f"the process ended early:\n{process.communicate()}"
        time.sleep(0.02)


def usual(n: int, first: int = 0) -> str:
    return "".join(
        f"{i:06d} worker {i % 7} served page {i * 37 % 101} in {i * 13 % 57} ms\n" for i in range(first, first + n)
    )


class Receiver:
    """A web server that answers as it is told, and remembers what it was sent."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.got: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, json.loads(body)))
                answer = outer.answers.pop(0) if outer.answers else 200
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=x"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_growing_file_is_watched_and_a_surprise_is_sent_at_once(
    tmp_path: Path, livelm_command: Any, receiver: Receiver
) -> None:
    log = tmp_path / "app.log"
    log.write_text(usual(500))
    process = livelm_command.start("watch", f"tail:{log}", "--json", "--webhook", receiver.url, start_new_session=True)
    time.sleep(1.0)
    with log.open("a") as file:
        file.write(usual(300, first=500) + PLANTED[:10])
        file.flush()
        time.sleep(0.3)
        assert not [r for _, r in receiver.got if "kernel" in r.get("text", "")], "half a line is not scored"
        file.write(PLANTED[10:] + "\n")
    until(lambda: [r for _, r in receiver.got if r.get("text") == PLANTED], process)
    path, record = next((path, r) for path, r in receiver.got if r.get("text") == PLANTED)
    assert path == "/hook?token=x"
    assert record["kind"] == "surprise"
    assert (record["id"], record["line"]) == ("app.log@0", 801)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    records = [json.loads(line) for line in out.splitlines()]
    assert [r for r in records if r.get("text") == PLANTED] == [record]
    assert records[-1]["kind"] == "watched"
    assert records[-1]["reason"] == "interrupted"
    assert records[-1]["documents"] == 801


def test_standard_input_is_shown_for_people_with_nothing_a_terminal_would_obey(livelm_command: Any) -> None:
    text = usual(600) + "\x1b[2Jkernel \u202e panic happened\n" + usual(50, first=600)
    done = livelm_command("watch", "-", input=text)
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "\\x1b[2Jkernel" in done.stdout
    assert "source ended: 651 documents" in done.stdout
    assert "rare, in bits:" in done.stdout


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "surprises.jsonl").read_bytes().splitlines()]


def test_kills_and_stops_leave_the_records_of_never_stopping(
    tmp_path: Path, livelm_command: Any, livelm_here: Any
) -> None:
    log = tmp_path / "a.log"
    lines = usual(6000).splitlines(keepends=True)
    for at in range(150, 6000, 333):
        lines[at] = f"{at:06d} odd thing number {at} from {at * 7} with {'x' * (at % 50)}\n"
    log.write_text("".join(lines))
    asked = ["--rate", "0.005", "--set", "checkpoint.every_s=0.2"]
    livelm_here("watch", log, *asked, "--out", tmp_path / "whole")
    expected = records_of(tmp_path / "whole")
    assert len(expected) > 10
    run = tmp_path / "stopped"
    for stop in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        before = len(list((run / "checkpoints").glob("[0-9]*"))) and max(
            int(p.name) for p in (run / "checkpoints").glob("[0-9]*")
        )
        process = livelm_command.start("watch", log, *asked, "--out", run, start_new_session=True)
        until(lambda: process.poll() is not None or any(  # noqa: B023
            int(p.name) > before for p in (run / "checkpoints").glob("[0-9]*")))  # fmt: skip # noqa: B023
        if process.poll() is None:
            os.killpg(process.pid, stop)
        process.communicate(timeout=LIMIT_S)
    livelm_here("watch", log, *asked, "--out", run, "--for", "20KB")
    livelm_here("watch", log, *asked, "--out", run)
    assert records_of(run) == expected


def test_a_pipe_goes_on_through_the_spool(tmp_path: Path, livelm_command: Any) -> None:
    text = usual(1500)
    whole = livelm_command("watch", "-", "--rate", "0.02", "--out", tmp_path / "whole", input=text)
    assert whole.returncode == 0
    run = tmp_path / "cut"
    livelm_command("watch", "-", "--rate", "0.02", "--out", run, "--for", "10KB", input=text)
    livelm_command("watch", "-", "--rate", "0.02", "--out", run, input="")
    assert records_of(run) == records_of(tmp_path / "whole")


def test_a_directory_belongs_to_one_command(tmp_path: Path, livelm_here: Any) -> None:
    log = tmp_path / "a.log"
    log.write_text(usual(300))
    run = tmp_path / "run"
    livelm_here("watch", log, "--out", run)
    other = livelm_here("watch", log, "--out", run, "--rate", "0.5", code=4)
    assert "rate was 0.001 and is 0.5" in other.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "something else" in livelm_here("watch", log, "--out", tmp_path / "full", code=4).err
    (run / "watch.json").write_text("{")
    assert "damaged" in livelm_here("watch", log, "--out", run, code=4).err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.log"], 3, "nowhere.log"),
        (["empty.log"], 3, "not one byte"),
        (["a.log", "--rate", "2"], 2, "rate"),
        (["a.log", "--group-by", "("], 2, "not a regular expression"),
        (["a.log", "--by", "word"], 2, "by"),
        (["a.log", "--webhook", "nothing"], 2, "--webhook"),
        (["a.log", "--for", "soon"], 2, "--for"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: list[str], code: int, said: str, tmp_path: Path, livelm_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.log").write_text(usual(10))
    (tmp_path / "empty.log").write_bytes(b"")
    assert said in livelm_here("watch", *arguments, code=code).err


def test_a_reader_that_leaves_ends_the_watch(tmp_path: Path, livelm_command: Any) -> None:
    (tmp_path / "a.log").write_text(usual(4000))
    process = livelm_command.start("watch", tmp_path / "a.log", "--rate", "1", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=LIMIT_S) in (0, 141)
    assert "Traceback" not in (process.stderr.read() if process.stderr else "")


# the webhook by itself


def test_failures_are_tried_again_and_refusals_and_redirects_are_not(receiver: Receiver) -> None:
    receiver.answers = [500, 429, 200, 302, 404, 200]
    hook = Webhook(receiver.url, retries_s=(0.01, 0.01))
    for number in range(4):
        hook.take({"kind": "surprise", "n": number})
    hook.close()
    assert [record["n"] for _, record in receiver.got] == [0, 0, 0, 1, 2, 3]
    assert {path for path, _ in receiver.got} == {"/hook?token=x"}, "nobody went elsewhere"
    assert (hook.delivered, hook.dropped) == (2, 2)
    assert "404" in str(hook.trouble)


@pytest.mark.alone
def test_a_receiver_that_drips_or_hangs_holds_nothing_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "DEADLINE_S", 0.5)
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.4)
    ended = threading.Event()

    def drip(handler: Any) -> None:
        try:
            for byte in b"HTTP/1.1 200 OK" + b" " * 1000:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            ended.set()

    receiver.answers = [
        drip,
        lambda handler: time.sleep(1),
        lambda handler: handler.wfile.write(b"\xff\x00 nonsense\r\n"),
    ]
    hook = Webhook(receiver.url, retries_s=())
    began = time.monotonic()
    for number in range(4):
        hook.take({"n": number})
    assert time.monotonic() - began < 0.2
    hook.close()
    assert ended.wait(5), "the dripping answer was cut off"
    assert (hook.delivered, hook.dropped) == (1, 3)


def test_a_receiver_that_is_gone_costs_old_records_and_no_memory() -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    server.server_close()
    hook = Webhook(url, retries_s=(30.0,))
    for number in range(MAX_WAITING + 50):
        hook.take({"n": number})
    assert hook.dropped >= 49
    began = time.monotonic()
    hook.close(patience_s=0.2)
    assert time.monotonic() - began < 5
    assert hook.delivered == 0
    assert hook.dropped == MAX_WAITING + 50


def test_a_public_name_is_not_followed_to_a_private_address(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = receiver.server.server_address[1]
    known = {"now": "93.184.215.14"}

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", (known["now"] if host == "hooks.example" else host, port))]

    monkeypatch.setattr(webhook.socket, "getaddrinfo", resolve)
    public = Webhook(f"http://hooks.example:{port}/", retries_s=())
    known["now"] = "127.0.0.1"
    private = Webhook(f"http://hooks.example:{port}/", retries_s=())
    for hook in (public, private):
        hook.take({"n": 1})
        hook.close()
    assert (public.delivered, public.dropped) == (0, 1)
    assert "private address" in str(public.trouble)
    assert private.delivered == 1, "the user named what was private from the start"

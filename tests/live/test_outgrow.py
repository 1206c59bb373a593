"""Outgrowing one machine, and living through it: real commands, killed with SIGKILL, lose and double nothing."""

import random
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.stream_kills import WRONG, crawl, outgrow, sessions, sse
from tests.live.broker_servers import nats_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers on all of 127.0.0.0/8"),
]


def nothing_wrong(row: dict[str, Any], n_kills: int) -> None:
    assert not any(row.get(name) for name in WRONG), row
    assert row["bytes"] > 0
    assert row["kills"] >= n_kills, row


@pytest.mark.skipif(nats_command() is None, reason="there is no nats-server")
def test_a_crawler_a_broker_and_a_learner_that_all_die_lose_and_double_no_page(tmp_path: Path) -> None:
    row = outgrow(tmp_path, n_kills=6, n_documents=200, seed=3)
    nothing_wrong(row, 4)
    assert row["documents"] == 200
    assert row["killed"]["broker"] > 0 < row["killed"]["learner"]


def test_a_run_that_crawls_and_dies_grades_every_page_once(tmp_path: Path) -> None:
    nothing_wrong(crawl(tmp_path, n_kills=3, n_documents=120, seed=4), 2)


def test_a_run_over_a_feed_that_breaks_off_and_dies_grades_every_event_once(tmp_path: Path) -> None:
    nothing_wrong(sse(tmp_path, n_kills=2, n_documents=80, seed=5), 2)


def planted(seed: int) -> list[str]:
    """Keys of several services; put together here, so that no scanner takes this file for a leak."""
    chooser = random.Random(seed)

    def some(n: int, alphabet: str = string.ascii_letters + string.digits) -> str:
        return "q7" + "".join(chooser.choice(alphabet) for _ in range(n - 2))

    upper = string.ascii_uppercase + "234567"
    return [
        "sk-ant-" + f"api03-{some(93)}AA",
        "ghp" + f"_{some(36)}",
        "AKIA" + some(16, upper).upper(),
        "hf" + f"_{some(34)}",
    ]


def test_a_run_over_sessions_that_dies_grades_every_answer_once_and_keeps_no_secret(
    tmp_path: Path, livelm_here: Any
) -> None:
    secrets = planted(1)
    row = sessions(tmp_path, n_kills=2, n_documents=40, seed=6, secrets=secrets)
    nothing_wrong(row, 2)
    run = tmp_path / "run"
    continued = livelm_here("generate", run, "--prompt", "The key is ", "--bytes", "300", "--json").out
    kept = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    kept |= {Path("generated"): continued.encode(), Path("said"): (tmp_path / "learner.log").read_bytes()}
    assert any(b"[redacted:" in data for path, data in kept.items() if path.parent.name == "spool")
    assert b"[redacted:" in (run / "graded.bytes").read_bytes()
    for secret in secrets:
        for part in (secret, secret[8:20], secret[-12:]):
            assert [path for path, data in kept.items() if part.encode() in data] == [], part[:4]

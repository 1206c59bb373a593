"""What `/.well-known/tdmrep.json` reserves: the first rule that matches, in any spelling, whatever the bytes are."""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livelm.sources.web.frontier import Frontier, FrontierSettings, HostMemory
from livelm.sources.web.tdmrep import MAX_BYTES, parse_reservation
from livelm.sources.web.urls import Url, parse_url

SITE = "https://example.org"
EXAMPLE = [
    {"location": "/directory-a/", "tdm-reservation": 1},
    {"location": "/directory-b/html/", "tdm-reservation": 1, "tdm-policy": "https://example.org/policies/policy.json"},
    {"location": "/directory-b/images/*.jpg", "tdm-reservation": 0},
]
"""The example of the report."""


def covers(rules: Any, path: str) -> bool:
    return parse_reservation(json.dumps(rules).encode())[0].covers(SITE + path)


def reserves(location: str, path: str) -> bool:
    return covers([{"location": location, "tdm-reservation": 1}], path)


def test_the_example_of_the_report_means_what_it_says() -> None:
    assert parse_reservation(json.dumps(EXAMPLE).encode())[1]
    assert [
        covers(EXAMPLE, path) for path in ("/directory-a/x.pdf", "/directory-b/html/", "/directory-b/html/a?b")
    ] == [True] * 3
    assert not any(
        covers(EXAMPLE, path) for path in ("/", "/directory-a", "/directory-b/images/a.jpg", "/directory-b/")
    )


@pytest.mark.parametrize(
    ("location", "path", "expected"),
    [
        ("/", "/", True),
        ("/", "/a/b?c", True),
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish.asp", False),  # case counts
        ("/fish/", "/fish", False),
        ("/fish*", "/fishheads", True),
        ("/*.php", "/folder/any.php.file.html", True),
        ("/*.php$", "/filename.php", True),
        ("/*.php$", "/filename.php?parameters", False),
        ("/*.php$", "/.php.php", True),
        ("/fish*.php", "/fishheads/catfish.php?x", True),
        ("/fish*.php", "/Fish.PHP", False),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/a*", "/b", False),
        ("*a*b*$", "/x-a-b-c", True),
        ("/ab*ba$", "/aba", False),  # the two pieces must not share a letter
        ("/*?", "/a?b", True),
        ("/*?", "/a", False),
        ("*.pdf", "/x/y.pdf", True),
        # one address in several spellings; a special character that is meant is encoded in the pattern
        ("/ツ", "/%E3%83%84", True),
        ("/%e3%83%84", "/%E3%83%84/x", True),
        ("/%7Eann/", "/~ann/a", True),
        ("/a%2Fb", "/a/b", False),
        ("/path/foo-%24", "/path/foo-$", True),
        ("/path/foo-%24", "/path/foo-", False),
        ("/5%2A5", "/5*5", True),
        ("/5%2A5", "/5x5", False),
        # what people write
        ("https://example.org/a/", "/a/b", True),
        ("https://example.org", "/a/b", True),
        ("a/", "/a/b", True),
        ("", "/a", True),
    ],
)  # the middle ones are from "How Google interprets the robots.txt specification", which the report refers to
def test_patterns_match_as_in_robots_txt(location: str, path: str, expected: bool) -> None:
    assert reserves(location, path) is expected


def test_the_first_rule_that_matches_decides_and_not_the_longest() -> None:
    wide, narrow = {"location": "/", "tdm-reservation": 1}, {"location": "/free/", "tdm-reservation": 0}
    assert not covers([narrow, wide], "/free/a")
    assert covers([narrow, wide], "/a")
    assert covers([wide, narrow], "/free/a")


@pytest.mark.parametrize(
    ("value", "expected"), [(1, True), ("1", True), (True, True), (1.0, True), (0, False), ("0", False)]
)
def test_a_value_counts_however_it_is_written(value: Any, expected: bool) -> None:
    rules = [{"location": "/", "tdm-reservation": value}, {"location": "/", "tdm-reservation": 1 - expected}]
    reservation, is_valid = parse_reservation(json.dumps(rules).encode("utf-8-sig"))
    assert (reservation.covers(SITE + "/"), is_valid) == (expected, True)


@pytest.mark.parametrize(
    "bad",
    [
        {"location": "/"}, {"tdm-reservation": 1}, {"location": 5, "tdm-reservation": 1}, [], "x", None, 7,
        {"location": "/", "tdm-reservation": 2}, {"location": "/", "tdm-reservation": None},
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_understood_is_left_out_and_the_others_hold(bad: Any) -> None:
    reservation, is_valid = parse_reservation(json.dumps([bad, {"location": "/a", "tdm-reservation": 1}]).encode())
    assert not is_valid
    assert reservation.covers(SITE + "/a")
    assert not reservation.covers(SITE + "/b")


def test_a_rule_without_its_array_holds() -> None:
    reservation, is_valid = parse_reservation(b'{"location": "/", "tdm-reservation": 1}')
    assert reservation.covers(SITE + "/a")
    assert not is_valid


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>Not here</html>", b"\xff\xfe", b"[" * 50_000, b"[" + b"9" * 9_000 + b"]", b'[{"location": "/", "tdm-',
     b'[{"location": "/", "tdm-reservation": 1}' + b" " * MAX_BYTES + b"]"],
)  # fmt: skip
def test_what_is_no_such_file_reserves_nothing_and_is_said_to_be_invalid(body: bytes) -> None:
    reservation, is_valid = parse_reservation(body)
    assert not is_valid
    assert not reservation.covers(SITE + "/")


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(body: bytes) -> None:
    parse_reservation(body)


@given(st.text("/ab*$", max_size=8), st.text("ab/", max_size=10))
def test_patterns_match_what_a_search_with_backtracking_matches(location: str, path: str) -> None:
    def search(pattern: str, text: str) -> bool:
        if pattern in ("", "$"):
            return not pattern or not text
        if pattern[0] == "*":
            return search(pattern[1:], text) or (bool(text) and search(pattern, text[1:]))
        return text[:1] == pattern[0] and search(pattern[1:], text[1:])

    location = "/" + location.rstrip("$").replace("$", "") + "$" * location.endswith("$")
    assert reserves(location, f"/{path}") is search(location, f"/{path}")


def test_a_pattern_of_many_wildcards_takes_linear_time() -> None:
    assert not reserves("/" + "*a" * 1000 + "*b$", "/" + "a" * 100_000)


def _url(text: str) -> Url:
    url = parse_url(text)
    assert url is not None
    return url


def test_a_frontier_of_the_schema_before_is_taken_over_with_what_it_holds(tmp_path: Path) -> None:
    path, now = tmp_path / "frontier.sqlite", time.time()
    frontier = Frontier(path, FrontierSettings())
    frontier.add([_url(f"{SITE}/{i}") for i in range(3)], 0)
    frontier.remember_host(SITE, HostMemory(robots=b"User-agent: *", status=200, fetched_at=now))
    frontier.commit()
    frontier.close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE host DROP COLUMN tdmrep")
        database.execute("PRAGMA user_version = 1")
    database.close()
    for expected in (None, b"[]", b"[]"):
        frontier = Frontier(path, FrontierSettings())
        memory = frontier.recall_host(SITE, now)
        assert memory is not None
        assert (memory.robots, memory.status, memory.tdmrep) == (b"User-agent: *", 200, expected)
        assert frontier.counts()["queued"] == 3
        frontier.remember_tdmrep(SITE, b"[]")
        frontier.commit()
        frontier.close()

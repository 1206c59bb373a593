"""What robots.txt, headers and meta tags forbid us."""

import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livelm.sources.web.optout import AI_AGENTS, nofollow, opt_out
from livelm.sources.web.robots import ALLOW_ALL, DISALLOW_ALL, MAX_BYTES, Rules, parse_robots, rules_for

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "robots" / "robots-protego" / "robots.zip"
SITE = "https://example.org"


def rules(text: str, agent: str = "livelm/0.1 (+https://livelm.example)", *, honour_ai_groups: bool = True) -> Rules:
    return parse_robots(text.encode(), agent, honour_ai_groups=honour_ai_groups)


def allowed(text: str, path: str) -> bool:
    return rules(text).allowed(SITE + path)


@pytest.mark.skipif(not REAL.exists(), reason="shared/data/robots is absent")
def test_every_real_file_parses_and_answers() -> None:
    n_refusing = 0
    with zipfile.ZipFile(REAL) as files:
        for name in files.namelist():
            found = parse_robots(files.read(name), "livelm")
            n_refusing += not found.allowed(SITE + "/admin/search?q=1")
            assert found.crawl_delay is None or found.crawl_delay >= 0
        assert len(files.namelist()) == 4225
    assert n_refusing > 500


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        # RFC 9309, 2.2.2: the most specific (longest) match counts, allow wins among equals
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", False),
        ("User-agent: *\nDisallow: /page\nAllow: /page", "/page", True),
        ("User-agent: *\nDisallow: /x", "/", True),
        # 2.2.3: wildcards and the end of the address
        ("User-agent: *\nDisallow: /*.gif$", "/a/b.gif", False),
        ("User-agent: *\nDisallow: /*.gif$", "/a/b.gif?x", True),
        ("User-agent: *\nDisallow: /a*b*c", "/a-b-c-d", False),
        ("User-agent: *\nDisallow: /*?", "/a?b=c", False),
        # 2.2.2: percent-encoding and UTF-8 are one
        ("User-agent: *\nDisallow: /ツ", "/%E3%83%84", False),
        ("User-agent: *\nDisallow: /%E3%83%84/", "/ツ/a", False),
        ("User-agent: *\nDisallow: /a%3cd.html", "/a%3Cd.html", False),
        # 2.2.1: names are whole tokens in any case; groups of one name are merged; * is for those without a group
        ("User-agent: LiveLM\nDisallow: /a", "/a", False),
        ("User-agent: LIVELM/2.0\nDisallow: /a", "/a", False),
        ("User-agent: live\nDisallow: /", "/a", True),
        ("User-agent: livelm-news\nDisallow: /", "/a", True),
        ("User-agent: livelm\nDisallow: /a\n\nUser-agent: livelm\nDisallow: /b", "/b", False),
        ("User-agent: livelm\nDisallow: /a\n\nUser-agent: *\nDisallow: /", "/b", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: livelm\nDisallow:", "/b", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: livelm", "/b", True),
        ("User-agent: one\nUser-agent: livelm\nDisallow: /a", "/a", False),
        ("User-agent: livelm\nSitemap: /s.xml\nUser-agent: two\nDisallow: /a", "/a", False),
        ("User-agent: livelm\n\n\n# nothing\nDisallow: /a # why", "/a", False),
        ("user-agent : *\rdisallow : /a\r", "/a", False),
        ("\ufeffUser-agent: *\nDisallow: /a", "/a", False),
        ("Disallow: /", "/a", True),
        ("<!doctype html><p>Not found", "/a", True),
        ("", "/a", True),
        # 2.2.2: robots.txt itself may always be asked for
        ("User-agent: *\nDisallow: /", "/robots.txt", True),
    ],
)
def test_rules_are_those_of_rfc_9309(text: str, path: str, expected: bool) -> None:
    assert allowed(text, path) is expected


@pytest.mark.parametrize(
    ("status", "expected", "later"),
    [
        *((status, True, False) for status in (302, 404, 410)),
        *((status, False, False) for status in (401, 403)),
        *((status, False, True) for status in (429, 500, 503, None)),
    ],
)
def test_what_an_answer_without_rules_means(status: int | None, expected: bool, later: bool) -> None:
    found = rules_for(status, b"User-agent: *\nDisallow: /a", "livelm")
    assert (found.allowed(SITE + "/b"), found.later) == (expected, later)
    assert ALLOW_ALL.allowed(SITE + "/b")
    assert not DISALLOW_ALL.allowed(SITE + "/b")


def test_what_comes_after_500_kib_is_not_read_and_no_rule_is_cut_in_two() -> None:
    head = b"User-agent: *\nDisallow: /before\n"
    body = head + b"#" * (MAX_BYTES - len(head) - 11) + b"\nDisallow: /private/area\nDisallow: /after\n"
    found = rules_for(200, body, "livelm")
    assert not found.allowed(SITE + "/before")
    assert found.allowed(SITE + "/private-matter")  # "Disallow: /pri" would refuse it
    assert found.allowed(SITE + "/after")


def test_delay_and_sitemaps_are_read() -> None:
    found = rules("Sitemap: https://e.org/a.xml\nUser-agent: *\nCrawl-delay: 2.5\nDisallow: /x\nSitemap: /b.xml")
    assert (found.crawl_delay, found.sitemaps) == (2.5, ("https://e.org/a.xml", "/b.xml"))
    assert rules("User-agent: *\nCrawl-delay: -1").crawl_delay is None
    assert rules("User-agent: *\nCrawl-delay: soon").crawl_delay is None


def test_who_turns_training_crawlers_away_means_us_unless_we_are_named() -> None:
    text = "User-agent: *\nDisallow: /x\n\nUser-agent: GPTBot\nUser-agent: CCBot\nDisallow: /\n"
    assert rules(text).refuses(SITE + "/a") == "robots_ai"
    assert rules(text).refuses(SITE + "/x") == "robots"
    assert rules(text, honour_ai_groups=False).refuses(SITE + "/a") is None
    assert rules(text + "\nUser-agent: livelm\nAllow: /").refuses(SITE + "/a") is None
    one = "User-agent: CCBot\nAllow: /\n\nUser-agent: GPTBot\nDisallow: /a"
    assert rules(one).refuses(SITE + "/a") == "robots_ai"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Content-Signal: search=yes, ai-train=no", "content_signal"),
        ("Content-Signal: search=yes,ai-train=yes", None),
        ("Content-Signal: search=no", None),
        ("Content-Usage: train-ai=n", "content_signal"),
        ("Content-Usage: /a train-ai=n", "content_signal"),
        ("Content-Usage: /b train-ai=n", None),
    ],
)
def test_preferences_about_training_are_honoured(line: str, reason: str | None) -> None:
    assert rules(f"User-agent: *\n{line}\nAllow: /").refuses(SITE + "/a/1") == reason
    assert rules(f"User-agent: other\n{line}\nAllow: /").refuses(SITE + "/a/1") is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(alphabet="uUser-agnt:dilow *$%/\n\r#\ufeff\u2028aж", max_size=300))
def test_no_bytes_make_it_fail(body: bytes | str) -> None:
    found = parse_robots(body if isinstance(body, bytes) else body.encode(), "livelm")
    found.allowed(SITE + "/a/b?c=%zz")
    found.allowed("")


@pytest.mark.parametrize(
    ("headers", "meta", "reason", "follows"),
    [
        ({}, [], None, True),
        ({}, [("robots", "index, follow")], None, True),
        ({}, [("ROBOTS", "NoIndex")], "noindex", True),
        ({}, [("robots", "none")], "noindex", False),
        ({}, [("robots", "max-snippet:-1, nofollow")], None, False),
        ({}, [("robots", "noai, noimageai")], "noai", True),
        ({}, [("robots", "noimageai")], None, True),
        ({}, [("livelm", "noarchive")], "noarchive", True),
        ({}, [("googlebot", "noindex")], None, True),
        ({}, [("gptbot", "noindex")], "noindex", True),
        ({}, [("tdm-reservation", "1")], "tdm_reservation", True),
        ({}, [("tdm-reservation", "0")], None, True),
        ({"tdm-reservation": "1"}, [], "tdm_reservation", True),
        ({"x-robots-tag": "noindex, nofollow"}, [], "noindex", False),
        ({"x-robots-tag": "googlebot: noindex, nofollow"}, [], None, True),
        ({"x-robots-tag": "googlebot: noindex, livelm: noai"}, [], "noai", True),
        ({"x-robots-tag": "unavailable_after: 25 Jun 2030 15:00:00 PST, noai"}, [], "noai", True),
        ({"content-usage": "train-ai=n"}, [], "content_usage", True),
        ({"content-usage": "train-ai=y"}, [], None, True),
    ],
)
def test_pages_can_opt_out(
    headers: dict[str, str], meta: list[tuple[str, str]], reason: str | None, follows: bool
) -> None:
    assert opt_out(headers, meta, "livelm/0.1") == reason
    assert nofollow(headers, meta, "livelm/0.1") is not follows


def test_names_of_training_crawlers_can_be_ignored() -> None:
    assert "ccbot" in AI_AGENTS
    assert opt_out({}, [("ccbot", "noindex")], "livelm", honour_ai=False) is None

"""A host that reserves text and data mining in a file is left alone, asked once for that file, and remembered."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.live.test_crawl import GAP_S, Page, Web, crawled, polite, settings, tree, words

from livelm.errors import SourceError
from livelm.sources.web.crawl import Crawl

pytestmark = [pytest.mark.slow, pytest.mark.alone]
FILE = "/.well-known/tdmrep.json"


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web(4)
    yield server
    server.close()


def reserve(web: Web, host: int, *rules: tuple[str, int], **options: Any) -> None:
    body = json.dumps([{"location": location, "tdm-reservation": value} for location, value in rules])
    web.pages[web.hosts[host], FILE] = Page(body, headers={"Content-Type": "application/json"}, **options)


def asked(web: Web) -> dict[str, int]:
    return {host: web.seen()[f"{host}{FILE}"] for host in web.hosts}


def test_what_a_host_reserves_is_not_fetched_and_its_file_is_fetched_once(web: Web) -> None:
    expected = tree(web, 40)
    reserve(web, 1, ("/page/1$", 0), ("/page/1", 1), ("/page/", 0))
    web.add(2, "/rules", "", status=302, headers={"Location": web.url(3, "/rules.json")})
    web.pages[web.hosts[2], FILE] = Page("", 301, {"Location": "/rules"})
    web.pages[web.hosts[3], "/rules.json"] = Page('[{"location": "/page/6", "tdm-reservation": 1}]')
    web.pages[web.hosts[3], FILE] = Page("<html>no such page, says 200</html>")
    reserved = {web.url(1, f"/page/{i}") for i in (13, 17)} | {web.url(2, "/page/6")}
    crawl = Crawl(web.url(0, "/"), settings(web))
    found = {document.url for document in crawled(crawl)}
    hidden = {web.url(i % 4, f"/page/{i}") for i in (25, 26, 27, 28)}  # linked on a reserved page only
    assert reserved.isdisjoint(found)
    assert found == expected - reserved - hidden
    assert all(f"{web.hosts[1]}/page/{i}" not in web.seen() for i in (13, 17))
    assert asked(web) == dict.fromkeys(web.hosts, 1)
    observed = crawl.observe()
    assert isinstance(observed["drops"], dict)
    assert observed["drops"]["tdm_reservation"] == len(reserved)
    assert (observed["tdm_files"], observed["tdm_files_invalid"]) == (2, 1)
    polite(web, GAP_S)
    paths = [request.path for request in web.requests if request.host == web.hosts[1]]
    assert paths[:2] == ["/robots.txt", FILE]


def test_two_processes_ask_each_host_once(web: Web) -> None:
    expected = tree(web, 24)
    for host in range(4):
        reserve(web, host, ("/page/9", 1))
    found = {document.url for document in crawled(Crawl(web.url(0, "/"), settings(web, processes=2)))}
    assert found == expected - {web.url(1, "/page/9")}
    assert asked(web) == dict.fromkeys(web.hosts, 1)


def test_a_crawl_that_is_told_so_does_not_ask(web: Web) -> None:
    expected = tree(web, 8)
    reserve(web, 0, ("/page/", 1))
    found = {document.url for document in crawled(Crawl(web.url(0, "/"), settings(web, honour_tdmrep=False)))}
    assert found == expected
    assert asked(web) == dict.fromkeys(web.hosts, 0)


def test_a_file_that_robots_txt_forbids_is_not_fetched(web: Web) -> None:
    expected = tree(web, 8)
    for host in web.hosts:
        web.pages[host, "/robots.txt"] = Page("User-agent: *\nDisallow: /.well-known/\n")
    assert {document.url for document in crawled(Crawl(web.url(0, "/"), settings(web)))} == expected
    assert asked(web) == dict.fromkeys(web.hosts, 0)


def test_a_host_that_reserves_everything_is_an_error_that_says_so(web: Web) -> None:
    tree(web, 8)
    reserve(web, 0, ("/", 1))
    with pytest.raises(SourceError, match="tdm_reservation"):
        crawled(Crawl(web.url(0, "/"), settings(web)))
    assert [request.path for request in web.requests] == ["/robots.txt", FILE]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_file_that_cannot_be_had_now_is_asked_for_three_times_and_then_counts_as_none(web: Web, status: int) -> None:
    web.add(0, "/", words("root"))
    headers = {"Retry-After": "0"}
    web.pages[web.hosts[0], FILE] = Page("", status, headers)
    assert len(crawled(Crawl(web.url(0, "/"), settings(web)))) == 1
    assert [request.path for request in web.requests] == ["/robots.txt", FILE, FILE, FILE, "/"]


def test_rules_survive_a_stopped_crawl_and_are_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    expected = tree(web, 60)
    for host in range(4):
        reserve(web, host, ("/page/11", 1), ("/page/57", 1))
    crawl = Crawl(web.url(0, "/"), settings(web))
    crawl.keep(tmp_path / "crawl")
    with closing(crawl):
        begin = list(islice(crawl.read(None), 20))
    before = Counter(asked(web))
    assert before == dict.fromkeys(web.hosts, 1)
    crawl = Crawl(web.url(0, "/"), settings(web))
    crawl.keep(tmp_path / "crawl")
    with closing(crawl):
        rest = list(crawl.read(begin[-1][1]))
    hidden = {web.url(i % 4, f"/page/{i}") for i in range(45, 49)}  # linked on page 11 only
    reserved = {web.url(3, "/page/11"), web.url(1, "/page/57")}
    assert {document.url for document, _ in [*begin, *rest]} == expected - reserved - hidden
    assert len(begin) + len(rest) == len(expected - reserved - hidden)
    assert asked(web) == before

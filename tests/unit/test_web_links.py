"""What is remembered of links never changes what they mean, and stays bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livelm.sources.web import links as links_module
from livelm.sources.web.links import Links, resolve_reference

PLACES = [
    "https://example.org/",
    "https://example.org/a/b",
    "https://example.org/a/c?d=/e/f#g/h",
    "https://example.org/a/b/",
    "http://example.org/a/b",
    "http://other.org:8080/a/b?x",
]
PARTS = ["", "/", "//", "\\", ".", "..", "a", "x.html", "?", "q=1", "#", "f", ":", "http:", "https:", "HTTP:", "ftp:"]
PARTS += ["example.org", "other.org", " ", "\t", "\n", "\x01", "\u00e9", "%20", "javascript:", "@", "\ud800", "a:b"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PARTS), max_size=5).map("".join), min_size=1, max_size=25))
def test_a_remembered_link_means_what_it_would_mean_to_a_parser_on_every_page(links: list[str]) -> None:
    known = Links()
    for place in PLACES * 2:
        assert known.resolve(links, place) == resolve_reference(links, place)


def test_links_of_another_query_or_segment_are_not_taken_from_memory() -> None:
    known = Links()
    for page in ("https://example.org/a/one?x=1", "https://example.org/a/two?x=2"):
        for link in ("", "?y=3", " ?y=3", "\x01?y=3", "https:?y=3", "https:"):
            assert known.resolve([link], page) == resolve_reference([link], page), (link, page)


@pytest.mark.parametrize("prefix", ["/", "", "https://example.org/", "//example.org/"])
def test_memory_of_links_is_bounded_on_one_site_and_over_many(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "MAX_LINKS", 200)
    monkeypatch.setattr(links_module, "MAX_OF_ORIGIN", 50)
    known = Links()
    for i in range(60):
        links = [f"{prefix}{i}-{j}" for j in range(10)]
        for page in ("https://example.org/", f"https://h{i}.org/"):
            assert len(known.resolve(links, page)) == 10
            assert len(known) <= 2 * 200 + 10
    assert sum(map(len, known._origins.values())) + len(known._absolute) == len(known)

"""Reading pages: what is found in good ones, and that no bad one stops a crawl."""

import json
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resiliparse.parse.html import HTMLTree

from livelm.errors import Unavailable
from livelm.sources.web import markup as markup_module
from livelm.sources.web import page as page_module
from livelm.sources.web.markup import attack, attack_reference, read_markup
from livelm.sources.web.page import Page, PageReader, PageSettings, decode

HOSTILE = Path(__file__).parents[2].parent / "shared" / "data" / "hostile" / "naughty-strings" / "blns.json"
PROSE = "The quick brown fox jumps over the lazy dog, and then it sleeps for an hour. " * 5
HTML = {"content-type": "text/html; charset=utf-8"}
URL = "https://example.org/dir/page.html"


def read(html: str | bytes, headers: dict[str, str] | None = None, **changes: Any) -> Page:
    body = html if isinstance(html, bytes) else html.encode("utf-8", "surrogatepass")
    return PageReader(PageSettings(**changes), "livelm").read(body, HTML if headers is None else headers, URL)


def test_main_text_title_and_language_are_found() -> None:
    page = read(
        f"<html lang=EN-gb><title> A fox </title><body><nav><a href=/>Home</a></nav><article><h1>Fox</h1><p>{PROSE}"
        "</article><footer>All rights reserved by nobody</footer>"
    )
    assert (page.title, page.lang, page.reason) == ("A fox", "en-gb", None)
    assert PROSE.strip() in page.text
    assert "rights reserved" not in page.text
    assert "Home" not in page.text


def test_links_are_each_once_as_written_and_none_that_must_not_be_followed() -> None:
    page = read(
        "<a href='a.html'>1</a><A HREF=/b?x=1&amp;y=2#f>2</A><a href=a.html>again</a><a class=x\nhref = ' c '>3</a>"
        "<a href=d rel='me NoFollow'>4</a><a class=nofollow href=e>5</a><a name=x>6</a><a href=''>7</a><a href='#t'>8"
        "<a href='JavaScript:x()'>9</a><a href='mail&#116;o:x@y'>10</a><!-- <a href=hidden> -->"
        "<script>var a = '<a href=script>';</script><a title='a > b' href=f>11</a><area href=g><a data-href=h href=i>"
        "<abbr href=j><a href='k\nl'>12</a>"
    )
    assert page.links == ["a.html", "/b?x=1&y=2#f", "c", "e", "f", "i", "kl"]


def test_base_is_honoured_and_absolute() -> None:
    assert read("<a href=x>").base == URL
    assert read("<base href='/up/'><base href='/b/'>").base == "https://example.org/up/"  # the first one counts
    assert read("<base target=_top><base href='/up/'><a href=x>").base == "https://example.org/up/"
    assert read("<base href='//other.org'>").base == "https://other.org/"
    assert read("<base href='javascript:1'>").base == URL
    assert read("<base href='http://['>").base == URL


def test_links_agree_with_a_parser() -> None:
    html = "".join(f"<li class='a{i}'><a class=\"b\" href='/p/{i}?q=\u00e9&amp;r={i}'>t</a>" for i in range(300))
    tree = HTMLTree.parse(html)
    assert tree.document is not None
    wanted = [a.getattr("href") for a in tree.document.query_selector_all("a[href]").values()]
    assert read_markup(html, 1000).links == wanted
    assert len(read_markup(html, 10).links) == 10


def test_an_opt_out_leaves_the_links_and_takes_the_text() -> None:
    page = read(f"<meta name=robots content=noindex><p>{PROSE}<a href=x>y</a>")
    assert (page.reason, page.text, page.links) == ("noindex", "", ["x"])
    page = read(f"<meta content='nofollow' name='ROBOTS'><p>{PROSE}<a href=x>y</a>")
    assert (page.reason, page.links) == (None, [])
    page = read(f"<p>{PROSE}<a href=x>y</a>", {**HTML, "x-robots-tag": "none"})
    assert (page.reason, page.text, page.links) == ("noindex", "", [])
    assert read(PROSE, {"content-type": "text/plain", "tdm-reservation": "1"}).reason == "tdm_reservation"


@pytest.mark.parametrize(
    ("content_type", "body", "reason"),
    [
        ("text/plain", PROSE.encode(), None),
        ("text/html", b"", "empty"),
        ("text/html", b"<p> </p>", "empty"),
        ("image/png", b"\x89PNG", "content_type"),
        ("application/pdf", b"%PDF", "content_type"),
        ("", b"<!DOCTYPE html><p>" + PROSE.encode(), None),
        ("", b"\x00\x01", "content_type"),
        ("text/plain", b"GIF89a\0\0\0", "binary"),
        ("text/html", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "binary"),
        ("text/html", b"<p>" + b"x " * 3000, "html_too_large"),
    ],
)
def test_what_is_no_page_is_named(content_type: str, body: bytes, reason: str | None) -> None:
    assert read(body, {"content-type": content_type}, max_html_bytes=5000).reason == reason


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("Grüße".encode(), "text/html; charset=iso-8859-1", "Grüße"),  # header lies
        ('<meta charset="ascii">Grüße'.encode(), "text/html", "Grüße"),  # meta lies
        ("\ufeffGrüße".encode(), "", "Grüße"),
        ("Grüße, Ägypten, schöne Füße".encode("latin-1"), "text/html; charset=utf-8", "Grüße, Ägypten, schöne Füße"),
        ("Grüße".encode("cp1252"), 'text/html; charset="windows-1252"', "Grüße"),
        ("Привет".encode("cp1251"), "text/html;charset=windows-1251", "Привет"),
        ('<meta charset="shift_jis">日本語のページ'.encode("shift_jis"), "", "日本語のページ"),
        ("Grüße".encode("utf-16"), "text/html; charset=utf-8", "Grüße"),
        ("日本".encode("iso-2022-jp"), "text/html; charset=iso-2022-jp", "日本"),
        ("Grüße".encode(), "text/html; charset=no-such-thing", "Grüße"),
        (("x" * 3000 + "ü").encode()[:-1], "", "x" * 3000),  # cut within a character
    ],
)
def test_encodings_that_lie_are_found_out(body: bytes, content_type: str, text: str) -> None:
    assert text in decode(body, content_type)


def test_ten_thousand_nested_elements_are_refused_and_deep_but_real_ones_are_read() -> None:
    assert read("<div>" * 10_000 + PROSE + "</div>" * 10_000).reason == "html_too_deep"
    assert read("<p>x<div>" * 10_000).reason == "html_too_deep"
    assert PROSE.strip() in read("<div>" * 150 + f"<p>{PROSE}</p>").text


def test_few_bytes_cannot_make_millions_of_nodes() -> None:
    bomb = "<p>" + "".join(f"<b id={i}>" for i in range(3000)) + "</p>" + "<p>x</p>" * 3000
    assert read(bomb).reason == "formatting_bomb"
    assert read("<p>" + "<b><i><u>" * 9 + "</p>" + "<p>x" * 300_000).reason == "formatting_bomb"
    assert read("<p><i class=icon></i><b id=1>word</b> " * 20_000).reason is None  # closed ones are harmless
    assert read("<p " + " ".join(f"a{i}=1" for i in range(30_000)) + f">{PROSE}").reason == "attribute_bomb"
    assert read("<p " + " ".join(f"a{i}='>'" for i in range(30_000)) + f">{PROSE}").reason == "attribute_bomb"
    for hidden in ('q=">"', "q='>'", 'q= \n">"', 'q="\'>"', 'q="<p>"'):  # a few ends that are none, far apart
        names = " ".join(f"a{i} {hidden}" if i % 5000 == 0 else f"a{i}" for i in range(40_000))
        assert read(f"<p {names}>{PROSE}").reason == "attribute_bomb"
    assert read(f"<img src='data:image/png;base64,{'A/b+' * 50_000}'><p>{PROSE}").reason is None


FRAGMENTS = """
<a
<a_
<a_href=
<a_href='
<a_"
<a_href=x_
'"=<b_
<!--
<!-
<script
<script>
<<
&#
<table>
<select><option>
<template>
<svg>
<math><mi>
</p>
</br>
<plaintext>
<frameset>
"""


@pytest.mark.parametrize("piece", FRAGMENTS.replace("_", " ").strip("\n").split("\n"))
def test_reading_repeated_fragments_takes_linear_time(piece: str) -> None:
    # quadratic patterns would take hours here and run into pytest's timeout
    html = piece * (400_000 // len(piece))
    assert attack(html) in (None, "formatting_bomb", "attribute_bomb")
    read_markup(html, 1000)
    read(html)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from(["<p ", "a='>'", 'b=">"', " x", "'", '"', ">", "=", "= ", "<b>", "c ", "-" * 9]), max_size=60
    )
)
def test_a_few_looks_find_every_attribute_bomb_that_measuring_all_tags_finds(pieces: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markup_module, "MAX_ATTRIBUTES", 4)
        patch.setattr(markup_module, "_LONG", 20)
        patch.setattr(markup_module, "_LOOKS", 2)
        assert attack("".join(pieces)) == attack_reference("".join(pieces))


@pytest.mark.skipif(not HOSTILE.exists(), reason="shared/data/hostile is absent")
def test_naughty_strings_pass_through() -> None:
    for text in json.loads(HOSTILE.read_text("utf-8")):
        page = read(f"<title>{text}</title><p>{PROSE}</p><p>{text}</p><a href='{text}'>{text}</a><base href='{text}'>")
        assert isinstance(page.text, str)
        assert PROSE[:70] in page.text or page.reason is not None or "<" in text
        page.text.encode()
        read(text, {"content-type": text})
        read(text, {"content-type": "text/plain", "x-robots-tag": text})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | st.text(alphabet="<>/aAbpmetdivscript!-='\" \n\0é&;#x\ufeff", max_size=400))
def test_no_bytes_make_reading_fail(body: bytes | str) -> None:
    page = read(body)
    assert bool(page.text) != bool(page.reason)
    page.text.encode()
    assert page.base.startswith("http")


def test_collections_of_the_parser_are_never_walked_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # each step evaluates the selector again: 100 ms a page where `.values()` takes one (measured, resiliparse 2.0.1)
    trees: list[Any] = []
    parse = HTMLTree.parse

    class Watched:
        @staticmethod
        def parse(html: str) -> Any:
            trees.append(parse(html))
            return trees[-1]

    monkeypatch.setattr(page_module, "HTMLTree", Watched)
    source = Path(page_module.__file__).read_text("utf-8") + Path(read_markup.__code__.co_filename).read_text("utf-8")
    assert "query_selector_all" not in source
    assert "get_elements_by" not in source
    assert read(f"<p>{PROSE}").text
    assert len(trees) == 1  # and a page is parsed once


def test_memory_does_not_grow_with_pages() -> None:
    reader = PageReader(PageSettings(), "livelm")
    body = f"<p>{PROSE}{'<a href=x>y</a>' * 50}".encode()
    reader.read(body, HTML, URL)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(300):
        reader.read(body, HTML, URL)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 50_000


def test_trafilatura_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(Unavailable, match="pip install"):
        PageReader(PageSettings(extractor="trafilatura"), "livelm")
    module = types.ModuleType("trafilatura")
    vars(module)["extract"] = lambda page, fast, include_comments: None if "nothing" in page else "extracted"
    monkeypatch.setitem(sys.modules, "trafilatura", module)
    assert read("<p>x", extractor="trafilatura").text == "extracted"
    assert read("<p>nothing", extractor="trafilatura").reason == "empty"

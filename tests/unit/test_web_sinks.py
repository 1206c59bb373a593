"""Files of crawled pages: each write whole or not there, cut back exactly, and readable by everybody else."""

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from livelm.errors import ConfigError, SourceError
from livelm.sources.files import Files
from livelm.sources.web import sitemap
from livelm.sources.web.black_box import BlackBox
from livelm.sources.web.item import Item, pack, unpack
from livelm.sources.web.sinks import Broker, open_file
from livelm.types import Document

NAMES = ["pages.jsonl.zst", "pages.warc.gz"]


def item(i: int, **changes: Any) -> Item:
    values: dict[str, Any] = {
        "url": f"https://example.org/{i}",
        "text": f"Text of page {i}, äöü 漢字.\n".encode(),
        "at": "2026-01-02T03:04:05.678+00:00",
        "title": "A “title”",
        "headers": {"content-type": "text/html", "content-encoding": "gzip", "transfer-encoding": "chunked"},
        "raw": b"\x1f\x8b" + bytes([i]) * 100,
        "address": "192.0.2.1",
    }
    return Item(**values | changes)


def urls(path: Path) -> list[str]:
    if path.suffix == ".zst":
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line)["url"] for line in file]
    with path.open("rb") as file:
        return [r.rec_headers["WARC-Target-URI"] for r in ArchiveIterator(file) if r.rec_type == "response"]


@given(st.binary(), st.none() | st.binary(), st.text(st.characters(exclude_categories=["Cs"])))
def test_an_item_survives_packing(text: bytes, raw: bytes | None, title: str) -> None:
    whole = item(1, text=text, raw=raw, title=title)
    assert unpack(pack(whole)) == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_whole_after_each_write(tmp_path: Path, name: str) -> None:
    sink = open_file(tmp_path / name, None)
    for n in range(3):
        sink.write([item(2 * n), item(2 * n + 1)])
        assert urls(tmp_path / name) == [f"https://example.org/{i}" for i in range(2 * n + 2)]
        assert sink.place == {"n_bytes": (tmp_path / name).stat().st_size}
    sink.close()
    sink.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("torn", [b"", b"half a record", None])
def test_what_came_after_the_place_is_cut_off(tmp_path: Path, name: str, torn: bytes | None) -> None:
    sink = open_file(tmp_path / name, None)
    sink.write([item(1)])
    place = sink.place
    if torn is None:
        sink.write([item(7)])
    sink.close()
    with (tmp_path / name).open("ab") as file:
        file.write(torn or b"")
    again = open_file(tmp_path / name, json.loads(json.dumps(place)))
    again.write([item(2)])
    again.close()
    assert urls(tmp_path / name) == ["https://example.org/1", "https://example.org/2"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_ours_is_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ConfigError, match="not written by this crawl"):
        open_file(tmp_path / name, None)
    with pytest.raises(SourceError, match="shorter"):
        open_file(tmp_path / name, {"n_bytes": 9})
    assert (tmp_path / name).read_bytes() == b"precious"


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.warc\.gz"):
        open_file(tmp_path / "pages.txt", None)


def test_a_jsonl_is_read_by_the_source_of_files(tmp_path: Path) -> None:
    sink = open_file(tmp_path / NAMES[0], None)
    sink.write([item(1)])
    sink.write([item(2)])
    sink.close()
    found = [document.text.decode() for document, _ in Files([str(tmp_path / NAMES[0])]).read(None)]
    assert found == [item(1).text.decode(), item(2).text.decode()]


def test_a_warc_holds_the_body_as_it_was_sent(tmp_path: Path) -> None:
    sink = open_file(tmp_path / NAMES[1], None)
    sink.write([item(3)])
    sink.close()
    with (tmp_path / NAMES[1]).open("rb") as file:
        records = [(r.rec_type, r.rec_headers, r.http_headers, r.raw_stream.read()) for r in ArchiveIterator(file)]
    assert [kind for kind, *_ in records] == ["warcinfo", "response"]
    _, about, http, body = records[1]
    assert body == item(3).raw
    assert http.get_statuscode() == "200"
    assert http.get_header("Content-Encoding") == "gzip"
    assert http.get_header("Content-Length") == str(len(body))
    assert http.get_header("Transfer-Encoding") is None
    assert about.get_header("WARC-Date") == "2026-01-02T03:04:05.678000Z"
    assert about.get_header("WARC-IP-Address") == "192.0.2.1"


def test_a_broker_gets_documents() -> None:
    class Memory:
        def __init__(self) -> None:
            self.sent: list[Document] = []

        def publish(self, batch: Sequence[Document]) -> None:
            self.sent += batch

        def close(self) -> None:
            self.sent.append(Document(text=b"", id="closed", source="x"))

    memory = Memory()
    sink = Broker(memory, "crawl")
    sink.write([item(1), item(2)])
    assert [(d.id, d.url, d.source, d.text) for d in memory.sent] == [
        (item(i).url, item(i).url, "crawl", item(i).text) for i in (1, 2)
    ]
    sink.close()
    assert memory.sent[-1].id == "closed"


def test_sitemaps_give_their_addresses() -> None:
    text = (
        b'<?xml version="1.0"?><urlset><url><loc>\n https://a.example/?x=1&amp;y=2 </loc></url><url><LOC>/b</LOC></url>'
    )
    assert sitemap.is_sitemap(text, "/any")
    assert sitemap.addresses(text, 9) == ["https://a.example/?x=1&y=2", "/b"]
    assert sitemap.addresses(text, 1) == ["https://a.example/?x=1&y=2"]
    assert sitemap.addresses(b"<s:sitemapindex><s:loc><![CDATA[https://a/b]]></s:loc>", 9) == ["https://a/b"]
    assert sitemap.is_sitemap(b"https://a.example/\n", "/sitemap.txt")
    assert not sitemap.is_sitemap(b"https://a.example/\n", "/notes.txt")
    assert not sitemap.is_sitemap(b"<html><body>urlset</body>", "/sitemap.xml")


def test_a_sitemap_bomb_is_refused() -> None:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(b" " * (30 << 20))
    with pytest.raises(sitemap.DecodeError):
        sitemap.unpacked(buffer.getvalue(), 10_000_000)


def test_a_page_is_known_after_it_was_being_read_at_two_deaths(tmp_path: Path) -> None:
    path = tmp_path / "box"  # no box is ever closed, as after a kill
    box = BlackBox(path)
    assert box.culprit is None
    box.note("https://example.org/fine")
    box.clear()
    assert BlackBox(path).culprit is None
    box.note("https://example.org/ä")
    box = BlackBox(path)
    assert box.culprit is None  # something else may have killed it
    box.note("https://example.org/fine")  # what is read before it comes again does not clear it
    box.clear()
    box = BlackBox(path)
    box.note("https://example.org/ä")
    assert BlackBox(path).culprit == "https://example.org/ä"
    assert BlackBox(path).culprit == "https://example.org/ä"
    box.note("https://example.org/fine")
    assert BlackBox(path).culprit is None


def test_what_lies_in_the_way_of_a_black_box_is_no_address(tmp_path: Path) -> None:
    (tmp_path / "box").write_bytes(b"\xff" * 100_000)
    box = BlackBox(tmp_path / "box")
    box.note("https://example.org/" + "x" * 10_000)
    assert BlackBox(tmp_path / "box").culprit is None

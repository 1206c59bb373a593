"""Archives: every readable record, whatever is around it; exact resumption in every layout; counts as warcio's."""

import ast
import gzip
import json
import logging
import random
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
import zstandard

from livelm.errors import SourceError
from livelm.sources.archives import Archives, ArchivesSettings, window
from livelm.sources.archives.framing import TYPES
from livelm.types import Cursor, Document

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "archives"
REFERENCE = DATA / "warc-reference-counts" / "warcio-1.8.1-counts.txt"


def references() -> list[tuple[str, Counter[str], bool]]:
    """Path, records by type as warcio counts them, and whether the file is as it should be."""
    if not REFERENCE.exists():
        return []
    found: list[tuple[str, Counter[str], bool]] = []
    for line in filter(str.strip, REFERENCE.read_text().splitlines()):
        name = line.split()[0]
        counts, error = line[line.index("{") :].split("}", 1)
        types: Counter[str] = Counter()
        for type_, n in ast.literal_eval(counts + "}").items():
            types[type_.strip().lower()] += n  # warcio keeps the spaces and the case of a folded or shouted type
        if (DATA / name).exists():
            found.append((name, types, not error.strip() and "invalid-" not in name))
    return found


REFERENCES = references()
needs_data = pytest.mark.skipif(not REFERENCES, reason="the archives of shared/data are not here")

Read = list[tuple[Document, Cursor]]


def read(target: Path | str, cursor: Cursor | None = None, **settings: object) -> tuple[Read, dict]:
    """Everything, and what the source says of it; an archive without text is no error here."""
    source = Archives(str(target), ArchivesSettings.model_validate(settings))
    found: Read = []
    with suppress_empty():
        found.extend(source.read(cursor))
    return found, source.observe()


@contextmanager
def suppress_empty() -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        if "empty stream" not in str(error):
            raise


def texts(found: Read) -> list[bytes]:
    return [document.text for document, _ in found]


def record(n: int, text: bytes | None = None, **fields: str) -> bytes:
    block = text if text is not None else b"text number %d, of a page" % n
    lines = {
        "WARC-Type": "conversion",
        "WARC-Record-ID": f"<urn:uuid:{n}>",
        "WARC-Date": "2024-05-18T01:58:10Z",
        "WARC-Target-URI": f"http://example.org/{n}",
        "Content-Type": "text/plain",
        "Content-Length": str(len(block)),
    } | {name.replace("_", "-"): value for name, value in fields.items()}
    head = "WARC/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + block + b"\r\n\r\n"


def http_record(n: int, head: str, body: bytes) -> bytes:
    block = head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body
    return record(n, block, WARC_Type="response", Content_Type="application/http; msgtype=response")


def gzip_members(records: list[bytes]) -> bytes:
    return b"".join(gzip.compress(r, mtime=0) for r in records)


def zstd_frames(records: list[bytes]) -> bytes:
    return b"".join(zstandard.compress(r) for r in records)


def zstd_with_dictionary(records: list[bytes]) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:" * 8)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary)
    content = dictionary.as_bytes()
    head = b"\x5d\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content
    return head + b"".join(compressor.compress(r) for r in records)


Pack = Callable[[list[bytes]], bytes]
LAYOUTS: dict[str, Pack] = {
    "plain": b"".join,
    "gzip members": gzip_members,
    "one gzip member": lambda records: gzip.compress(b"".join(records)),
    "members cut anywhere": lambda records: gzip_members([b"".join(records)[i : i + 97] for i in range(0, 4000, 97)]),
    "zstd frames": zstd_frames,
    "one zstd frame": lambda records: zstandard.compress(b"".join(records)),
    "zstd with a dictionary": zstd_with_dictionary,
}
TEN = [record(n) for n in range(10)]


@pytest.fixture(params=sorted(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Pack:
    return LAYOUTS[request.param]


@needs_data
@pytest.mark.parametrize(("name", "types"), [(name, types) for name, types, valid in REFERENCES if valid])
def test_a_valid_archive_has_the_records_that_warcio_counts(name: str, types: Counter[str]) -> None:
    _, seen = read(DATA / name)
    known = {t: seen[f"records_{t}"] for t in TYPES if seen[f"records_{t}"]}
    assert known == {t: n for t, n in types.items() if t in TYPES}
    assert seen["records"] == sum(types.values())


@needs_data
@pytest.mark.parametrize(("name", "types"), [(name, types) for name, types, valid in REFERENCES if not valid])
def test_a_malformed_archive_ends_and_says_what_was_wrong(name: str, types: Counter[str]) -> None:
    """What warcio takes for a record there (text files as ARC, headers without a length) is not always one."""
    _, seen = read(DATA / name)
    assert seen["files"] == 1
    fewer = {t: n for t, n in types.items() if t in TYPES and seen[f"records_{t}"] < n}
    assert not fewer or seen["files_damaged"] == 1
    assert seen["records"] or seen["drops"]


@needs_data
def test_archives_that_stop_warcio_are_read_to_their_end() -> None:
    for name, n in (("example-bad-non-chunked.warc.gz", 6), ("example-bad.warc.gz.bad", 6)):
        assert read(DATA / "warc-warcio" / name)[1]["records"] == n
    _, seen = read(DATA / "warc-jwat/jwat-warc/src/test/resources/invalid-warcfile-record-then-garbage.warc")
    assert (seen["records_response"], seen["drops"]["not_a_record"]) == (1, 1)


@needs_data
@pytest.mark.parametrize("name", [name for name, _, _ in REFERENCES])
def test_real_archives_resume_after_any_document(name: str) -> None:
    whole, _ = read(DATA / name)
    step = 1 + len(whole) // 8
    for k in range(0, len(whole), step):
        with closing(Archives(str(DATA / name))) as source:
            assert list(islice(source.read(whole[k][1]), 12)) == whole[k + 1 : k + 13]


@needs_data
def test_the_text_of_real_records_is_delivered() -> None:
    [wet], _ = read(DATA / "warc-commoncrawl" / "whirlwind.warc.wet.gz")
    assert wet[0].url == "https://an.wikipedia.org/wiki/Escopete"
    assert wet[0].at == "2024-05-18T01:58:10Z"
    assert wet[0].id.startswith("urn:uuid:")
    assert b"Escopete" in wet[0].text
    [html], _ = read(DATA / "warc-commoncrawl" / "whirlwind.warc.gz")
    assert b"Escopete" in html[0].text
    assert b"<div" not in html[0].text
    documents, seen = read(DATA / "warc-jwat" / "jwat-arc/src/test/resources/small_BNF.arc")
    assert documents[0][0].at == "1997-04-17T17:57:10Z"
    assert documents[0][0].url == "http://cctr.umkc.edu:80/user/jbenz/tst.htm"
    assert seen["documents"] == len(documents) <= 3


@needs_data
def test_a_directory_holds_its_archives_and_nothing_else() -> None:
    documents, seen = read(DATA / "warc-commoncrawl")
    assert seen["files"] == 8
    assert len({str(cursor.at["file"]) for _, cursor in documents}) >= 6


def test_every_layout_has_the_same_texts_and_resumes_after_each(layout: Pack, tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(layout(TEN))
    whole, seen = read(path)
    assert texts(whole) == [b"text number %d, of a page" % n for n in range(10)]
    assert [d.id for d, _ in whole] == [f"urn:uuid:{n}" for n in range(10)]
    assert seen["drops"] == {}
    for k, (_, cursor) in enumerate(whole):
        again = Cursor(cursor.source, json.loads(json.dumps(cursor.at)))
        assert read(path, again)[0] == whole[k + 1 :]


@pytest.mark.parametrize("name", ["plain", "gzip members", "zstd frames"])
def test_resuming_does_not_read_what_came_before(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(LAYOUTS[name](TEN))
    whole, _ = read(path)
    cursor = whole[4][1]
    data = bytearray(path.read_bytes())
    member = cursor.at["member"]
    assert isinstance(member, int)
    assert member > 100
    data[:member] = b"x" * member
    path.write_bytes(data)
    assert read(path, cursor)[0] == whole[5:]


def test_a_file_that_was_exchanged_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(TEN))
    cursor = read(path)[0][3][1]
    path.write_bytes(b"".join([record(99), *TEN]))
    with pytest.raises(SourceError, match="was changed in between"):
        list(Archives(str(path)).read(cursor))


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_an_archive_cut_anywhere_gives_every_record_before_the_cut(name: str, tmp_path: Path) -> None:
    data = LAYOUTS[name](TEN[:4])
    path = tmp_path / "a.warc"
    for n in range(1, len(data), 7):
        path.write_bytes(data[:n])
        found, seen = read(path)
        expected = [b"text number %d, of a page" % i for i in range(4)]
        got = texts(found)
        if got and got[-1] != expected[len(got) - 1]:
            assert expected[len(got) - 1].startswith(got.pop()), "a record cut short is delivered as far as it goes"
            assert seen["drops"]["record_cut_short"] == 1
        assert got == expected[: len(got)]
        if name == "plain":
            assert len(got) >= data[:n].count(b", of a page")


@pytest.mark.parametrize("name", ["gzip members", "zstd frames"])
def test_damage_stays_within_its_member(name: str, tmp_path: Path) -> None:
    """Random bytes anywhere in one member: the records of the others are all there, each once, in order."""
    members = [LAYOUTS[name]([r]) for r in TEN]
    path = tmp_path / "a.warc"
    chance = random.Random(5)
    for _ in range(150):
        victim = chance.randrange(10)
        hurt = bytearray(members[victim])
        start = chance.randrange(len(hurt))
        for i in range(start, min(len(hurt), start + chance.randint(1, 60))):
            hurt[i] = chance.randrange(256)
        path.write_bytes(b"".join([*members[:victim], bytes(hurt), *members[victim + 1 :]]))
        others = [b"text number %d, of a page" % n for n in range(10) if n != victim]
        if victim == 0 and hurt[:4] != members[0][:4]:
            continue  # the file does not look compressed any more
        found = texts(read(path)[0])
        assert [text for text in found if text in others] == others


def test_a_damaged_dictionary_is_counted(tmp_path: Path) -> None:
    broken = zstandard.compress(b"x" * 500)[:-9] + b"y" * 9
    frame = b"\x5d\x2a\x4d\x18" + len(broken).to_bytes(4, "little") + broken
    (tmp_path / "a.warc.zst").write_bytes(frame + zstd_frames(TEN))
    found, seen = read(tmp_path)
    assert len(found) == 10
    assert seen["drops"]["damaged_dictionary"] == 1


def test_a_lying_length_does_not_hide_what_follows(tmp_path: Path) -> None:
    for length in ("3", "99999999", "999999999999999999", "many", ""):
        path = tmp_path / "a.warc"
        path.write_bytes(b"".join([TEN[0], record(1, Content_Length=length), *TEN[2:]]))
        found, seen = read(path)
        assert [d.id for d, _ in found if d.id != "urn:uuid:1"] == [f"urn:uuid:{n}" for n in range(10) if n != 1]
        assert seen["files_damaged"] == 1
        assert sum(seen["drops"].values()) >= 1


def test_damage_is_logged_in_one_line_per_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.warc").write_bytes(b"garbage\n" + b"".join(TEN) + b"\nmore of it")
    with caplog.at_level(logging.WARNING):
        found, _ = read(tmp_path)
    assert len(found) == 10
    [line] = [r.getMessage() for r in caplog.records]
    assert "a.warc is damaged (2 x not_a_record); its other records, 10, were read" in line


def test_a_file_that_makes_us_read_it_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "RESCAN_BYTES", 1 << 20)
    fake = gzip.compress(b"WARC/1.0\r\n" + random.Random(1).randbytes(5000))[:-8]  # opens as a record does, then breaks
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(TEN[0]) + fake * 300)
    found, seen = read(tmp_path)
    assert len(found) == 1
    assert seen["drops"]["too_much_damage"] == 1
    lies = b"".join(record(n, Content_Length="99999999") for n in range(1, 200))
    (tmp_path / "a.warc.gz").write_bytes(TEN[0] + lies)
    found, seen = read(tmp_path)
    assert found[0][0].id == "urn:uuid:0"
    assert seen["drops"]["too_much_damage"] == 1


def test_only_text_is_delivered_and_the_rest_has_a_reason(tmp_path: Path) -> None:
    page = b"<html><body><p>" + b"A sentence of this page that is long enough. " * 20 + b"</p></body></html>"
    ok = "HTTP/1.1 200 OK\nContent-Type: text/html"
    chunked = b"%x\r\n" % len(page) + page + b"\r\n0\r\n\r\n"
    records = [
        record(0, b"software: x", WARC_Type="warcinfo"),
        http_record(1, ok, page),
        http_record(2, ok + "\nContent-Encoding: gzip", gzip.compress(page)),
        http_record(3, ok + "\nTransfer-Encoding: chunked", chunked),
        http_record(4, ok + "\nContent-Encoding: gzip", page),  # stored already decoded
        http_record(5, "HTTP/1.1 404 Not Found\nContent-Type: text/html", page),
        http_record(6, "HTTP/1.1 200 OK\nContent-Type: image/png", b"\x89PNG\0"),
        http_record(7, ok + "\nContent-Encoding: gzip", b"\x1f\x8b\x08\0" + b"\xff" * 60),
        http_record(8, "no http at all", b""),
        record(9, b"plain resource, as it is", WARC_Type="resource"),
        record(10, b"x" * 5000),
        record(11, b"20080430204825 1.2.3.4", WARC_Type="response", WARC_Target_URI="dns:example.org"),
        http_record(12, ok + "\nContent-Encoding: gzip", gzip.compress(bytes(4_000_000))),
    ]
    (tmp_path / "a.warc.gz").write_bytes(gzip_members(records))
    found, seen = read(tmp_path, max_record_bytes=4500, max_text_bytes=1_000_000)
    assert [d.id for d, _ in found] == [f"urn:uuid:{n}" for n in (1, 2, 3, 4, 9)]
    assert len(set(texts(found)[:4])) == 1
    assert texts(found)[0].strip().startswith(b"A sentence of this page")
    assert texts(found)[4].strip() == b"plain resource, as it is"
    drops = dict(seen["drops"])
    for reason in ("http_status", "bad_encoding", "not_an_http_answer", "record_too_long", "not_http"):
        assert drops.pop(reason) == 1
    assert drops.pop("payload_too_long") == 1
    assert sum(drops.values()) == 1, "the image"
    assert seen["records"] == 13
    assert seen["records_warcinfo"] == 1


def test_a_record_without_an_id_is_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(record(1, WARC_Record_ID="") + record(2, WARC_Record_ID="<" + "x" * 300 + ">"))
    ids = [d.id for d, _ in read(path)[0]]
    assert ids == ["a.warc@0+0", f"a.warc@{len(record(1, WARC_Record_ID=''))}+0"]


def test_without_any_text_it_says_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(record(1, b"x", WARC_Type="metadata"))
    with pytest.raises(SourceError, match=r"empty stream: no text in 1 archives .* \(1 records\)"):
        list(Archives(str(tmp_path)).read(None))
    with pytest.raises(SourceError, match="no file or directory"):
        Archives(str(tmp_path / "b.warc"))
    for url, why in (("http://h:123456/", "is not a URL"), ("https:///a.warc", "names no host")):
        with pytest.raises(SourceError, match=why):
            Archives(url)


@pytest.mark.parametrize("at", [{}, {"file": "a.warc"}, {"file": "a.warc", "member": -1, "skip": 0}])
def test_a_foreign_cursor_is_refused(at: dict, tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(TEN[0])
    for cursor in (Cursor("files", at), Cursor("warc", at)):
        with pytest.raises(SourceError, match="does not belong"):
            list(Archives(str(tmp_path)).read(cursor))


def test_a_closed_read_delivers_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"".join(TEN))
    source = Archives(str(tmp_path))
    documents = source.read(None)
    next(documents)
    source.close()
    assert list(documents) == []


class Server:
    """Serves one file, badly if told to."""

    def __init__(self, data: bytes) -> None:
        self.data, self.tag, self.honours_range = data, '"1"', True
        self.cut_after: int | None = None
        self.stalls = False
        self.starts: list[int] = []
        self.release = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        told: Server = self.server.told  # type: ignore[attr-defined]
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.warc.gz")
            self.end_headers()
            return
        ranged = self.headers.get("Range")
        start = int(ranged.removeprefix("bytes=").removesuffix("-")) if ranged and told.honours_range else 0
        told.starts.append(start)
        body = told.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", told.tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(told.data) - 1}/{len(told.data)}")
        self.end_headers()
        self.wfile.write(body[: told.cut_after])
        self.wfile.flush()
        if told.stalls:
            told.release.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(data: bytes) -> Iterator[tuple[Server, str, str]]:
    """The server, its URL and what to allow."""
    told = Server(data)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.told = told  # type: ignore[attr-defined]
        server.daemon_threads = True
        thread = threading.Thread(target=socketserver.BaseServer.serve_forever, args=(server, 0.05), daemon=True)
        thread.start()
        try:
            place = f"127.0.0.1:{server.server_address[1]}"
            yield told, f"http://{place}/a.warc.gz", place
        finally:
            told.release.set()
            server.shutdown()


def test_a_remote_archive_is_read_and_resumed_like_a_local_one(tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(data := gzip_members(TEN))
    local = texts(read(tmp_path)[0])
    with serving(data) as (told, url, place):
        whole, _ = read(url, allow=(place,))
        assert texts(whole) == local
        assert texts(read(url.replace("a.warc.gz", "moved"), allow=(place,))[0]) == local
        for honours_range in (True, False):
            told.honours_range = honours_range
            for k, (_, cursor) in enumerate(whole):
                told.starts.clear()
                assert read(url, cursor, allow=(place,))[0] == whole[k + 1 :]
                assert told.starts[-1] == (cursor.at["member"] if honours_range else 0)


def test_a_connection_that_dies_again_and_again_loses_nothing() -> None:
    chance = random.Random(3)
    with serving(gzip_members([record(n, chance.randbytes(4000).hex().encode()) for n in range(20)])) as (
        told,
        url,
        place,
    ):
        whole = texts(read(url, allow=(place,))[0])
        told.cut_after = 20_000
        assert texts(read(url, allow=(place,))[0]) == whole
        assert len(told.starts) > 4


def test_a_remote_archive_that_changes_while_it_is_read_is_an_error() -> None:
    chance = random.Random(3)
    with serving(gzip_members([record(n, chance.randbytes(4000).hex().encode()) for n in range(200)])) as (
        told,
        url,
        place,
    ):
        told.cut_after = 100_000
        documents = Archives(url, ArchivesSettings(allow=(place,))).read(None)
        next(documents)
        told.tag = '"2"'
        with pytest.raises(SourceError, match="changed while it was being read"):
            list(documents)


def test_a_private_address_is_refused_unless_it_is_named() -> None:
    with serving(gzip_members(TEN)) as (told, url, _):
        with pytest.raises(SourceError, match="refused"):
            list(Archives(url).read(None))
        assert not told.starts


def test_a_silent_server_does_not_hold_up_the_end() -> None:
    with serving(gzip_members(TEN)) as (told, url, place):
        told.stalls, told.cut_after = True, 50
        source = Archives(url, ArchivesSettings(allow=(place,)))
        ended = threading.Event()

        def run() -> None:
            with suppress(SourceError):
                list(source.read(None))
            ended.set()

        threading.Thread(target=run, daemon=True).start()
        assert not ended.wait(0.3), "it should wait for the rest"
        source.close()
        assert ended.wait(30)

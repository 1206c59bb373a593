"""Documents as messages: they come back the same, parts keep every byte, and what is malformed is no document."""

import json
import random
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livelm.errors import ConfigError, SourceError
from livelm.sources.brokers.address import BrokerSettings, parse_address, read_secret
from livelm.sources.brokers.message import (
    MAX_HEADER_BYTES,
    MAX_RANGES,
    Drops,
    MalformedMessage,
    Recent,
    key,
    pack,
    pieces,
    unpack,
)
from livelm.sources.brokers.patience import Lost, Patience
from livelm.types import Document

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(st.binary(max_size=200), text, text, st.none() | text, st.none() | text, st.data())
def test_a_whole_document_comes_back_the_same(
    body: bytes, name: str, source: str, at: str | None, url: str | None, data: st.DataObject
) -> None:
    ends = st.integers(0, len(body))
    context = data.draw(st.lists(st.tuples(ends, ends).map(lambda r: (min(r), max(r))), max_size=5))
    document = Document(text=body, id=name, source=source, at=at, url=url, context=tuple(context))
    header = pack(document)
    assert header.isascii()
    assert "\n" not in header
    assert unpack(header, body) == unpack(header.encode(), body) == document


@given(st.binary(max_size=300), st.integers(4, 80), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300))))
def test_parts_keep_every_byte_and_what_is_context(body: bytes, most: int, ranges: list[tuple[int, int]]) -> None:
    ranges = [(a, min(b, len(body))) for a, b in ranges if a < len(body)]
    parts = list(pieces(Document(text=body, id="x", source="s", context=tuple(ranges)), most))
    assert b"".join(part.text for part in parts) == body
    assert all(len(part.text) <= most and part.last and not part.offset for part in parts)
    start, covered = 0, set()
    for part in parts:
        assert part.id == ("x" if not start else f"x+{start}")
        covered |= {start + i for a, b in part.context for i in range(a, b)}
        start += len(part.text)
    assert covered == {i for a, b in ranges for i in range(a, b)}


def test_parts_do_not_cut_characters() -> None:
    body = ("aé€😀" * 50).encode()
    for most in range(4, 20):
        assert "".join(p.text.decode() for p in pieces(Document(text=body, id="x", source="s"), most)).encode() == body


def test_a_part_of_a_piece_is_named_by_its_place_in_the_document() -> None:
    piece = Document(text=b"0123456789", id="x", source="s", offset=100, last=False)
    assert [part.id for part in pieces(piece, 6)] == ["x+100", "x+106"]


def test_a_document_with_many_ranges_fits_into_small_headers() -> None:
    body = b"ab" * 5000
    document = Document(text=body, id="x", source="s", context=tuple((2 * i, 2 * i + 1) for i in range(5000)))
    parts = list(pieces(document, 1 << 20))
    assert len(parts) == 5
    assert all(len(part.context) <= MAX_RANGES for part in parts)
    assert sum(len(part.context) for part in parts) == 5000
    for part in parts:
        assert unpack(pack(part), part.text) == part


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[]",
        "null",
        "1",
        b"\xff\xfe",
        "[" * 60_000,
        "{}",
        '{"v":1}',
        '{"v":2,"id":"x","source":"s"}',
        '{"v":1,"id":"","source":"s"}',
        '{"v":1,"id":7,"source":"s"}',
        '{"v":1,"id":"x","source":null}',
        '{"v":1,"id":"\\ud800","source":"s"}',
        '{"v":1,"id":"x","source":"s","at":5}',
        '{"v":1,"id":"x","source":"s","url":[]}',
        '{"v":1,"id":"x","source":"s","context":{"a":1}}',
        '{"v":1,"id":"x","source":"s","context":[[0]]}',
        '{"v":1,"id":"x","source":"s","context":[[3,1]]}',
        '{"v":1,"id":"x","source":"s","context":[[0,99]]}',
        '{"v":1,"id":"x","source":"s","context":[[-1,1]]}',
        '{"v":1,"id":"x","source":"s","context":[["0","1"]]}',
        json.dumps({"v": 1, "id": "x", "source": "s", "context": [[0, 1]] * (MAX_RANGES + 1)}),
        json.dumps({"v": 1, "id": "x" * MAX_HEADER_BYTES, "source": "s"}),
    ],
)
def test_what_is_malformed_is_no_document(header: str | bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack(header, b"body")


@given(st.binary(max_size=100))
def test_no_header_does_more_harm_than_that(header: bytes) -> None:
    with suppress(MalformedMessage):
        unpack(header, b"body")


def test_a_document_too_odd_to_describe_is_an_error() -> None:
    with pytest.raises(SourceError, match="cannot be published"):
        pack(Document(text=b"", id="x" * MAX_HEADER_BYTES, source="s"))


def test_the_key_says_what_a_message_is_and_not_when() -> None:
    one = Document(text=b"t", id="x", source="s", at="2026-01-01")
    assert key(one) == key(Document(text=b"t", id="x", source="s", at="2026-01-02"))
    others = [
        Document(text=b"u", id="x", source="s"),
        Document(text=b"t", id="y", source="s"),
        Document(text=b"t", id="x", source="r"),
        Document(text=b"t", id="x", source="s", offset=1),
        Document(text=b"t", id="x", source="s", last=False),
    ]
    assert len({key(document) for document in [one, *others]}) == 6


@given(st.lists(st.sampled_from([None, "a", "b", "c", "d"]), max_size=60), st.integers(0, 8), st.data())
def test_the_window_of_keys_is_exact_and_can_be_built_again(
    keys: list[str | None], reach: int, data: st.DataObject
) -> None:
    """The plain rule beside the fast one, also when everything but the last `reach` places is forgotten."""
    recent, answers = Recent(reach), []
    for place, name in enumerate(keys):
        answers.append(recent.repeats(name, place))
        assert answers[-1] == (name is not None and name in keys[max(0, place - reach) : place])
    k = data.draw(st.integers(0, len(keys)))
    again = Recent(reach)
    for place in range(max(0, k - reach), k):
        again.repeats(keys[place], place)
    assert [again.repeats(keys[place], place) for place in range(k, len(keys))] == answers[k:]


def test_the_window_of_keys_stays_small() -> None:
    recent = Recent(100)
    for place in range(10_000):
        recent.repeats(str(random.Random(place).random()), place)
    assert len(recent._places) <= 101
    assert len(recent._order) <= 101


def test_drops_are_counted_always_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    drops = Drops("nats://x")
    for i in range(1000):
        drops.add("malformed", f"message {i}")
    drops.add("empty", "message 5", 3)
    assert drops.counts() == {"malformed": 1000, "empty": 3}
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("target", "user", "place", "path"),
    [
        ("nats://host/S/a.b", "", "host:4222", "S/a.b"),
        ("nats://ann@host:1/S", "ann", "host:1", "S"),
        ("nats://a%40b@[::1]:9/S/a.%3E", "a@b", "[::1]:9", "S/a.>"),
    ],
)
def test_an_address_is_read(target: str, user: str, place: str, path: str) -> None:
    address = parse_address(target, "nats", 4222, "STREAM/SUBJECT")
    assert (address.user, address.place, address.path) == (user, place, path)


@pytest.mark.parametrize(
    "target", ["nats:", "nats://", "nats:///S", "nats://host", "nats://host/", "nats://host:x/S", "nats://host:0/S",
               "nats://host:99999/S", "kafka://host/S", "nats://::1/S"]
)  # fmt: skip
def test_what_is_no_address_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"nats://|there is no port"):
        parse_address(target, "nats", 4222, "STREAM/SUBJECT")


@pytest.mark.parametrize("target", ["nats://ann:s3cret@host/S", "nats://:s3cret@host/S", "nats://a:s3cret@host:x/S"])
def test_a_password_in_a_uri_is_refused_and_not_repeated(target: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_address(target, "nats", 4222, "STREAM/SUBJECT")
    assert "s3cret" not in str(refused.value)


def test_a_secret_comes_from_a_file(tmp_path) -> None:
    path = tmp_path / "password"
    assert read_secret(BrokerSettings()) == ""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_secret(BrokerSettings(credentials_file=str(path)))
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_secret(BrokerSettings(credentials_file=str(path)))
    path.write_text("s3cret\n")
    assert read_secret(BrokerSettings(credentials_file=str(path))) == "s3cret"


def test_patience_ends_at_once_before_the_first_answer_and_later_after_its_limit() -> None:
    stop = threading.Event()
    stop.set()  # no waiting in tests
    never = Patience("x", 1000, stop)
    with pytest.raises(SourceError, match="not there"):
        never.wait(Lost("not there"))
    reached = Patience("x", 1000, stop)
    reached.reached()
    for _ in range(20):
        reached.wait(Lost("gone"))
    assert reached.n_losses == 1
    reached.reached()
    reached.wait(Lost("gone"))
    assert reached.n_losses == 2
    impatient = Patience("x", 0, stop)
    impatient.reached()
    with pytest.raises(SourceError, match="patience_s"):
        impatient.wait(Lost("gone"))

"""The parts of feeds by themselves: the line protocol, the choice of text, the seam, the waits, the handing over."""

import asyncio
import json
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from livelm.errors import SourceError
from livelm.sources.feeds import Sse, SseSettings, WebSocket, WebSocketSettings
from livelm.sources.feeds.handover import Handover
from livelm.sources.feeds.reconnect import LONGEST_ASKED_S, Backoff, refusal, retry_after_s, user_agent
from livelm.sources.feeds.seam import Seam, key_of
from livelm.sources.feeds.select import Selector, iso_time, time_us, value_at
from livelm.sources.feeds.settings import LiveSettings
from livelm.sources.feeds.sse import SseParser
from livelm.sources.feeds.tally import Tally
from livelm.sources.feeds.websocket import WebSocketWire
from livelm.sources.feeds.wire import Event
from livelm.types import Cursor

STREAM = (
    b"\xef\xbb\xbf: a comment\r\n\r\nid: 1\r\ndata: first\r\ndata:  second \r\n\r\n"
    b"event: x\rdata\rdata:\rid: 2\r\r"
    b"data:{}\nid: bad\x00id\nunknown: y\n\n"
    b"id\ndata: reset\n\nid: 3\n\ndata: never finished\n"
)
EVENTS = [Event(b"first\n second ", "1"), Event(b"\n", "2"), Event(b"{}"), Event(b"reset", "")]
EVENTS.append(Event(b"", "3"))


def parsed(pieces: list[bytes], max_event_bytes: int = 1000) -> list[Event]:
    parser = SseParser(max_event_bytes)
    return [event for piece in pieces for event in parser.feed(piece)]


def test_events_are_the_same_wherever_the_stream_is_cut() -> None:
    assert parsed([STREAM]) == EVENTS
    assert parsed([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS
    for cut in range(len(STREAM)):
        assert parsed([STREAM[:cut], b"", STREAM[cut:]]) == EVENTS


@pytest.mark.parametrize(("line", "seconds"), [(b"1500", 1.5), (b"-1", None), (b"1e3", None), (b"", None)])
def test_retry_is_milliseconds_and_nothing_else(line: bytes, seconds: float | None) -> None:
    parser = SseParser(1000)
    parser.feed(b"retry: " + line + b"\n\n")
    assert parser.retry_s == seconds


def test_what_is_too_large_is_left_out_and_counted_but_moves_the_place() -> None:
    parser = SseParser(100)
    endless = b"data: " + b"x" * 1_000_000
    events = parser.feed(endless) + parser.feed(endless + b"\nid: 7\n\n")
    events += parser.feed(b"data: " + b"y" * 60 + b"\ndata: " + b"y" * 60 + b"\ndata: z\n\n" + b"data: fits\n\n")
    assert events == [Event(b"", "7"), Event(b"fits")]
    assert parser.n_too_large == 2
    assert len(parser._line) < 1000


@pytest.mark.parametrize("seed", range(20))
def test_no_bytes_break_the_parser(seed: int) -> None:
    chance = random.Random(seed)
    words = [b"data", b"id", b"retry", b":", b" ", b"\n", b"\r", b"\0", b"\xff", b"{}", b"9" * 30]
    stream = b"".join(chance.choices(words, k=2000))
    cuts = sorted(chance.sample(range(len(stream)), 50))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parsed(pieces) == parsed([stream])


POST: dict[str, Any] = {
    "did": "did:plc:a",
    "time_us": 1_700_000_000_123_456,
    "kind": "commit",
    "commit": {"rev": "r", "operation": "create", "collection": "app.bsky.feed.post", "rkey": "k"},
}
CHANGE: dict[str, Any] = {
    "meta": {"domain": "de.wikipedia.org", "stream": "recentchange", "id": "uuid", "dt": "2023-11-14T22:13:20.5Z"},
    "title": "Ä",
    "comment": "über",
    "bot": True,
    "n": 3,
}
CHANGE["meta"]["uri"] = "https://de.wikipedia.org/wiki/%C3%84"


def choose(event: Any, event_id: str | None = None, **settings: Any) -> Any:
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    return Selector(LiveSettings(**settings)).choose(data, event_id)


def test_a_jetstream_post_is_its_text_with_time_and_place() -> None:
    chosen = choose(POST | {"commit": POST["commit"] | {"record": {"text": "hé"}}})
    assert (chosen.text, chosen.drop, chosen.shape) == ("hé".encode(), None, "jetstream")
    assert chosen.id == "did:plc:a create app.bsky.feed.post k r"
    assert chosen.url == "at://did:plc:a/app.bsky.feed.post/k"
    assert iso_time(chosen.time_us) == "2023-11-14T22:13:20.123456+00:00"


def test_the_same_jetstream_event_of_another_instance_is_the_same() -> None:
    assert choose(POST).key == choose(POST | {"time_us": POST["time_us"] + 999}).key
    assert choose(POST).key != choose(POST | {"commit": POST["commit"] | {"operation": "delete"}}).key


def test_an_eventstream_change_is_title_and_comment() -> None:
    chosen = choose(CHANGE, '[{"offset": 1}]')
    assert (chosen.text.decode(), chosen.id, chosen.drop) == ("Ä\nüber", "uuid", None)
    assert (chosen.url, iso_time(chosen.time_us)) == (CHANGE["meta"]["uri"], "2023-11-14T22:13:20.500000+00:00")
    assert chosen.key == choose(CHANGE, '[{"offset": 2}]').key  # positions of other partitions may differ


@pytest.mark.parametrize(
    ("event", "settings", "reason"),
    [
        (CHANGE | {"meta": CHANGE["meta"] | {"domain": "canary"}}, {}, "canary"),
        (POST | {"commit": POST["commit"] | {"operation": "delete"}}, {}, "delete"),
        (POST | {"kind": "account", "account": {"seq": 1}}, {}, "kind_account"),
        (POST | {"kind": "surprise"}, {}, "kind_other"),
        (POST, {}, "no_text"),
        (CHANGE, {"drop": ("bot=true",)}, "rule bot=true"),
        (CHANGE, {"drop": ("n=3",)}, "rule n=3"),
        (CHANGE, {"drop": ("meta.stream!=page-create",)}, "rule meta.stream!=page-create"),
        (CHANGE, {"drop": ("missing=null",)}, "rule missing=null"),
        (CHANGE, {"text_fields": ("n", "meta")}, "no_text"),
        (CHANGE, {"max_event_bytes": 64}, "too_large"),
        (b'{"text": "cut of', {}, "malformed"),
        (b'{"text": "\xff"}', {}, "malformed"),
        (b'{"text": "\\ud83d"}', {}, "malformed"),
        (b"[" * 100_000, {}, "malformed"),
        (b"[1, 2]", {}, "malformed"),
        (b"NaN", {}, "malformed"),
        (b"", {"format": "text"}, "no_text"),
    ],
)
def test_what_is_left_out_has_a_reason(event: Any, settings: dict, reason: str) -> None:
    assert choose(event, **settings).drop == reason


def test_rules_that_do_not_apply_leave_nothing_out() -> None:
    rules = ("bot=false", "n=30", "meta.stream!=recentchange", "meta=x", "title.deeper=x")
    assert choose(CHANGE, drop=rules).drop is None


def test_without_a_known_shape_the_whole_json_is_the_text() -> None:
    data = b'{"b": 1,   "a": "x"}'
    assert choose(data).text == data
    assert choose(data, text_fields=("a",)).text == b"x"
    assert choose(b"no json \xff", format="text").text == b"no json \xff"


def test_identity_is_the_field_named_or_id_and_content_or_nothing() -> None:
    event = {"key": 5, "text": "t", "at": 1}
    assert choose(event).key is None
    assert choose(event, "1").key == choose(event, "1").key != choose(event | {"text": "u"}, "1").key
    assert choose(event, id_field="key").key == choose(event | {"text": "u"}, id_field="key").key
    assert choose(event, time_field="at").key not in (None, choose(event | {"at": 2}, time_field="at").key)


@pytest.mark.parametrize("seed", range(20))
def test_no_event_breaks_the_choice(seed: int) -> None:
    chance = random.Random(seed)

    def thing(depth: int) -> Any:
        kinds: list[Callable[[], Any]] = [
            lambda: chance.choice(
                [None, True, -1, 10**30, 1.5, "", "delete", "2023-13-45", "9999-12-31T23:59:59-23:00"]
            ),
            lambda: [thing(depth + 1) for _ in range(2)],
            lambda: {name: thing(depth + 1) for name in chance.sample([*POST, *CHANGE, *POST["commit"], "id"], 5)},
        ]
        return kinds[0 if depth > 3 else chance.randrange(3)]()

    for _ in range(200):
        event = chance.choice([POST, CHANGE, {}]) | {name: thing(0) for name in chance.sample([*POST, *CHANGE], 3)}
        choose(event, drop=("meta=x", "commit!=y"), time_field=chance.choice(["", "meta.dt", "time_us"]))


def test_times_are_whole_microseconds_or_iso() -> None:
    assert value_at({"a": [{"b": 1}]}, "a.0.b") == 1
    assert value_at({"a": []}, "a.0") is value_at({"a": "text"}, "a.b") is value_at({"a": [1]}, "a.-1") is None
    assert time_us("1970-01-01T01:00:01+01:00") == time_us("1970-01-01T00:00:01") == 1_000_000
    assert [time_us(value) for value in (True, -1, 10**20, "x", "1960-01-01", 1.5, None)] == [None] * 7


def test_an_ordered_feed_passes_each_event_once_however_far_it_is_rewound() -> None:
    seam, state = Seam(4), ("", None)
    events: list[tuple[bytes, int]] = [(key_of(b"%d" % k), 1000 + k // 3) for k in range(200)]
    for stop in range(1, 200, 7):  # read on, then everything from the start again
        new = [k for k, event in enumerate(events[:stop]) if seam.is_new(*event)]
        assert new == list(range(max(0, stop - 7), stop))
        for k in new:
            state = seam.deliver(*events[k])
        seam = Seam(4, *state)  # and after a restart
    assert not seam.is_new(key_of(b"before the first"), 999)


def test_a_late_event_is_new_unless_it_is_later_than_the_window_is_long() -> None:
    seam = Seam(4)
    for k in (0, 10, 20, 30):
        assert seam.is_new(key_of(b"%d" % k), k)
        state = seam.deliver(key_of(b"%d" % k), k)
    assert Seam(4, *state).is_new(key_of(b"late"), 15)
    assert not seam.is_new(key_of(b"20"), 20)


def test_without_order_or_identity_only_what_is_remembered_is_a_repetition() -> None:
    seam = Seam(2)
    for name in (b"a", b"b", b"c"):
        assert seam.is_new(key_of(name), None)
        state = seam.deliver(key_of(name), None)
    again = Seam(2, *state)
    assert [again.is_new(key_of(name), None) for name in (b"a", b"b", b"c")] == [True, False, False]
    assert again.is_new(None, None)
    assert again.is_new(None, None)


@pytest.mark.parametrize("seen", ["not base64!", "AAAA", "ä"])
def test_a_damaged_seam_is_refused(seen: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Seam(4, seen)


WS = "wss://example.org/"
SSE = "https://example.org/"


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("sse", {"target": SSE, "place": 5, "seen": "", "floor": None}),
        ("sse", {"target": SSE, "place": "5", "seen": "AAAA", "floor": None}),
        ("sse", {"target": SSE, "place": "5", "seen": "", "floor": "1"}),
        ("sse", {"target": SSE + "other", "place": "5", "seen": "", "floor": None}),
        ("sse", {"target": SSE, "place": "5", "seen": "", "floor": None, "more": 1}),
        ("ws", {"target": WS, "place": "5", "seen": "", "floor": None}),
        ("ws", {"target": WS, "place": True, "seen": "", "floor": None}),
        ("ws", {"target": WS, "place": -5, "seen": "", "floor": None}),
        ("ws", {"target": WS}),
    ],
)
def test_a_foreign_or_damaged_cursor_is_refused(name: str, at: dict) -> None:
    source = Sse(SSE) if name == "sse" else WebSocket(WS)
    with pytest.raises(SourceError, match="does not belong"):
        next(source.read(Cursor(name, at)))


@pytest.mark.parametrize(
    "target", ["", "example.org", "ftp://example.org/", "http://", "http://[::1", "https:///x", SSE]
)
@pytest.mark.parametrize("make", [Sse, WebSocket])
def test_a_target_that_is_no_url_of_the_protocol_is_refused(make: Any, target: str) -> None:
    if (make, target) != (Sse, SSE):
        with pytest.raises(SourceError, match="Write it as"):
            make(target)


def test_the_cursor_replaces_one_in_the_url_and_leaves_the_rest_alone() -> None:
    wire = WebSocketWire(WS + "subscribe?a=b%2Fc&cursor=1&a=d", WebSocketSettings(rewind_s=2), Tally("t"))
    assert wire._address(None) == WS + "subscribe?a=b%2Fc&cursor=1&a=d"
    assert wire._address(5_000_000) == WS + "subscribe?a=b%2Fc&a=d&cursor=3000000"
    assert wire._address(0) == WS + "subscribe?a=b%2Fc&a=d&cursor=0"


def test_a_time_in_the_future_says_nothing_about_how_far_one_has_read() -> None:
    auto, never = (WebSocketWire(WS, WebSocketSettings(cursor_parameter=name), Tally("t")) for name in ("auto", ""))
    assert auto.order(5, "jetstream") == 5
    assert auto.order(5, "") is auto.order(None, "jetstream") is never.order(5, "jetstream") is None
    assert auto.order(4_000_000_000_000_000, "jetstream") is None


@pytest.mark.parametrize("change", [{"drop": ("x",)}, {"drop": ("=x",)}, {"contact": "a\r\nb: c"}, {"queue_events": 0}])
def test_wrong_settings_are_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        SseSettings(**change)
    with pytest.raises(ValidationError):
        WebSocketSettings(from_cursor="yesterday")


def test_waits_double_with_full_jitter_up_to_a_bound_and_are_short_again_after_success() -> None:
    longest = Backoff(1.0, 10.0, draw=lambda: 1.0)
    assert [longest.next_s() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    longest.succeeded()
    assert longest.next_s() == 1
    assert Backoff(1.0, 10.0, draw=lambda: 0.0).next_s() == 0
    many = Backoff(1.0, 10.0)
    many.n_failures = 10_000
    assert 0 <= many.next_s() <= 10


def test_a_server_may_ask_for_longer_but_not_for_ever() -> None:
    backoff = Backoff(1.0, 2.0, draw=lambda: 0.5)
    assert backoff.next_s(after_s=30.0) == 30
    backoff.asked_s = 3.0
    assert backoff.next_s() == 3
    assert backoff.next_s(after_s=1e9) == LONGEST_ASKED_S


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    for text, seconds in [
        ("120", 120),
        (" 7 ", 7),
        ("9" * 50, LONGEST_ASKED_S),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 12:00:30 -0000", 30),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("Thu, 01 Jan 2037 11:00:00 GMT", LONGEST_ASKED_S),
        ("soon", 0),
        ("-5", 0),
        ("²", 0),
        ("", 0),
    ]:
        assert retry_after_s({"Retry-After": text}, now) == seconds, text


def test_a_status_lasts_or_passes() -> None:
    lasting = {status for status in (204, 302, 400, 404, 408, 429, 500, 503) if refusal(status, "", {}).lasting}
    assert lasting == {204, 302, 400, 404}


def test_the_user_agent_says_the_product_and_whom_to_ask() -> None:
    assert user_agent("").startswith("livelm/")
    assert user_agent("https://example.org/bot").endswith(" (+https://example.org/bot)")


def filled(n: int, n_bytes: int = 1, **settings: Any) -> tuple[Handover[int], Tally]:
    tally = Tally("t")
    handover: Handover[int] = Handover(LiveSettings(**settings), tally)
    for k in range(n):
        asyncio.run(handover.put(k, n_bytes, (k * 0.618) % 1))
    return handover, tally


def test_a_full_handover_waits_for_the_reader() -> None:
    handover, tally = filled(3, queue_events=3)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(handover.put(3, 1, 0), 0.05))
    threading.Timer(0.05, handover.get).start()
    asyncio.run(handover.put(4, 1, 0))
    assert [handover.get() for _ in range(3)] == [1, 2, 4]
    assert tally.drops() == {}


def test_bytes_are_bounded_too_but_one_item_always_fits() -> None:
    handover, tally = filled(5, n_bytes=600, queue_bytes=1024, overflow="drop_oldest")
    assert handover.size() == (1, 600)
    asyncio.run(handover.put(9, 10_000, 0))
    assert (handover.size(), handover.get()) == ((1, 10_000), 9)
    assert tally.drops() == {"overflow_oldest": 5}


def test_sampling_thins_out_beyond_half_full_and_never_overflows() -> None:
    handover, tally = filled(1000, queue_events=100, overflow="sample")
    kept, _ = handover.size()
    assert 60 < kept <= 100
    assert tally.drops() == {"overflow_sample": 1000 - kept}
    assert [handover.get() for _ in range(50)] == list(range(50))


def test_a_failure_comes_after_what_came_before_it_and_closing_ends_all() -> None:
    handover, _ = filled(2)
    handover.fail(SourceError("gone"))
    assert [handover.get(), handover.get()] == [0, 1]
    with pytest.raises(SourceError, match="gone"):
        handover.get()
    handover.close()
    assert handover.get() is None
    asyncio.run(handover.put(1, 1, 0))
    assert handover.size() == (0, 0)

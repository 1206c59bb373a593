"""What of an event is the text, what names it, when it was, and which events are left out by rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from livelm.sources.feeds.seam import key_of
from livelm.sources.feeds.settings import RULE, LiveSettings

MAX_ID_BYTES = 256
LATEST_US = 253_402_300_799_999_999
"""The last microsecond of the year 9999: beyond it there is no ISO 8601 date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What an event comes to."""

    drop: str | None = None
    """Why it is left out; None when it becomes a document."""
    text: bytes = b""
    id: str = ""
    """The document's id."""
    key: bytes | None = None
    """What it is recognised by when it is repeated; None: it has no identity."""
    time_us: int | None = None
    """When it happened, in microseconds since 1970."""
    url: str | None = None
    shape: str = ""
    """The known shape it has."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A known form of events."""

    name: str
    fits: Callable[[dict[str, Any]], bool]
    identity: Callable[[dict[str, Any]], str | None]
    reason: Callable[[dict[str, Any]], str | None]
    """Why an event is left out whatever the settings."""
    url: Callable[[dict[str, Any]], str | None]
    text_paths: tuple[str, ...]
    time_path: str


def value_at(event: Any, path: str) -> Any:
    """What a dotted path leads to, through objects and (by number) arrays; None when it leads nowhere.

    >>> value_at({"commit": {"langs": ["en"]}}, "commit.langs.0")
    'en'
    """
    for name in path.split("."):
        if isinstance(event, dict):
            event = event.get(name)
        elif (
            isinstance(event, list) and name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(event)
        ):
            event = event[int(name)]
        else:
            return None
    return event


def _is_jetstream(event: dict[str, Any]) -> bool:
    return (
        type(event.get("time_us")) is int and isinstance(event.get("did"), str) and isinstance(event.get("kind"), str)
    )


def _jetstream_identity(event: dict[str, Any]) -> str | None:
    """Without the time: another instance of the service gives the same event another one."""
    commit = event.get("commit")
    if isinstance(commit, dict):
        parts = [commit.get(name) for name in ("operation", "collection", "rkey", "rev")]
    else:
        parts = [event["kind"], value_at(event, f"{event['kind']}.seq")]
    return " ".join(map(str, [event["did"], *parts])) if all(isinstance(part, str | int) for part in parts) else None


def _jetstream_reason(event: dict[str, Any]) -> str | None:
    if event["kind"] != "commit":
        return f"kind_{event['kind']}" if event["kind"] in ("account", "identity") else "kind_other"
    return "delete" if value_at(event, "commit.operation") == "delete" else None


def _jetstream_url(event: dict[str, Any]) -> str | None:
    collection, key = value_at(event, "commit.collection"), value_at(event, "commit.rkey")
    return f"at://{event['did']}/{collection}/{key}" if isinstance(collection, str) and isinstance(key, str) else None


def _is_eventstream(event: dict[str, Any]) -> bool:
    meta = event.get("meta")
    return isinstance(meta, dict) and isinstance(meta.get("stream"), str)


def _string_at(path: str) -> Callable[[dict[str, Any]], str | None]:
    def find(event: dict[str, Any]) -> str | None:
        value = value_at(event, path)
        return value if isinstance(value, str) and value else None

    return find


JETSTREAM = Shape(
    name="jetstream",
    fits=_is_jetstream,
    identity=_jetstream_identity,
    reason=_jetstream_reason,
    url=_jetstream_url,
    text_paths=("commit.record.text",),
    time_path="time_us",
)
"""github.com/bluesky-social/jetstream: commits to repositories, of which posts have text."""

EVENTSTREAMS = Shape(
    name="eventstreams",
    fits=_is_eventstream,
    identity=_string_at("meta.id"),
    reason=lambda event: "canary" if value_at(event, "meta.domain") == "canary" else None,
    url=_string_at("meta.uri"),
    text_paths=("title", "page_title", "comment"),
    time_path="meta.dt",
)
"""wikitech.wikimedia.org/wiki/Event_Platform/EventStreams: changes of pages."""

SHAPES = (JETSTREAM, EVENTSTREAMS)


class Selector:
    """Chooses from events by the settings and the known shapes."""

    def __init__(self, settings: LiveSettings) -> None:
        self._settings = settings
        self._rules = [(rule, *_parse_rule(rule)) for rule in settings.drop]

    def choose(self, data: bytes, event_id: str | None = None) -> Chosen:
        """Look at one event; `event_id` is what the protocol calls it, if it does. Never raises."""
        if len(data) > self._settings.max_event_bytes:
            return Chosen(drop="too_large")
        if self._settings.format == "text":
            return Chosen(drop=None if data else "no_text", text=data, id=_name(data), key=_key(None, event_id, data))
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            event = None
        if isinstance(event, dict):
            return self._choose(data, event, event_id)
        return Chosen(drop="malformed", key=_key(None, event_id, data))

    def _choose(self, data: bytes, event: dict[str, Any], event_id: str | None) -> Chosen:
        shape = next((shape for shape in SHAPES if shape.fits(event)), None)
        identity = self._identity(event, shape)
        time_path = self._settings.time_field or (shape.time_path if shape else "")
        at_us = time_us(value_at(event, time_path)) if time_path else None
        reason = (shape.reason(event) if shape else None) or self._broken_rule(event)
        text = b"" if reason else self._text(data, event, shape)
        return Chosen(
            drop=reason or (None if text else "no_text"),
            text=text,
            id=identity if identity and len(identity) <= MAX_ID_BYTES else _name(data),
            key=_key(identity, event_id if at_us is None else f"{event_id} {at_us}", data),
            time_us=at_us,
            url=shape.url(event) if shape else None,
            shape=shape.name if shape else "",
        )

    def _identity(self, event: dict[str, Any], shape: Shape | None) -> str | None:
        if self._settings.id_field:
            value = value_at(event, self._settings.id_field)
            return str(value) if isinstance(value, str | int) and value != "" else None
        return shape.identity(event) if shape else None

    def _broken_rule(self, event: dict[str, Any]) -> str | None:
        for rule, path, wanted, value in self._rules:
            if (_as_written(value_at(event, path)) == value) is wanted:
                return f"rule {rule}"
        return None

    def _text(self, data: bytes, event: dict[str, Any], shape: Shape | None) -> bytes:
        paths: Sequence[str] = self._settings.text_fields or (shape.text_paths if shape else ())
        if not paths:
            return data
        found = (value_at(event, path) for path in paths)
        return "\n".join(value for value in found if isinstance(value, str) and value).encode("utf-8", "replace")


def time_us(value: Any) -> int | None:
    """Microseconds since 1970 of a whole number of them or of an ISO 8601 time; None for anything else.

    >>> time_us("1970-01-01T00:00:01Z")
    1000000
    """
    if type(value) is int:
        return value if 0 <= value <= LATEST_US else None
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        at = datetime.fromisoformat(value)
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    us = (seconds.days * 86_400 + seconds.seconds) * 1_000_000 + seconds.microseconds
    return us if us >= 0 else None


def iso_time(us: int) -> str:
    """ISO 8601 in UTC, exact to the microsecond.

    >>> iso_time(1_000_000)
    '1970-01-01T00:00:01+00:00'
    """
    return datetime.fromtimestamp(us // 1_000_000, UTC).replace(microsecond=us % 1_000_000).isoformat()


def _parse_rule(rule: str) -> tuple[str, bool, str]:
    """The path, whether the value must be equal for the event to be dropped, and the value."""
    match = RULE.fullmatch(rule)
    assert match is not None, "the settings check this"  # noqa: S101
    return match[1], match[2] == "=", match[3]


def _as_written(value: Any) -> str | None:
    """A scalar as JSON writes it, strings without quotes; None for what is no scalar."""
    if isinstance(value, dict | list):
        return None
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _key(identity: str | None, event_id: str | None, data: bytes) -> bytes | None:
    """By identity; else by id or time and content: servers give one id to several events of the same millisecond."""
    if identity is not None:
        return key_of(identity.encode("utf-8", "replace"))
    return None if event_id is None else key_of(event_id.encode("utf-8", "replace") + b"\0" + data)


def _name(data: bytes) -> str:
    return key_of(data).hex()

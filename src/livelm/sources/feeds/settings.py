"""What can be set about feeds: which text of which events, how a silent or lost connection is treated, all bounds."""

import re
from typing import Literal

from pydantic import Field, field_validator

from livelm.config import Settings

RULE = re.compile(r"([^=!]+)(!=|=)(.*)", re.DOTALL)
"""A drop rule: a dotted path, `=` or `!=`, and a value as JSON writes it (strings without quotes)."""


class LiveSettings(Settings):
    """What every feed has in common."""

    format: Literal["json", "text"] = "json"
    """What an event holds. An event that is no JSON object is dropped under `json`, and is the text under `text`."""
    text_fields: tuple[str, ...] = Field(default=(), max_length=32)
    """Dotted paths of the strings that make the text, such as "commit.record.text", one a line. Empty: those of a
    known shape (Jetstream: the post; EventStreams: title and comment), else the event's whole JSON."""
    id_field: str = ""
    """Dotted path of what identifies an event. Empty: that of a known shape; else id and content together."""
    time_field: str = ""
    """Dotted path of an event's time: microseconds since 1970, or ISO 8601. Empty: that of a known shape."""
    drop: tuple[str, ...] = Field(default=(), max_length=64)
    """Events to leave out: "path=value" or "path!=value", such as "bot=true" or "type!=edit"; a missing path is null.
    Canary events of EventStreams and deletions of Jetstream are left out (and counted) in any case."""
    from_cursor: str = Field(default="", max_length=8192, pattern=r"^[\x20-\x7e]*$")
    """Where a new run begins: after this event id. Empty: now."""
    allow: tuple[str, ...] = Field(default=(), max_length=256)
    """Hosts, as "host" or "host:port", that may have private or loopback addresses."""
    contact: str = Field(default="", max_length=200, pattern=r"^[\x20-\x7e]*$")
    """A URL or mail address of yours for the User-Agent; Wikimedia and others ask for one."""
    max_event_bytes: int = Field(default=1 << 20, ge=64, le=1 << 28)
    """Longer events are dropped."""
    queue_events: int = Field(default=1024, ge=1, le=1 << 20)
    """Events that may wait for the learner in memory."""
    queue_bytes: int = Field(default=16 << 20, ge=1024, le=1 << 32)
    """Bytes that may wait for the learner in memory (one event always may)."""
    overflow: Literal["block", "drop_oldest", "sample"] = "block"
    """When the learner is slower: let the server wait; drop what waits longest; or, beyond half full, thin out."""
    idle_timeout_s: float = Field(default=90.0, gt=0, le=86400)
    """A connection over which nothing came for so long is dead, and is made anew."""
    connect_timeout_s: float = Field(default=20.0, gt=0, le=600)
    """Longest wait for a connection to be made and answered."""
    backoff_s: float = Field(default=1.0, gt=0, le=3600)
    """Longest wait before the first try to connect again; doubles with each failure."""
    backoff_max_s: float = Field(default=60.0, gt=0, le=86400)
    """Longest wait between two tries, but for a longer one that the server asks for (up to a day)."""
    start_tries: int = Field(default=5, ge=1, le=1000)
    """Failures to connect after which a feed is given up that did not answer since livelm began; later it is tried
    for ever. A new run is told at once of what waiting does not mend, such as 404."""
    seam_events: int = Field(default=48, ge=1, le=4096)
    """Events remembered in each cursor (22 bytes each) to know repetitions after a restart; 65,536 while running."""

    @field_validator("drop")
    @classmethod
    def _rules(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            if RULE.fullmatch(rule) is None:
                raise ValueError(f'the rule {rule!r} must read "path=value" or "path!=value"')
        return rules


class SseSettings(LiveSettings):
    """How a feed of server-sent events is read."""


class WebSocketSettings(LiveSettings):
    """How a feed over a WebSocket is read."""

    cursor_parameter: str = Field(default="auto", pattern=r"^[A-Za-z0-9_.~-]*$")
    """The query parameter by which the server takes a time (microseconds since 1970) to continue from. "auto":
    "cursor" once events look like those of Jetstream. Empty: the feed cannot continue, a lost connection is a gap."""
    rewind_s: float = Field(default=5.0, ge=0, le=3600)
    """How far before the last event to continue: servers deliver slightly out of order. Repetitions are dropped."""
    from_cursor: str = Field(default="", pattern=r"^[0-9]{0,18}$")
    """Where a new run begins: at these microseconds since 1970. Empty: now."""
    zstd_dictionary: str = ""
    """Path of Jetstream's zstd dictionary; asks for compressed frames. Empty: plain frames."""

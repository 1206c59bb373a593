"""One finished page as bytes: what the outbox keeps and what travels from a worker process to the crawl."""

import json
import struct
from dataclasses import dataclass, field

_HEAD = struct.Struct(">II")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A page that passed every filter."""

    url: str
    text: bytes
    """UTF-8."""
    at: str
    """When it was fetched, ISO 8601 in UTC."""
    title: str = ""
    language: str | None = None
    """What the page says of itself (`<html lang>`)."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answer, names in lower case; kept only together with `raw`."""
    raw: bytes | None = None
    """The body as sent, when the crawl keeps it (for a WARC)."""
    address: str = ""
    """The IP address that answered."""


def pack(item: Item) -> bytes:
    """The item as bytes that `unpack` takes."""
    about = {"url": item.url, "at": item.at, "title": item.title, "language": item.language}
    about |= {"status": item.status, "headers": item.headers, "address": item.address}
    about["raw"] = item.raw is not None
    head = json.dumps(about, separators=(",", ":")).encode()
    return b"".join((_HEAD.pack(len(head), len(item.text)), head, item.text, item.raw or b""))


def unpack(packed: bytes) -> Item:
    """The item that `pack` took apart."""
    n_head, n_text = _HEAD.unpack_from(packed)
    about = json.loads(packed[_HEAD.size : _HEAD.size + n_head])
    start = _HEAD.size + n_head
    raw = packed[start + n_text :] if about.pop("raw") else None
    return Item(text=packed[start : start + n_text], raw=raw, **about)

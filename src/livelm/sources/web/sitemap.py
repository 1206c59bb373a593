"""Addresses out of sitemaps: lists of pages, and indexes of further sitemaps, as XML or plain text, gzipped or not."""

import html
import re
from itertools import islice

from livelm.sources.web.decode import BodyDecoder, Bounds, DecodeError

_LOC = re.compile(rb"<(?:[a-z]{1,20}:)?loc\b[^>]{0,200}>\s*(?:<!\[CDATA\[)?([^<\]]{1,8000})", re.IGNORECASE)
_ROOT = re.compile(rb"<(?:[a-z]{1,20}:)?(?:urlset|sitemapindex)[\s>]", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
HEAD_BYTES = 4096
"""The root element must begin within the first so many bytes: comments and a style sheet may come before it."""


def unpacked(body: bytes, max_bytes: int) -> bytes:
    """The body of a `.xml.gz`, which is sent as it lies on disk; other bodies as they are. Raises DecodeError."""
    if not body.startswith(_GZIP):
        return body
    decoder = BodyDecoder("gzip", Bounds(max_bytes, 100.0))
    decoder.feed(body)
    return decoder.finish()


def is_sitemap(body: bytes, path: str) -> bool:
    """Whether the (unpacked) body is a sitemap; plain text is one when its name says so."""
    if _ROOT.search(body[:HEAD_BYTES]):
        return True
    return path.endswith(".txt") and "sitemap" in path.lower() and body.lstrip()[:4].lower() == b"http"


def addresses(body: bytes, limit: int) -> list[str]:
    """The first `limit` addresses of a sitemap (https://www.sitemaps.org/protocol.html), in its order.

    A regular expression and no XML parser: sitemaps are often broken XML, and there is nothing to expand in it.

    >>> addresses(b"<urlset><url><loc> https://a.example/?x=1&amp;y=2 </loc></url></urlset>", 10)
    ['https://a.example/?x=1&y=2']
    """
    is_xml = _ROOT.search(body[:HEAD_BYTES]) is not None
    found = (match[1] for match in _LOC.finditer(body)) if is_xml else iter(body.split())
    return [html.unescape(text.decode("utf-8", "replace").strip()) for text in islice(found, limit)]


__all__ = ["DecodeError", "addresses", "is_sitemap", "unpacked"]

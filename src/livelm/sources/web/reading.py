"""What becomes of an answer: links to follow, and the document, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from livelm.sources.web import sitemap
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.duplicates import Duplicates
from livelm.sources.web.fetch import Response
from livelm.sources.web.filters import TextFilter
from livelm.sources.web.item import Item
from livelm.sources.web.links import Links
from livelm.sources.web.page import PageReader
from livelm.sources.web.urls import Url, parse_url

KEPT_TYPES = ("text/", "application/xhtml", "application/xml", "application/gzip", "application/x-gzip")
"""Beginnings of the content types whose bodies are worth downloading: pages, and sitemaps."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The outcome of one page."""

    links: list[Url]
    item: Item | None
    reason: str | None
    """Why there is no item."""
    text: str = ""
    """What was read, as far as it came, for a sample."""


class Reader:
    """Turns answers into text. For one thread; remembers what it has read, to know duplicates."""

    def __init__(self, settings: CrawlSettings, duplicates: Duplicates, sites: frozenset[str]) -> None:
        """`sites` are those that a crawl of scope `site` stays on."""
        self._settings = settings
        self._sites = sites if settings.scope == "site" else None
        self._page = PageReader(settings.page, settings.product, honour_ai=settings.honour_ai_groups)
        self._filter = TextFilter(settings.filters)
        self._duplicates = duplicates
        self._known = Links()

    def inside(self, url: Url) -> bool:
        """Whether the address is in the scope of the crawl."""
        return self._sites is None or url.site in self._sites

    def read(self, response: Response) -> Reading:
        """Read one answer of status 200."""
        if self._settings.max_sitemap_urls and (found := self._sitemap(response)) is not None:
            return Reading(found, None, "sitemap")
        page = self._page.read(response.body, response.headers, response.url)
        links = self._links(page.links, page.base)
        reason = page.reason or self._filter.reason(page.text) or self._duplicates.reason(page.text)
        if reason is not None:
            return Reading(links, None, reason, page.text)
        item = Item(
            url=response.url,
            text=page.text.encode("utf-8", "replace"),
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            title=page.title,
            language=page.lang,
            status=response.status,
            headers=dict(response.headers) if response.raw is not None else {},
            raw=response.raw,
            address=response.address,
        )
        return Reading(links, item, None)

    def _links(self, links: list[str], base: str) -> list[Url]:
        found, sites = self._known.resolve(links, base), self._sites
        return found if sites is None else [url for url in found if url.site in sites]

    def _sitemap(self, response: Response) -> list[Url] | None:
        """The addresses when the answer is a sitemap; only those of its own site, which alone it can speak for."""
        path = urlsplit(response.url).path
        if "html" in response.headers.get("content-type", ""):
            return None
        try:
            body = sitemap.unpacked(response.body, self._settings.fetch.max_body_bytes)
        except sitemap.DecodeError:
            return None  # then it is no sitemap, and the page reader says what it thinks of it
        if not sitemap.is_sitemap(body, path):
            return None
        own = parse_url(response.url)
        found = self._links(sitemap.addresses(body, self._settings.max_sitemap_urls), response.url)
        return [url for url in found if own is not None and url.site == own.site]


def check_head(status: int, headers: Mapping[str, str]) -> str | None:
    """Why the body need not be downloaded: pictures, films and archives hold no text."""
    kind = headers.get("content-type", "").strip().lower()
    return None if not kind or kind.startswith(KEPT_TYPES) or status != 200 else "content_type"

"""From the body of an answer to what a crawl wants of it: text, links, and whether the page objects."""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ada_url import join_url
from pydantic import Field
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLParserException, HTMLTree

from livelm.config import Settings
from livelm.errors import Unavailable
from livelm.sources.web.markup import Markup, attack, read_markup
from livelm.sources.web.optout import nofollow, opt_out

MAX_TITLE = 500

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:+-]+)", re.IGNORECASE)
_LOOKS_LIKE_HTML = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|title|meta)\b", re.I | re.S)


class PageSettings(Settings):
    """How pages are read."""

    extractor: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """What finds the main text. trafilatura finds it better (F1 0.92 against 0.87) and takes ten times as long."""
    max_html_bytes: int = Field(default=4 << 20, ge=1 << 10)
    """Longer pages are left out: they are listings and dumps, and parsing them would hold up all others."""
    max_depth: int = Field(default=200, ge=10, le=1000)
    """Pages with more elements inside one another are left out; 781 real pages have less than 60."""
    max_links: int = Field(default=2000, ge=0)
    """Links taken from one page, the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one page holds."""

    text: str = ""
    """The main text; empty when there is a `reason`."""
    reason: str | None = None
    """Why there is no text: `content_type`, `binary`, `empty`, `html_too_large`, `html_too_deep`, `unparsable`, one
    of `markup.attack` or one of `optout.opt_out`."""
    links: list[str] = field(default_factory=list)
    """Where it may be gone from here, as written; what they mean depends on `base`. Present also for a page whose
    text must not be used, unless it says `nofollow`."""
    base: str = ""
    """Absolute: the page's address, or what `<base>` says."""
    title: str = ""
    lang: str | None = None
    """What the page says its language is, such as "en-gb"."""


class PageReader:
    """Reads pages, one at a time, within the limits of its settings."""

    def __init__(self, settings: PageSettings, agent: str, *, honour_ai: bool = True) -> None:
        """`agent` is the crawler's product name. Raises Unavailable when the extractor is not installed."""
        self._settings = settings
        self._agent = agent
        self._honour_ai = honour_ai
        self._extract: Callable[[str, HTMLTree], str] = _resiliparse
        if settings.extractor == "trafilatura":
            self._extract = _load_trafilatura()
        # Matches where that many elements stand inside one another; right to left, so no look back is long.
        self._too_deep = "*>" * settings.max_depth + "*"

    def read(self, body: bytes, headers: Mapping[str, str], url: str) -> Page:
        """Read `body`; `headers` have lower-case names, `url` is where the answer came from. Never raises.

        The steps go from cheap to dear, and end where the page is refused; bench.extraction says what each takes.
        """
        kind = _kind(body, headers.get("content-type", ""))
        if kind is None:
            return Page(reason="content_type", base=url)
        if len(body) > self._settings.max_html_bytes:
            return Page(reason="html_too_large", base=url)
        text = decode(body, headers.get("content-type", ""))
        if "\0" in text[:1000]:
            return Page(reason="binary", base=url)
        if kind == "html":
            return self._read_html(text, headers, url)
        reason = opt_out(headers, (), self._agent, honour_ai=self._honour_ai) or (None if text.strip() else "empty")
        return Page(text="" if reason else text, reason=reason, base=url)

    def _read_html(self, page: str, headers: Mapping[str, str], url: str) -> Page:
        if reason := attack(page):
            return Page(reason=reason, base=url)
        markup = read_markup(page, self._settings.max_links)
        follow = not nofollow(headers, markup.meta, self._agent, honour_ai=self._honour_ai)
        links, base = (markup.links if follow else []), _base(markup, url)
        if reason := opt_out(headers, markup.meta, self._agent, honour_ai=self._honour_ai):
            return Page(reason=reason, links=links, base=base, lang=markup.lang)
        found = self.extract(page)
        return replace(found, links=links, base=base, lang=markup.lang)

    def extract(self, page: str) -> Page:
        """Parse decoded HTML that passed `markup.attack`: its main text and title, or the reason why there is none."""
        try:
            tree = HTMLTree.parse(page)
            if (document := tree.document) is None:
                return Page(reason="empty")
            if document.query_selector(self._too_deep) is not None:
                return Page(reason="html_too_deep")
            text, title = self._extract(page, tree).strip(), (tree.title or "").strip()[:MAX_TITLE]
        except (HTMLParserException, ValueError):
            return Page(reason="unparsable")
        return Page(text=text, reason=None if text else "empty", title=title)


def decode(body: bytes, content_type: str = "") -> str:
    """The text of `body`, whatever it says its encoding is; what cannot be read becomes U+FFFD.

    Bytes that are valid UTF-8 are UTF-8: declarations lie more often than such bytes come about by chance. Else the
    byte order mark, the HTTP header and the page's own declaration count, in the order of the HTML standard, then what
    the bytes look like.
    """
    if not body.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\x1b" not in body and b"\0" not in body:
        # ESC is for ISO-2022-JP, NUL for UTF-16, both look like ASCII
        text = body.decode("utf-8", "replace").removeprefix("\ufeff")
        if text.isascii() or text.count("\ufffd") * 1000 <= len(text):  # a few bad bytes are a cut or a foreign comment
            return text
    declared = _CHARSET.search(content_type)
    encoding = map_encoding_to_html5(declared[1], fallback_utf8=False) if declared else None
    if encoding in (None, "utf-8"):  # utf-8 was tried above
        encoding = detect_encoding(body, from_html_meta=True) or "utf-8"
    return bytes_to_str(body, encoding, errors="replace", fallback_encodings=("utf-8", "cp1252"))


def _kind(body: bytes, content_type: str) -> Literal["html", "text"] | None:
    name = content_type.partition(";")[0].strip().lower()
    if name in ("text/html", "application/xhtml+xml"):
        return "html"
    if name in ("text/plain", "text/markdown"):
        return "text"
    return "html" if not name and _LOOKS_LIKE_HTML.match(body[:1024]) else None


def _base(markup: Markup, url: str) -> str:
    if not markup.base:
        return url
    try:
        base = join_url(url, markup.base.strip())
    except ValueError:
        return url
    return base if base.startswith(("http://", "https://")) else url


def _resiliparse(page: str, tree: HTMLTree) -> str:
    # Measured on 748 annotated pages: F1 0.847 with everything, 0.868 without comments, navigation and image texts.
    return extract_plain_text(tree, main_content=True, comments=False, alt_texts=False, skip_elements=["nav", "footer"])


def _load_trafilatura() -> Callable[[str, HTMLTree], str]:
    try:
        extract = importlib.import_module("trafilatura").extract
    except ImportError:
        raise Unavailable(
            "the extractor 'trafilatura' is not installed. Run: pip install 'livelm[quality]', or leave "
            'extractor = "resiliparse".'
        ) from None

    def run(page: str, tree: HTMLTree) -> str:
        return extract(page, fast=True, include_comments=False) or ""

    return run

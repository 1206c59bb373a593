"""Addresses of pages: one normal form, the site that politeness is owed to, and the traps not to walk into."""

import re
from functools import lru_cache
from typing import NamedTuple

from ada_url import URL, join_url
from tldextract import TLDExtract
from xxhash import xxh3_64_intdigest

MAX_CHARACTERS = 2000
"""Longer addresses are machine-made; the sitemaps norm allows 2,048."""
MAX_SEGMENTS = 20
MAX_PARAMETERS = 12

TRACKING = re.compile(
    r"(?:utm_|hsa_|mtm_|aspsessionid).*|_ga|_gl|_hsenc|_hsmi|cfid|cftoken|dclid|fbclid|gbraid|gclid|gclsrc|igshid"
    r"|jsessionid|li_fat_id|mc_cid|mc_eid|mkt_tok|msclkid|oly_anon_id|oly_enc_id|phpsessid|pk_campaign|pk_kwd"
    r"|rb_clickid|s_cid|srsltid|ttclid|twclid|vero_id|wbraid|wickedid|yclid",
    re.IGNORECASE,
)
"""Parameters that say who came from where, or which session this is, but not which page."""

_SESSION_PATH = re.compile(r";jsessionid=[^/?;]*", re.IGNORECASE)
_SESSION_LEFT = re.compile(r"/\((?:[a-z]\([a-z0-9]{8,}\))+\)|[?&;](?:sid|sess|session_?(?:id)?)=[a-z0-9]{16,}", re.I)
_DATE = re.compile(r"\d{4}[-/]\d\d?(?:[-/]\d\d?)?/?(?:$|[?&])|=\d{4}-\d\d?\b|[?&](?:year|yr|jahr)=\d+")
_CALENDAR = re.compile(
    r"calend|kalend|agenda|/events?\b|tribe-bar|[?&](?:month|mon|monat|mois|week|day)=", re.IGNORECASE
)

# The offline snapshot of the Public Suffix List: the crawl must not depend on a download, nor change with one.
_suffixes = TLDExtract(suffix_list_urls=(), cache_dir=None)


class Url(NamedTuple):  # a frozen dataclass takes four times as long to make, and a page has a hundred links
    """An http or https address in its normal form (WHATWG), without fragment, tracking and session parameters."""

    text: str
    key: int
    """xxh3_64 of `text`, as a signed 64-bit number: what SQLite and numpy store."""
    origin: str
    """Scheme, host and, unless it is the default, port: where robots.txt lives. `text` begins with it."""
    host: str
    """Without port and, for IPv6, without brackets."""
    site: str
    """Whom politeness is owed to: the registrable domain; for an IP address or localhost host and unusual port."""


def parse_url(text: str, base: str | None = None) -> Url | None:
    """The address that `text` means on the page `base`; never raises.

    None when it is no valid http(s) address, holds a user name or password, or exceeds `MAX_CHARACTERS`.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        href = URL(text).href if base is None else join_url(base, text)
    except ValueError:  # invalid, or characters that are not Unicode (lone surrogates)
        return None
    return _build(href.partition("#")[0])


def shard_of(url: Url, n_shards: int) -> int:
    """Which of `n_shards` the address belongs to; all addresses of a site belong to the same."""
    return _shard(url.site, n_shards)


def trap(url: Url) -> str | None:
    """Why this address smells of endless machine-made pages; None when it does not.

    The rules are those of serious crawlers (Heritrix's pathological path and too many segments, Nutch's loop filter)
    and calendars, which have a page for every day until the end of time.
    """
    rest = url.text[len(url.origin) :]
    path, _, query = rest.partition("?")
    n_slashes = path.count("/")
    if n_slashes > MAX_SEGMENTS:
        return "too deep path"
    if n_slashes > 3 and _repeats(path[1:].split("/")):
        return "repeated segments"
    if query.count("&") >= MAX_PARAMETERS:
        return "too many parameters"
    if (query or "(" in path or ";" in path) and _SESSION_LEFT.search(rest):
        return "session id"
    if _DATE.search(rest) and _CALENDAR.search(rest):
        return "calendar"
    return None


def path_key(text: str) -> int:
    """xxh3_64 as a signed number: of a whole address, or of its part before the `?`."""
    key = _hash(text)
    return key - (1 << 64) if key >> 63 else key


@lru_cache(maxsize=1 << 14)  # the navigation of a site is on all its pages
def _build(href: str) -> Url | None:
    scheme, _, rest = href.partition("://")
    if scheme not in ("http", "https"):
        return None
    authority = rest.partition("/")[0]  # ada always writes the slash
    place = _place(scheme, authority)
    if place is None:
        return None
    origin, host, site = place
    tail = rest[len(authority) :]
    if ";" in tail:
        tail = _SESSION_PATH.sub("", tail)
    if "?" in tail:
        tail = _without_tracking(tail)
    text = origin + tail
    if len(text) > MAX_CHARACTERS:
        return None
    return Url(text, path_key(text), origin, host, site)


@lru_cache(maxsize=1 << 14)
def _shard(site: str, n_shards: int) -> int:
    return _hash(site) % n_shards


def _hash(text: str) -> int:
    return xxh3_64_intdigest(text.encode())


@lru_cache(maxsize=1 << 14)
def _place(scheme: str, authority: str) -> tuple[str, str, str] | None:
    """Origin, host and site."""
    if "@" in authority:
        return None
    host, _, port = authority.rpartition(":") if re.search(r":\d+$", authority) else (authority, "", "")
    if host.startswith("["):
        return f"{scheme}://{authority}", host[1:-1], authority
    host = host.removesuffix(".")  # the dot of the root: the same host, which must not be crawled twice
    labels = host.split(".")
    if len(host) > 253 or not all(0 < len(label) < 64 for label in labels):
        return None  # no name server can know it
    place = f"{host}:{port}" if port else host
    if labels[-1] == "localhost" or labels[-1].isdigit():  # ada leaves a number at the end to IPv4 addresses only
        return f"{scheme}://{place}", host, place
    return (
        f"{scheme}://{place}",
        host,
        _suffixes.extract_str(host).top_domain_under_public_suffix or ".".join(labels[-2:]),
    )


def _without_tracking(tail: str) -> str:
    path, _, query = tail.partition("?")
    kept = [pair for pair in query.split("&") if pair and not TRACKING.fullmatch(pair.partition("=")[0])]
    return f"{path}?{'&'.join(kept)}" if kept else path


def _repeats(segments: list[str]) -> bool:
    """Whether one segment comes four times, or three times on end, or a run of two and more comes twice on end."""
    n = len(segments)
    if len(set(segments)) == n:
        return False
    for length in range(1, n // 2 + 1):
        times = 3 if length == 1 else 2
        for start in range(n - length * times + 1):
            run = segments[start : start + length]
            if any(run) and all(
                segments[start + length * k : start + length * (k + 1)] == run for k in range(1, times)
            ):
                return True
    return any(segment and segments.count(segment) > 3 for segment in segments)

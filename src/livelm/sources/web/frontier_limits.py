"""Where a crawl ends: which links are accepted, and the reason of every refusal."""

from collections import Counter
from collections.abc import Iterable, Iterator

from pydantic import Field

from livelm.config import Settings
from livelm.sources.web.frontier_seen import Seen, Variants
from livelm.sources.web.frontier_sites import Site, Sites
from livelm.sources.web.urls import Url, path_key, trap


class FrontierSettings(Settings):
    """Where a crawl ends. Every limit holds for one process of the crawl."""

    max_depth: int = Field(default=20, ge=0, le=1000)
    """Links away from a seed."""
    max_pages_per_site: int = Field(default=100_000, ge=1)
    """Addresses accepted of one registrable domain."""
    max_query_variants: int = Field(default=50, ge=0)
    """Addresses accepted that differ only after the `?`."""
    max_urls: int = Field(default=10_000_000, ge=1, le=100_000_000)
    """Addresses accepted; each takes 8 to 16 bytes of memory and, until it is fetched, about 150 bytes of disk."""
    max_sites: int = Field(default=200_000, ge=1, le=10_000_000)
    """Sites accepted; each takes about 500 bytes of memory."""
    tries: int = Field(default=3, ge=1, le=100)
    """How often an address is tried before it is given up."""
    revisit_s: float = Field(default=0.0, ge=0)
    """Fetch a page again after this many seconds, conditionally where the server gave a validator; 0: read it once."""
    cache_bytes: int = Field(default=64 << 20, ge=1 << 20, le=16 << 30)
    """Memory for the parts of the file that are in use."""


class Limits:
    """Holds every link against what was met before, the traps and the settings; counts the refused by reason."""

    def __init__(
        self, settings: FrontierSettings, seen: Seen, variants: Variants, sites: Sites, refused: Counter[str]
    ) -> None:
        self._settings = settings
        self._seen = seen
        self._variants = variants
        self._sites = sites
        self._refused = refused

    def admit(self, urls: Iterable[Url]) -> Iterator[tuple[Site, list[Url]]]:
        """Yield the new addresses by site, a site that is new included, and remember them as met."""
        by_site: dict[str, list[Url]] = {}
        for url in self._seen.unseen(urls):
            if (reason := trap(url)) is None:
                by_site.setdefault(url.site, []).append(url)
            else:
                self._refused[reason] += 1
        for name, found in by_site.items():
            if accepted := self._within(name, found):
                site = self._sites.find(name) or self._sites.create(name)
                site.n_urls += len(accepted)
                self._seen.add([url.key for url in accepted])
                yield site, accepted

    def _within(self, name: str, found: list[Url]) -> list[Url]:
        """Those of a site that no limit forbids."""
        site = self._sites.find(name)
        if site is None and len(self._sites) >= self._settings.max_sites:
            self._refused["max_sites"] += len(found)
            return []
        room = self._settings.max_urls - len(self._seen)
        site_room = self._settings.max_pages_per_site - (0 if site is None else site.n_urls)
        accepted: list[Url] = []
        for url in found:
            if len(accepted) >= room:
                self._refused["max_urls"] += 1
            elif len(accepted) >= site_room:
                self._refused["max_pages_per_site"] += 1
            elif "?" in url.text and not self._variants.take(
                path_key(url.text.partition("?")[0]), self._settings.max_query_variants
            ):
                self._refused["max_query_variants"] += 1
            else:
                accepted.append(url)
        return accepted

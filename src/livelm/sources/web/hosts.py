"""What a worker knows of each host: its rules, what it reserves, how long to leave it alone, how often it failed."""

import random
import time
from collections import Counter, OrderedDict
from typing import TypeVar

from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.fetch import Fetcher, FetchError, backoff_s, retry_after
from livelm.sources.web.frontier import Frontier, HostMemory
from livelm.sources.web.robots import Rules, rules_for
from livelm.sources.web.tdmrep import MAX_BYTES, NOTHING, PATH, Reservation, parse_reservation
from livelm.sources.web.urls import Url, parse_url

MAX_HOSTS = 20_000
"""Hosts whose parsed rules are kept in memory; the frontier keeps the others for a day."""
RULES_S = 86400.0
"""RFC 9309, section 2.4: rules should not be used for longer than 24 hours."""
MAX_ASKED = 3
"""How often a tdmrep.json is asked for that cannot be had now. After that there is none: "failure to provide access
[...] implies that the origin server does not implement this protocol" (TDMRep)."""
MAX_SITEMAPS = 20
"""Sitemaps taken from one robots.txt."""

T = TypeVar("T")


class Hosts:
    """The rules and the pace of hosts. For one event loop.

    `counts`: `tdm_files` that were valid, and `tdm_files_invalid`, of which only a part (or nothing) could be used.
    """

    def __init__(self, settings: CrawlSettings, frontier: Frontier, fetcher: Fetcher) -> None:
        self._settings, self._frontier, self._fetcher = settings, frontier, fetcher
        self._rules: OrderedDict[str, tuple[float, Rules]] = OrderedDict()
        self._reservations: OrderedDict[str, tuple[float, Reservation]] = OrderedDict()
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._asked: OrderedDict[str, int] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self._chance = random.Random()  # noqa: S311  (spreads requests over time)

    def known(self, url: Url, now: float) -> Rules | None:
        """The rules of the host, while they are fresh; None: its robots.txt must be fetched first."""
        expires, rules = self._rules.get(url.origin, (0.0, None))
        if rules is not None and now < expires:
            self._rules.move_to_end(url.origin)
            return rules
        memory = self._frontier.recall_host(url.origin, now)
        if memory is None:
            return None
        rules = self._parse(memory.status, memory.robots or b"")
        self._remember(url.origin, rules, memory.fetched_at + RULES_S)
        return rules

    async def ask(self, url: Url) -> Rules:
        """Fetch the robots.txt of the host and keep it; what cannot be had now refuses everything for a while."""
        try:
            # as many bytes as RFC 9309, section 2.5, wants to be parsed; redirects may lead to other hosts (2.3.1.2)
            response = await self._fetcher.get(f"{url.origin}/robots.txt", read_at_most=512 << 10)
            status, body = response.status, response.body
        except FetchError:
            status, body = None, b""
        rules, now = self._parse(status, body), time.time()
        if rules.later:
            self._remember(url.origin, rules, now + self.failed(url))
            return rules
        self.succeeded(url)
        memory = HostMemory(robots=body, status=status, fetched_at=now, crawl_delay_s=rules.crawl_delay)
        self._frontier.remember_host(url.origin, memory)
        self._remember(url.origin, rules, now + RULES_S)
        self._take_sitemaps(url, rules)
        return rules

    def reservation(self, url: Url, rules: Rules, now: float) -> Reservation | None:
        """What the host reserves, while that is fresh; None: its tdmrep.json must be fetched first.

        Where `rules` (its robots.txt) do not let us read that file, there is none.
        """
        if not self._settings.honour_tdmrep:
            return NOTHING
        expires, found = self._reservations.get(url.origin, (0.0, None))
        if found is not None and now < expires:
            self._reservations.move_to_end(url.origin)
            return found
        if rules.allowed(f"{url.origin}{PATH}"):
            memory = self._frontier.recall_host(url.origin, now)
            if memory is None or memory.tdmrep is None:
                return None
            found, _ = parse_reservation(memory.tdmrep)
        else:
            found = NOTHING
        self._reserve(url, found, now)
        return found

    async def ask_reservation(self, url: Url) -> float:
        """Fetch the tdmrep.json of the host and keep it for as long as its robots.txt, which was fetched before.

        Returns the least seconds after which to go on: more than 0 when it must be asked for again.
        """
        body, found, is_later, asked_s = b"", NOTHING, False, None
        try:
            response = await self._fetcher.get(f"{url.origin}{PATH}", read_at_most=MAX_BYTES)
        except FetchError as error:
            is_later, asked_s = error.retry, error.after_s
        else:
            if response.status == 429 or response.status >= 500:
                is_later, asked_s = True, retry_after(response.headers, time.time())
            elif response.status < 300:  # whatever else it says, it is not there
                body = response.body
                found, is_valid = parse_reservation(body)
                self.counts["tdm_files" if is_valid else "tdm_files_invalid"] += 1
        n_asked = self._asked.pop(url.origin, 0) + 1
        if is_later and n_asked < MAX_ASKED:
            _keep(self._asked, url.origin, n_asked)
            failed_s = self.failed(url)
            return failed_s if asked_s is None else max(asked_s, self._settings.gap_s)
        if not is_later:
            self.succeeded(url)
        self._frontier.remember_tdmrep(url.origin, body)
        self._reserve(url, found, time.time())
        return 0.0

    def gap_s(self, rules: Rules | None, answer_s: float = 0.0) -> float:
        """Seconds between the end of one request and the begin of the next, after an answer that took `answer_s`."""
        settings = self._settings
        asked = (rules.crawl_delay or 0.0) if rules is not None else 0.0
        return max(asked, settings.gap_s, min(settings.answer_factor * answer_s, settings.max_gap_s))

    def failed(self, url: Url) -> float:
        """A request failed: seconds to leave the host alone, more after each failure in a row."""
        failures = self._failures.pop(url.origin, 0) + 1
        _keep(self._failures, url.origin, failures)
        return max(self._settings.gap_s, backoff_s(failures, self._chance))

    def rest_s(self, url: Url, now: float) -> float:
        """Seconds until robots.txt, which could not be had, may be asked for again."""
        expires, _ = self._rules.get(url.origin, (now, None))
        return max(0.0, expires - now)

    def succeeded(self, url: Url) -> None:
        """The host answered as it should."""
        self._failures.pop(url.origin, None)

    def _parse(self, status: int | None, body: bytes) -> Rules:
        return rules_for(status, body, self._settings.product, honour_ai_groups=self._settings.honour_ai_groups)

    def _remember(self, origin: str, rules: Rules, expires: float) -> None:
        _keep(self._rules, origin, (expires, rules))

    def _reserve(self, url: Url, found: Reservation, now: float) -> None:
        expires, _ = self._rules.get(url.origin, (now + RULES_S, None))
        _keep(self._reservations, url.origin, (expires, found))

    def _take_sitemaps(self, url: Url, rules: Rules) -> None:
        """Put the sitemaps into the frontier like any page; those of other sites are not this host's to name."""
        if not self._settings.max_sitemap_urls:
            return
        found = [parse_url(text, url.text) for text in rules.sitemaps[:MAX_SITEMAPS]]
        self._frontier.add([sitemap for sitemap in found if sitemap is not None and sitemap.site == url.site], 0)


def _keep(known: OrderedDict[str, T], origin: str, value: T) -> None:
    """Remember, and forget what was used longest ago."""
    known[origin] = value
    known.move_to_end(origin)
    if len(known) > MAX_HOSTS:
        known.popitem(last=False)

"""What a worker knows of each host: its rules, how long to leave it alone, how often it failed."""

import random
import time
from collections import OrderedDict

from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.fetch import Fetcher, FetchError, backoff_s
from livelm.sources.web.frontier import Frontier, HostMemory
from livelm.sources.web.robots import Rules, rules_for
from livelm.sources.web.urls import Url, parse_url

MAX_HOSTS = 20_000
"""Hosts whose parsed rules are kept in memory; the frontier keeps the others for a day."""
RULES_S = 86400.0
"""RFC 9309, section 2.4: rules should not be used for longer than 24 hours."""
MAX_SITEMAPS = 20
"""Sitemaps taken from one robots.txt."""


class Hosts:
    """The rules and the pace of hosts. For one event loop."""

    def __init__(self, settings: CrawlSettings, frontier: Frontier, fetcher: Fetcher) -> None:
        self._settings, self._frontier, self._fetcher = settings, frontier, fetcher
        self._rules: OrderedDict[str, tuple[float, Rules]] = OrderedDict()
        self._failures: OrderedDict[str, int] = OrderedDict()
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

    def gap_s(self, rules: Rules | None, answer_s: float = 0.0) -> float:
        """Seconds between the end of one request and the begin of the next, after an answer that took `answer_s`."""
        settings = self._settings
        asked = (rules.crawl_delay or 0.0) if rules is not None else 0.0
        return max(asked, settings.gap_s, min(settings.answer_factor * answer_s, settings.max_gap_s))

    def failed(self, url: Url) -> float:
        """A request failed: seconds to leave the host alone, more after each failure in a row."""
        failures = self._failures.pop(url.origin, 0) + 1
        self._failures[url.origin] = failures
        if len(self._failures) > MAX_HOSTS:
            self._failures.popitem(last=False)
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
        self._rules[origin] = (expires, rules)
        self._rules.move_to_end(origin)
        if len(self._rules) > MAX_HOSTS:
            self._rules.popitem(last=False)

    def _take_sitemaps(self, url: Url, rules: Rules) -> None:
        """Put the sitemaps into the frontier like any page; those of other sites are not this host's to name."""
        if not self._settings.max_sitemap_urls:
            return
        found = [parse_url(text, url.text) for text in rules.sitemaps[:MAX_SITEMAPS]]
        self._frontier.add([sitemap for sitemap in found if sitemap is not None and sitemap.site == url.site], 0)

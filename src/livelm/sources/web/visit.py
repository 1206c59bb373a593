"""One visit to one address, from the claim to what came of it."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from livelm.sources.web.address import Refused, Unresolved
from livelm.sources.web.black_box import BlackBox
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.fetch import Fetcher, FetchError, Response, retry_after
from livelm.sources.web.filters import DropLog
from livelm.sources.web.frontier import Claim, Frontier
from livelm.sources.web.hosts import Hosts
from livelm.sources.web.item import pack
from livelm.sources.web.reading import Reader, Reading, check_head
from livelm.sources.web.robots import Rules
from livelm.sources.web.turns import Turns
from livelm.sources.web.urls import Url, parse_url

MOVED = "moved"
"""What stops the fetcher at a redirect: the target gets a turn of its own, with its own rules and gap."""
AGAIN = frozenset((408, 425, 429))
"""Answers below 500 that say: not now."""
LOG_S = 60.0
"""One line about pages that could not be read at most so often."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Visits:
    """Visits of one worker, and what is counted of them."""

    settings: CrawlSettings
    frontier: Frontier
    fetcher: Fetcher
    hosts: Hosts
    turns: Turns
    reader: Reader
    drops: DropLog
    box: BlackBox
    counts: Counter[str] = field(default_factory=Counter)
    """`requests`, `pages` that were read, `documents` that came of them, `redirects`, `wire_bytes`."""
    unread_bytes: int = 0
    """Bodies that were fetched and wait for their text to be read."""
    n_new: int = 0
    """Documents put into the outbox since this was last set to 0."""
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _logged_at: float = -LOG_S

    async def visit(self, claim: Claim) -> None:
        """Fetch and read one page, and tell the frontier. Raises only what the frontier's disk raises."""
        url = claim.url
        try:
            if url.text == self.box.culprit:
                self._drop(claim, "killed_worker")
                return
            addresses = await self.fetcher.resolver.resolve(url.host, _port(url))
            rules = self.hosts.known(url, time.time())
            reservation = None
            if rules is not None:
                if self._refuse(claim, rules):
                    return
                reservation = self.hosts.reservation(url, rules, time.time())
                if reservation is not None and reservation.covers(url.text):
                    self._drop(claim, "tdm_reservation")  # it may be looked at, but not read by a machine
                    return
            gap_s = self.hosts.gap_s(rules)
            wait_s = self.turns.take(addresses, time.monotonic(), gap_s)
            if wait_s:
                self.frontier.postpone(claim, now=time.time(), after_s=wait_s)
            elif rules is None:
                await self._ask(claim, addresses)
            elif reservation is None:
                await self._ask_reservation(claim, rules, addresses)
            else:
                await self._fetch(claim, rules, addresses)
        except asyncio.CancelledError:  # the worker stops: nothing was tried
            self.frontier.postpone(claim, now=time.time(), after_s=0.0)
            raise
        except Refused as error:
            self._drop(claim, "refused_address", str(error))
        except Unresolved as error:
            self._retry(claim, "dns", self.hosts.failed(url), again=error.temporary)
        except FetchError as error:
            after_s = self.hosts.failed(url) if error.after_s is None else error.after_s
            self._retry(claim, error.reason, after_s, again=error.retry)

    def take_new(self) -> int:
        """How many documents were put into the outbox since the last call."""
        n_new, self.n_new = self.n_new, 0
        return n_new

    async def _ask(self, claim: Claim, addresses: Sequence[str]) -> None:
        """Fetch robots.txt. The page keeps its place and comes once the gap has passed."""
        gap_s = self.hosts.gap_s(None)
        try:
            self.counts["requests"] += 1
            gap_s = self.hosts.gap_s(await self.hosts.ask(claim.url))
        finally:
            self._give_back(addresses, gap_s)
        self.frontier.postpone(claim, now=time.time(), after_s=gap_s)

    async def _ask_reservation(self, claim: Claim, rules: Rules, addresses: Sequence[str]) -> None:
        """Fetch tdmrep.json, with the manners of robots.txt."""
        begin = time.monotonic()
        try:
            self.counts["requests"] += 1
            after_s = await self.hosts.ask_reservation(claim.url)
        finally:
            gap_s = self.hosts.gap_s(rules, time.monotonic() - begin)
            self._give_back(addresses, gap_s)
        self.frontier.postpone(claim, now=time.time(), after_s=max(gap_s, after_s))

    def _give_back(self, addresses: Sequence[str], gap_s: float) -> None:
        now = time.monotonic()
        self.turns.give_back(addresses, now, gap_s)
        if gap_s:
            asyncio.get_running_loop().call_later(gap_s, self._let_go, now + gap_s)

    def _let_go(self, at: float) -> None:
        """Free what rests until `at`. Nobody else does after the last request here, and other processes wait for it."""
        if (early_s := at - time.monotonic()) > 0:  # uvloop counts whole milliseconds: two in five timers are early
            asyncio.get_running_loop().call_later(max(early_s, 0.001), self._let_go, at)
        else:
            self.turns.sweep(time.monotonic())

    def _refuse(self, claim: Claim, rules: Rules) -> bool:
        """Leave out what robots.txt does not want; whether the claim is settled."""
        if rules.later:
            after_s = max(self.hosts.gap_s(rules), self.hosts.rest_s(claim.url, time.time()))
            self._retry(claim, "robots_unreachable", after_s, again=True)
        elif (rules.crawl_delay or 0.0) > self.settings.max_crawl_delay_s:
            self._drop(claim, "crawl_delay")
        elif (reason := rules.refuses(claim.url.text)) is not None:
            self._drop(claim, reason)
        else:
            return False
        return True

    async def _fetch(self, claim: Claim, rules: Rules, addresses: Sequence[str]) -> None:
        target: list[str] = []

        async def stop_at(address: str) -> str:
            target.append(address)
            return MOVED

        begin = time.monotonic()
        try:
            self.counts["requests"] += 1
            response = await self.fetcher.get(
                claim.url.text,
                etag=claim.etag,
                last_modified=claim.last_modified,
                check_redirect=stop_at,
                check_head=check_head,
            )
        except FetchError as error:
            if error.reason != MOVED:
                if not error.retry:
                    self._drop(claim, error.reason, gap_s=self.hosts.gap_s(rules, time.monotonic() - begin))
                    return
                raise
            self._move(claim, target[0], self.hosts.gap_s(rules, time.monotonic() - begin))
            return
        finally:
            self._give_back(addresses, self.hosts.gap_s(rules, time.monotonic() - begin))
        await self._settle(claim, response, self.hosts.gap_s(rules, response.elapsed_s))

    async def _settle(self, claim: Claim, response: Response, gap_s: float) -> None:
        status = response.status
        if status in AGAIN or status >= 500:
            after_s = retry_after(response.headers, time.time())
            failed_s = self.hosts.failed(claim.url)
            self._retry(claim, f"http_{status}", max(gap_s, failed_s if after_s is None else after_s), again=True)
            return
        self.hosts.succeeded(claim.url)
        if status == 304:
            self.drops.add("not_modified", claim.url.text)
            self._finish(claim, response, gap_s, Reading([], None, "not_modified"))
        elif status != 200:
            self._drop(claim, f"http_{status}", gap_s=gap_s)
        else:
            await self._read(claim, response, gap_s)

    async def _read(self, claim: Claim, response: Response, gap_s: float) -> None:
        fetched_at = time.time()
        self.unread_bytes += len(response.body)
        try:
            async with self._reading:  # one page, then a turn of the loop
                await asyncio.sleep(0)
                self.box.note(claim.url.text)
                try:
                    reading = self.reader.read(response)
                except Exception as error:  # whatever a page does to a parser, the crawl goes on
                    self._say(claim.url, error)
                    reading = Reading([], None, "unreadable")
                self.box.clear()
        finally:
            self.unread_bytes -= len(response.body)
        self.counts["pages"] += 1
        self.counts["wire_bytes"] += response.n_wire_bytes
        if reading.reason is not None:
            self.drops.add(reading.reason, claim.url.text, reading.text)
        self._finish(claim, response, max(0.0, gap_s - (time.time() - fetched_at)), reading)

    def _finish(self, claim: Claim, response: Response, gap_s: float, reading: Reading) -> None:
        document = None if reading.item is None else pack(reading.item)
        self.frontier.finish(
            claim,
            now=time.time(),
            gap_s=gap_s,
            status=response.status,
            etag=response.headers.get("etag"),
            last_modified=response.headers.get("last-modified"),
            links=reading.links,
            document=document,
        )
        if document is not None:
            self.counts["documents"] += 1
            self.n_new += 1

    def _move(self, claim: Claim, address: str, gap_s: float) -> None:
        target = parse_url(address)
        if target is None or not self.reader.inside(target):
            self._drop(claim, "redirect_outside", address, gap_s=gap_s)
        elif target.key == claim.url.key:  # but for tracking parameters or a fragment
            self._drop(claim, "redirect_loop", address, gap_s=gap_s)
        else:
            self.counts["redirects"] += 1
            self.frontier.finish(claim, now=time.time(), gap_s=gap_s, status=301, links=[target])

    def _drop(self, claim: Claim, reason: str, detail: str = "", *, gap_s: float = 0.0) -> None:
        self.drops.add(reason, claim.url.text, detail)
        self.frontier.drop(claim, now=time.time(), gap_s=gap_s, reason=reason)

    def _retry(self, claim: Claim, reason: str, after_s: float, *, again: bool) -> None:
        if not again:
            self._drop(claim, reason, gap_s=after_s)
        elif not self.frontier.retry(claim, now=time.time(), after_s=after_s, reason=reason):
            self.drops.add(reason, claim.url.text)

    def _say(self, url: Url, error: Exception) -> None:
        if time.monotonic() - self._logged_at >= LOG_S:
            self._logged_at = time.monotonic()
            log.warning("%s could not be read and is left out: %s: %s", url.text, type(error).__name__, error)


def _port(url: Url) -> int:
    """The port of an address in normal form, which leaves out the default."""
    _, _, port = url.origin.rpartition(":")
    if port.isdigit():
        return int(port)
    return 443 if url.origin.startswith("https:") else 80

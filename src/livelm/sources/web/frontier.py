"""The frontier of one shard of a crawl: which address comes next, and when; what is finished, and what came of it.

A crash at any moment loses no committed page. Claims are kept in memory only: what was in flight is simply still
waiting when the file is opened again. A page is done, its links wait and its document lies in the outbox by one and the
same transaction.

Memory: 8 bytes per address met and at most 8 more while it waits (`max_urls`), about 500 bytes per site (`max_sites`),
SQLite's cache (`cache_bytes`) and some 60 MB. The waiting addresses themselves are on disk.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from livelm.errors import ContractError, SourceError
from livelm.sources.web.frontier_inbox import Inbox, Link
from livelm.sources.web.frontier_limits import FrontierSettings, Limits
from livelm.sources.web.frontier_seen import Seen, Variants
from livelm.sources.web.frontier_sites import Site, Sites
from livelm.sources.web.frontier_store import HostMemory, Store, Waiting
from livelm.sources.web.urls import Url, parse_url, shard_of, trap

__all__ = ["Claim", "Frontier", "FrontierSettings", "HostMemory"]

DAY_S = 86400.0
MAX_SLEEP_S = DAY_S
"""However long a site asks to be left alone."""
SKIP = 1 << 20
"""Document numbers left out whenever the file is opened: more than a power cut can undo, so that none is used twice."""
LINES = 64
"""Addresses in one row on disk: a row is read whole to take one of them."""
ROWS = 100_000
"""Rows listed at a time when the file is opened: 10 MB."""
DRAIN = 10_000
"""Links taken from the inbox at one commit: about 0.1 s."""
SENT = 1 << 17
"""Links to other shards that are remembered, so that the same one is not sent again and again: about 10 MB."""
REVISITS = 1000
"""Pages that become due again at one claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An address that is being fetched: given to `finish`, `retry`, `postpone` or `drop` exactly once."""

    url: Url
    depth: int
    """Links away from a seed."""
    tries: int
    """Failed tries before this one."""
    etag: str | None
    last_modified: str | None
    """Validators of the last visit, for a conditional request."""
    ticket: int


@dataclass(frozen=True, slots=True)
class _Flight:
    """Where the address that is being fetched stands on disk."""

    site: Site
    row: int
    last: bool
    """Whether the row is empty without it."""


class Frontier:
    """One shard. For one thread; all times `now` are Unix times, for they outlive the process.

    `refused` counts by reason the links that were not accepted, `dropped` the addresses that ended without a page,
    both since this object was made.
    """

    def __init__(self, path: Path, settings: FrontierSettings, shard: int = 0, n_shards: int = 1) -> None:
        """Create or reopen the shard at `path`, with the inboxes of all shards beside it.

        Raises SourceError when the file is foreign, newer, damaged, in use, or made for another number of shards.
        """
        self.refused: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._path = path
        self._settings = settings
        self._shard, self._n_shards = shard, n_shards
        path.parent.mkdir(parents=True, exist_ok=True)
        self._store = Store(path, cache_bytes=settings.cache_bytes)
        self._inboxes: dict[int, Inbox] = {}
        try:
            self._restore()
            if n_shards > 1:
                for other in range(n_shards):
                    self._inboxes[other] = Inbox(path.parent / f"inbox-{other}.sqlite")
        except BaseException:
            self.close()
            raise

    def _restore(self) -> None:
        state = self._store.load_state()
        if state and (state["shard"], state["n_shards"]) != (self._shard, self._n_shards):
            raise SourceError(
                f"the frontier {str(self._path)!r} is part {state['shard']} of {state['n_shards']}, not {self._shard} "
                f"of {self._n_shards}. Continue with {state['n_shards']} processes, or begin in a new folder."
            )
        keys, paths = self._store.load_seen()
        self._seen, self._variants = Seen(keys), Variants(paths)
        self._sites = Sites(self._store.load_sites(), self._waiting(), latest=time.time() + MAX_SLEEP_S)
        self._limits = Limits(self._settings, self._seen, self._variants, self._sites, self.refused)
        self._in_flight: dict[int, _Flight] = {}
        self._ticket = 0
        self._number = state.get("number", 0)
        self._n_done = state.get("done", 0)
        self._document = state.get("document", 0) + (SKIP if state else 0)
        self._committed = self._document
        self._n_outbox, self._outbox_bytes = self._store.measure_outbox(self._document)
        self._revisit_at = self._store.first_revisit_at()
        self._n_remembered = 0
        self._outgoing: dict[int, list[Link]] = {}
        self._sent: set[int] = set()
        self._save()
        self._store.sync()

    def add(self, urls: Iterable[Url], depth: int) -> int:
        """Accept addresses that are new; returns how many. Those of other shards are sent there at the next commit.

        Traps and whatever exceeds a limit are counted in `refused`.
        """
        urls = list(urls)
        if depth > self._settings.max_depth:
            self.refused["beyond max_depth"] += len(urls)
            return 0
        return self._accept(urls if self._n_shards == 1 else self._route(urls, depth), depth)

    def claim(self, now: float) -> Claim | None:
        """The next address of the site that has been due longest and has nothing in flight; None when none is due."""
        if self._revisit_at is not None and self._revisit_at <= now:
            self._wake(now)
        while (site := self._sites.take_due(now)) is not None:
            row = site.rows[site.n_gone]
            found = self._store.find_waiting(row)
            if found is None:
                raise SourceError(
                    f"the frontier {str(self._path)!r} is damaged: row {row} of {site.name!r} is missing."
                )
            _, _, depth, tries, lines, etag, last_modified = found
            texts = lines.split("\n")
            self._ticket += 1
            self._in_flight[self._ticket] = _Flight(site, row, last=site.n_taken + 1 == len(texts))
            if (url := parse_url(texts[site.n_taken])) is not None:
                return Claim(
                    url=url, depth=depth, tries=tries, etag=etag, last_modified=last_modified, ticket=self._ticket
                )
            self.dropped["address no longer valid"] += 1  # it was stored under older rules
            self._rest(self._remove(self._ticket), now, 0.0)
        return None

    def next_due(self, now: float) -> float | None:
        """Seconds until some address is due; None when nothing waits (what is in flight may still add something)."""
        times = [at for at in (self._sites.next_at, self._revisit_at) if at is not None]
        return max(0.0, min(times) - now) if times else None

    def finish(
        self,
        claim: Claim,
        *,
        now: float,
        gap_s: float,
        status: int,
        etag: str | None = None,
        last_modified: str | None = None,
        links: Sequence[Url] = (),
        document: bytes | None = None,
    ) -> None:
        """The page was read: add its links, put its document into the outbox, leave its site alone for `gap_s`.

        The target of a redirect is a link like any other, so that endless redirects end at `max_depth`.
        Raises ContractError for a claim that is not in flight.
        """
        site = self._remove(claim.ticket)
        self.add(links, claim.depth + 1)
        if document is not None:
            self._document += 1
            self._store.put_document(self._document, document)
            self._n_outbox += 1
            self._outbox_bytes += len(document)
        if self._settings.revisit_s and status in (200, 304):
            if status == 304:  # the old validators still hold unless new ones came
                etag, last_modified = etag or claim.etag, last_modified or claim.last_modified
            due_at = now + self._settings.revisit_s
            self._store.put_revisit((due_at, self._next_number(), claim.depth, claim.url.text, etag, last_modified))
            self._revisit_at = due_at if self._revisit_at is None else min(due_at, self._revisit_at)
        self._rest(site, now, gap_s)

    def drop(self, claim: Claim, *, now: float, gap_s: float, reason: str) -> None:
        """The address ends without a page (robots, 404, ...). Raises ContractError when it is not in flight."""
        site = self._remove(claim.ticket)
        self.dropped[reason] += 1
        self._rest(site, now, gap_s)

    def retry(self, claim: Claim, *, now: float, after_s: float, reason: str) -> bool:
        """The address failed: it is tried again after the others of its site, which sleeps `after_s`.

        False when it has had its tries and is given up. Raises ContractError when it is not in flight.
        """
        site = self._remove(claim.ticket)
        again = claim.tries + 1 < self._settings.tries
        if again:
            self._put(site, claim.url.text, claim.depth, claim.tries + 1, claim.etag, claim.last_modified)
            self._n_done -= 1
        else:
            self.dropped[reason] += 1
        self._rest(site, now, after_s)
        return again

    def postpone(self, claim: Claim, *, now: float, after_s: float) -> None:
        """Nothing was tried (its address is busy, the crawl stops): it stays the first of its site.

        Raises ContractError when it is not in flight.
        """
        self._rest(self._land(claim.ticket).site, now, after_s)

    def commit(self) -> None:
        """Make everything since the last commit durable at once, exchange links with the other shards."""
        for shard, links in self._outgoing.items():
            if n_lost := len(links) - self._inboxes[shard].send(links):
                self.refused["inbox full"] += n_lost
        self._outgoing.clear()
        received = self._drain()
        self._save()
        self._store.commit()
        self._committed = self._document
        if received is not None:
            self._inboxes[self._shard].remove(received)

    def outbox(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Up to `limit` committed documents numbered above `after`, in order; numbers rise but have holes."""
        return self._store.documents(after, self._committed, limit)

    def forget(self, upto: int) -> None:
        """The documents numbered up to `upto` are safe elsewhere; durable with the next commit."""
        upto = min(upto, self._committed)
        n, n_bytes = self._store.measure_outbox(upto)
        if n:
            self._store.remove_documents(upto)
            self._n_outbox -= n
            self._outbox_bytes -= n_bytes

    def counts(self) -> dict[str, int]:
        """Gauges: addresses `queued`, `in_flight`, `done` (with or without a page) and `known`; `hosts` with something
        queued or in flight; documents in the `outbox` and `outbox_bytes`; links on their way in and out, `inbox`.
        """
        n_linked = sum(map(len, self._outgoing.values()))
        return {
            "queued": self._sites.n_waiting - len(self._in_flight),
            "hosts": self._sites.n_ready + len(self._in_flight),
            "in_flight": len(self._in_flight),
            "done": self._n_done,
            "known": len(self._seen),
            "outbox": self._n_outbox,
            "outbox_bytes": self._outbox_bytes,
            "inbox": n_linked + (self._inboxes[self._shard].count() if self._inboxes else 0),
        }

    def remember_host(self, origin: str, memory: HostMemory) -> None:
        """Keep what is known of an origin, its robots.txt above all; durable with the next commit."""
        self._store.put_host(origin, memory)
        self._n_remembered += 1
        if self._n_remembered % 1024 == 0:
            self._store.remove_hosts(memory.fetched_at - DAY_S)

    def remember_tdmrep(self, origin: str, body: bytes) -> None:
        """Add its tdmrep.json to what is known of an origin; it is forgotten together with the robots.txt."""
        self._store.put_tdmrep(origin, body)

    def recall_host(self, origin: str, now: float) -> HostMemory | None:
        """What is known of an origin; None when nothing, or nothing of the last 24 hours (RFC 9309, section 2.4)."""
        memory = self._store.find_host(origin)
        return memory if memory is not None and now - memory.fetched_at < DAY_S else None

    def close(self) -> None:
        """Let the files go; what was not committed is forgotten. Safe to call twice."""
        self._store.close()
        for inbox in self._inboxes.values():
            inbox.close()

    def _accept(self, urls: Iterable[Url], depth: int) -> int:
        rows: list[Waiting] = []
        n_accepted = 0
        for site, accepted in self._limits.admit(urls):
            numbers: list[int] = []
            for start in range(0, len(accepted), LINES):
                lines = "\n".join([url.text for url in accepted[start : start + LINES]])
                numbers.append(self._next_number())
                rows.append((numbers[-1], site.id, depth, 0, lines, None, None))
            self._sites.queue(site, numbers, len(accepted))
            n_accepted += len(accepted)
        self._store.put_waiting(rows)
        return n_accepted

    def _route(self, urls: list[Url], depth: int) -> list[Url]:
        """Those of this shard; the others are prepared for sending."""
        own: list[Url] = []
        for url in urls:
            shard = shard_of(url, self._n_shards)
            if shard == self._shard:
                own.append(url)
            elif url.key not in self._sent:
                self._sent.add(url.key)
                if (reason := trap(url)) is not None:
                    self.refused[reason] += 1
                else:
                    self._outgoing.setdefault(shard, []).append((depth, url.text))
        if len(self._sent) > SENT:
            self._sent.clear()
        return own

    def _drain(self) -> int | None:
        """Accept links from the inbox; returns the number of the last one."""
        rows = self._inboxes[self._shard].receive(DRAIN) if self._inboxes else []
        by_depth: dict[int, list[Url]] = {}
        for _, depth, text in rows:
            if (url := parse_url(text)) is not None:
                by_depth.setdefault(depth, []).append(url)
        for depth, urls in by_depth.items():
            self._accept(urls, depth)
        return rows[-1][0] if rows else None

    def _wake(self, now: float) -> None:
        """Queue the pages whose time has come again."""
        for _, _, depth, text, etag, last_modified in self._store.take_revisits(now, REVISITS):
            url = parse_url(text)
            site = None if url is None else self._sites.find(url.site)
            if site is not None:
                self._put(site, text, depth, 0, etag, last_modified)
        self._revisit_at = self._store.first_revisit_at()

    def _put(self, site: Site, text: str, depth: int, tries: int, etag: str | None, last_modified: str | None) -> None:
        """Queue one address once more."""
        number = self._next_number()
        self._store.put_waiting([(number, site.id, depth, tries, text, etag, last_modified)])
        self._sites.queue(site, [number], 1)

    def _waiting(self) -> Iterator[tuple[int, int]]:
        """Number and site of all rows that wait."""
        rows = self._store.list_waiting(0, ROWS)
        while rows:
            yield from rows
            rows = self._store.list_waiting(rows[-1][0], ROWS)

    def _land(self, ticket: int) -> _Flight:
        """The address is in flight no more; its site stays busy until `_rest`."""
        flight = self._in_flight.pop(ticket, None)
        if flight is None:
            raise ContractError(f"claim number {ticket} is not in flight: it was never made, or finished twice.")
        return flight

    def _remove(self, ticket: int) -> Site:
        """The address is done with."""
        flight = self._land(ticket)
        if flight.last:
            self._store.remove_waiting(flight.row)
        self._sites.unqueue(flight.site, last=flight.last)
        self._n_done += 1
        return flight.site

    def _rest(self, site: Site, now: float, gap_s: float) -> None:
        self._sites.rest(site, now + min(max(gap_s, 0.0), MAX_SLEEP_S))

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _save(self) -> None:
        self._store.append_seen(self._seen.take_new(), self._variants.take_new())
        self._store.save_sites(self._sites.take_changed())
        self._store.save_state(
            {
                "shard": self._shard,
                "n_shards": self._n_shards,
                "number": self._number,
                "document": self._document,
                "done": self._n_done,
            }
        )

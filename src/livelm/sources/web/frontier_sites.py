"""Whose turn it is: the sites of a shard by the time from which they may be asked again, one request each."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from livelm.sources.web.frontier_store import SiteRow


@dataclass(slots=True, eq=False)
class Site:
    """What is known of one site; about 500 bytes with its name, and 8 for each row that waits."""

    id: int
    name: str
    n_urls: int
    """Addresses accepted so far."""
    n_waiting: int
    """Addresses on disk, the one in flight included."""
    n_taken: int
    """Of the row on disk that waits longest, the lines that are done."""
    next_at: float
    """Unix time before which it is left alone."""
    busy: bool = False
    """Whether one of its addresses is in flight."""
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    """Numbers of the rows on disk, oldest first."""
    n_gone: int = 0
    """How many of `rows` are done: taking them off one by one would move all the others each time."""


class Sites:
    """A heap of the sites that have something waiting and nothing in flight, longest due first, and all others."""

    def __init__(self, sites: list[SiteRow], rows: Iterable[tuple[int, int]], latest: float) -> None:
        """Restore from all sites by id, and number and site id of all rows in order.

        No site sleeps beyond `latest` (Unix time): a clock that was wrong once must not silence it for years.
        """
        self.n_waiting = 0
        self._now = 0.0
        self._by_name: dict[str, Site] = {}
        self._heap: list[tuple[float, int, Site]] = []
        self._changed: set[Site] = set()
        for order, (number, name, n_urls, n_waiting, n_taken, next_at) in enumerate(sites):
            site = self._by_name[name] = Site(number, name, n_urls, n_waiting, n_taken, min(next_at, latest))
            self.n_waiting += n_waiting
            if n_waiting:
                self._heap.append((site.next_at, order, site))
        heapify(self._heap)
        self._order = len(sites)  # among equals, who came first
        by_id = list(self._by_name.values())  # ids count from 1 without holes
        for row, number in rows:
            by_id[number - 1].rows.append(row)

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def n_ready(self) -> int:
        """Sites with something waiting and nothing in flight."""
        return len(self._heap)

    @property
    def next_at(self) -> float | None:
        """When the first of them is due, Unix time."""
        return self._heap[0][0] if self._heap else None

    def find(self, name: str) -> Site | None:
        """The site, if it was met before."""
        return self._by_name.get(name)

    def create(self, name: str) -> Site:
        """A new site, due now, but after those that are due already."""
        site = self._by_name[name] = Site(len(self._by_name) + 1, name, 0, 0, 0, self._now)
        return site

    def take_due(self, now: float) -> Site | None:
        """The site that has been due longest; it is busy until `rest`."""
        self._now = max(self._now, now)
        if not self._heap or self._heap[0][0] > now:
            return None
        site = heappop(self._heap)[2]
        site.busy = True
        return site

    def queue(self, site: Site, rows: Iterable[int], n: int) -> None:
        """`n` more addresses of the site wait, in these rows."""
        idle = not site.n_waiting and not site.busy
        site.rows.extend(rows)
        site.n_waiting += n
        self.n_waiting += n
        self._changed.add(site)
        if idle:
            site.next_at = max(site.next_at, self._now)
            self._push(site)

    def unqueue(self, site: Site, *, last: bool) -> None:
        """The first address of the site waits no longer; it is the last of its row or not."""
        site.n_taken += 1
        if last:
            site.n_taken = 0
            site.n_gone += 1
            if site.n_gone * 2 > len(site.rows):
                del site.rows[: site.n_gone]
                site.n_gone = 0
        site.n_waiting -= 1
        self.n_waiting -= 1
        self._changed.add(site)

    def rest(self, site: Site, until: float) -> None:
        """Nothing of the site is in flight any more; leave it alone for a while."""
        site.busy = False
        site.next_at = until
        self._changed.add(site)
        if site.n_waiting:
            self._push(site)

    def take_changed(self) -> list[SiteRow]:
        """What to store: the sites that changed since the last call."""
        rows = [(s.id, s.name, s.n_urls, s.n_waiting, s.n_taken, s.next_at) for s in self._changed]
        self._changed.clear()
        return rows

    def _push(self, site: Site) -> None:
        self._order += 1
        heappush(self._heap, (site.next_at, self._order, site))

"""The frontier of a crawl loses nothing, repeats nothing, and is fair to every site."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

from livelm.errors import ContractError, SourceError, StorageError
from livelm.sources.web import frontier_inbox
from livelm.sources.web.frontier import Claim, Frontier, FrontierSettings, HostMemory
from livelm.sources.web.frontier_seen import RECENT, Seen
from livelm.sources.web.urls import Url, parse_url, shard_of

PLAIN = FrontierSettings()


def parsed(text: str) -> Url:
    url = parse_url(text)
    assert url is not None, text
    return url


def pages(n: int, site: str = "example.org") -> list[Url]:
    return [parsed(f"https://{site}/{k}") for k in range(n)]


def claimed(frontier: Frontier, now: float) -> Claim:
    claim = frontier.claim(now)
    assert claim is not None
    return claim


def walk(frontier: Frontier, now: float) -> Iterator[str]:
    """Claim and finish everything, waiting as long as asked."""
    while (wait_s := frontier.next_due(now)) is not None:
        now += wait_s
        while (claim := frontier.claim(now)) is not None:
            yield claim.url.text
            frontier.finish(claim, now=now, gap_s=1.0, status=200)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "crawl" / "frontier-0.sqlite"


def test_an_address_is_given_out_once_however_often_it_is_found(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    assert frontier.add(pages(5) + pages(5), 0) == 5
    assert frontier.add(pages(7), 3) == 2
    assert list(walk(frontier, 100.0)) == [url.text for url in pages(7)]
    assert frontier.add(pages(7), 0) == 0
    assert frontier.counts()["done"] == frontier.counts()["known"] == 7
    assert frontier.next_due(0.0) is None


def test_a_site_has_one_address_in_flight_and_rests_between(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add([parsed("https://www.example.org/1"), parsed("https://blog.example.org/2")], 0)
    claim = claimed(frontier, 100.0)
    assert frontier.claim(100.0) is None
    assert frontier.next_due(100.0) is None
    frontier.finish(claim, now=101.0, gap_s=2.5, status=200)
    assert frontier.next_due(101.0) == 2.5
    assert frontier.claim(103.4) is None
    assert claimed(frontier, 103.5).url.text == "https://blog.example.org/2"


def test_a_site_with_many_pages_does_not_delay_the_others(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add(pages(300, "large.org"), 0)
    for number in range(30):
        frontier.add(pages(3, f"small{number}.org"), 0)
    order: list[str] = []
    now = 0.0
    for _ in range(93):  # three rounds of 31 sites
        claim = claimed(frontier, now)
        order.append(claim.url.site)
        frontier.finish(claim, now=now, gap_s=1.0, status=200)
        now += 1 / 30
    assert Counter(order) == Counter({"large.org": 3} | {f"small{number}.org": 3 for number in range(30)})


def test_new_sites_do_not_overtake_those_that_are_due(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add(pages(50, "old.org"), 0)
    now, n_old = 1000.0, 0
    for number in range(40):
        claim = claimed(frontier, now)
        n_old += claim.url.site == "old.org"
        links = [parsed(f"https://new{number}-{k}.org/") for k in range(3)]
        frontier.finish(claim, now=now, gap_s=0.5, status=200, links=links)
        now += 1.0
    assert n_old > 1  # with three new sites for each page, one that came first would never be asked again


def test_links_are_one_deeper_and_end_at_the_limit(path: Path) -> None:
    frontier = Frontier(path, FrontierSettings(max_depth=2))
    frontier.add(pages(1), 0)
    for depth in range(3):
        claim = claimed(frontier, depth)
        assert claim.depth == depth
        frontier.finish(claim, now=depth, gap_s=0, status=200, links=[parsed(f"https://example.org/deep{depth}")])
    assert frontier.claim(10.0) is None
    assert frontier.refused == {"beyond max_depth": 1}


def test_every_limit_and_trap_is_counted_with_its_reason(path: Path) -> None:
    settings = FrontierSettings(max_pages_per_site=4, max_query_variants=2, max_sites=3, max_urls=9)
    frontier = Frontier(path, settings)
    assert frontier.add(pages(6, "a.org"), 0) == 4
    assert frontier.add([parsed(f"https://b.org/list?page={n}") for n in range(5)], 0) == 2
    assert frontier.add([parsed("https://c.org/calendar/2031-05"), parsed("https://c.org/a/b/a/b/")], 0) == 0
    assert frontier.add(pages(5, "c.org"), 0) == 3
    assert frontier.add(pages(2, "d.org"), 0) == 0
    assert frontier.refused == {
        "max_pages_per_site": 2,
        "max_query_variants": 3,
        "calendar": 1,
        "repeated segments": 1,
        "max_urls": 2,
        "max_sites": 2,
    }
    frontier.commit()
    frontier.close()
    again = Frontier(path, settings)
    assert again.add([parsed("https://c.org/new")], 0) == 0
    assert again.refused == {"max_urls": 1}


def test_query_variants_are_counted_over_a_restart(path: Path) -> None:
    settings = FrontierSettings(max_query_variants=3)
    frontier = Frontier(path, settings)
    assert frontier.add([parsed(f"https://b.org/list?page={n}") for n in range(2)], 0) == 2
    frontier.commit()
    frontier.close()
    frontier = Frontier(path, settings)
    assert frontier.add([parsed(f"https://b.org/list?page={n}") for n in range(9)], 0) == 1
    assert frontier.refused == {"max_query_variants": 6}


def test_a_failed_address_comes_back_after_the_others_and_is_given_up_in_the_end(path: Path) -> None:
    frontier = Frontier(path, FrontierSettings(tries=2))
    frontier.add(pages(2), 0)
    bad = claimed(frontier, 0.0)
    assert frontier.retry(bad, now=0.0, after_s=60.0, reason="timeout")
    assert frontier.next_due(0.0) == 60.0
    good = claimed(frontier, 60.0)
    assert good.url.text.endswith("/1")
    frontier.finish(good, now=60.0, gap_s=1.0, status=200)
    again = claimed(frontier, 61.0)
    assert (again.url, again.tries) == (bad.url, 1)
    assert not frontier.retry(again, now=61.0, after_s=1.0, reason="timeout")
    assert frontier.next_due(61.0) is None
    assert frontier.dropped == {"timeout": 1}
    assert frontier.counts()["done"] == 2


def test_a_postponed_address_stays_first_and_costs_no_try(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add(pages(2), 0)
    claim = claimed(frontier, 0.0)
    frontier.postpone(claim, now=0.0, after_s=3.0)
    assert frontier.claim(2.9) is None
    again = claimed(frontier, 3.0)
    assert (again.url, again.tries) == (claim.url, 0)


def test_a_claim_is_settled_exactly_once(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add(pages(3), 0)
    claim = claimed(frontier, 0.0)
    frontier.drop(claim, now=0.0, gap_s=1.0, reason="robots")
    assert frontier.dropped == {"robots": 1}
    with pytest.raises(ContractError, match="not in flight"):
        frontier.finish(claim, now=0.0, gap_s=1.0, status=200)


def test_nothing_sleeps_longer_than_a_day(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add(pages(2), 0)
    frontier.retry(claimed(frontier, 0.0), now=0.0, after_s=1e9, reason="503")
    assert frontier.next_due(0.0) == 86400.0


def test_a_page_is_visited_again_with_its_validators(path: Path) -> None:
    settings = FrontierSettings(revisit_s=100.0)
    frontier = Frontier(path, settings)
    frontier.add(pages(3), 0)
    frontier.finish(claimed(frontier, 0.0), now=0.0, gap_s=1.0, status=200, etag='"v1"', last_modified="then")
    frontier.drop(claimed(frontier, 1.0), now=1.0, gap_s=1.0, reason="404")
    frontier.commit()
    frontier.close()
    frontier = Frontier(path, settings)
    frontier.finish(claimed(frontier, 2.0), now=2.0, gap_s=1.0, status=200)
    assert frontier.next_due(50.0) == 50.0
    again = claimed(frontier, 100.0)
    assert (again.url, again.etag, again.last_modified) == (pages(1)[0], '"v1"', "then")
    frontier.finish(again, now=100.0, gap_s=1.0, status=304)
    assert claimed(frontier, 102.0).url == pages(3)[2]
    third = frontier.claim(300.0)
    assert third is None  # the site is busy
    assert frontier.counts()["known"] == 3


def test_documents_leave_the_outbox_in_order_after_a_commit_and_before_forget(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add(pages(5), 0)
    for number in range(4):
        frontier.finish(claimed(frontier, number), now=number, gap_s=0, status=200, document=b"%d" % number)
    assert frontier.outbox(0, 10) == []
    frontier.commit()
    rows = frontier.outbox(0, 10)
    assert [document for _, document in rows] == [b"0", b"1", b"2", b"3"]
    assert frontier.outbox(rows[1][0], 1) == rows[2:3]
    frontier.forget(rows[1][0])
    frontier.finish(claimed(frontier, 9.0), now=9.0, gap_s=0, status=200, document=b"late")
    frontier.commit()
    frontier.close()
    frontier = Frontier(path, PLAIN)
    assert [document for _, document in frontier.outbox(0, 10)] == [b"2", b"3", b"late"]
    assert frontier.counts()["outbox"] == 3
    assert frontier.counts()["outbox_bytes"] == 6
    frontier.add([parsed("https://example.org/more")], 0)
    frontier.finish(claimed(frontier, 99.0), now=99.0, gap_s=0, status=200, document=b"more")
    frontier.commit()
    numbers = [number for number, _ in frontier.outbox(0, 10)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] - numbers[-2] > 1 << 20  # a power cut may undo commits, but no number is used twice


def test_what_was_not_committed_is_as_if_it_never_happened(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add(pages(3), 0)
    frontier.commit()
    first = claimed(frontier, 0.0)
    frontier.finish(first, now=0.0, gap_s=0, status=200, links=pages(9), document=b"gone")
    frontier.close()
    frontier = Frontier(path, PLAIN)
    assert claimed(frontier, 1.0).url == first.url
    assert frontier.outbox(0, 10) == []
    assert frontier.counts()["known"] == 3


def test_a_host_is_remembered_for_a_day(path: Path) -> None:
    memory = HostMemory(robots=b"User-agent: *", status=200, fetched_at=1000.0, crawl_delay_s=2.0, failures=1)
    frontier = Frontier(path, PLAIN)
    frontier.remember_host("https://example.org", memory)
    frontier.commit()
    frontier.close()
    frontier = Frontier(path, PLAIN)
    assert frontier.recall_host("https://example.org", 1000.0 + 86399) == memory
    assert frontier.recall_host("https://example.org", 1000.0 + 86401) is None
    assert frontier.recall_host("http://example.org", 1000.0) is None


def test_links_of_other_shards_reach_them_exactly_once(tmp_path: Path) -> None:
    def opened() -> list[Frontier]:
        return [Frontier(tmp_path / f"frontier-{n}.sqlite", PLAIN, shard=n, n_shards=3) for n in range(3)]

    shards = opened()
    urls = [url for number in range(30) for url in pages(2, f"host{number}.org")]
    for frontier in shards:  # all find the same links, twice
        frontier.add(urls, 1)
        frontier.add(urls, 1)
    assert sum(frontier.counts()["inbox"] for frontier in shards) == 120
    shards[0].commit()
    for frontier in shards:
        frontier.close()
    shards = opened()  # the links of shard 0 survive; the others had not committed and find theirs again
    for frontier in shards[1:]:
        frontier.add(urls, 1)
    for frontier in shards * 2:
        frontier.commit()
    assert sum(frontier.counts()["inbox"] for frontier in shards) == 0
    for number, frontier in enumerate(shards):
        found = list(walk(frontier, 0.0))
        assert sorted(found) == sorted(url.text for url in urls if shard_of(url, 3) == number)


def test_an_inbox_that_nobody_empties_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier_inbox, "MAX_ROWS", 10)
    frontier = Frontier(tmp_path / "frontier-0.sqlite", PLAIN, shard=0, n_shards=2)
    urls = [url for number in range(40) for url in pages(1, f"host{number}.org")]
    foreign = sum(shard_of(url, 2) for url in urls)
    assert foreign > 10
    frontier.add(urls, 0)
    frontier.commit()
    assert frontier.refused == {"inbox full": foreign - 10}


def test_the_set_of_known_addresses_is_exact_beyond_its_recent_part() -> None:
    def made(start: int, stop: int) -> list[Url]:
        return [Url(str(n), n * 2_654_435_761 - (1 << 62), "", "", "") for n in range(start, stop)]

    seen = Seen()
    first = made(0, RECENT + 10)
    seen.add([url.key for url in first])
    assert len(seen) == RECENT + 10
    mixed = made(RECENT, RECENT + 20)
    assert seen.unseen(mixed + mixed) == mixed[10:]
    assert seen.unseen(first) == []
    assert len(seen.take_new()) == 8 * (RECENT + 10)
    assert seen.take_new() == b""


def test_a_full_disk_is_reported_and_undoes_only_what_was_not_committed(path: Path) -> None:
    frontier = Frontier(path, PLAIN)
    frontier.add(pages(3), 0)
    frontier.commit()
    frontier._store._db.execute("PRAGMA max_page_count = 30")
    claim = claimed(frontier, 0.0)
    with pytest.raises(StorageError, match=r"full.*last commit is intact"):
        frontier.finish(claim, now=0.0, gap_s=1.0, status=200, links=pages(9), document=bytes(1 << 20))
    with pytest.raises(StorageError):
        frontier.commit()  # half a page must not become durable
    frontier.close()
    frontier = Frontier(path, PLAIN)
    assert frontier.counts()["queued"] == 3
    assert claimed(frontier, 0.0).url == claim.url


def test_a_foreign_newer_or_busy_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with closing(sqlite3.connect(foreign)) as database:
        database.execute("CREATE TABLE other(x)")
    with pytest.raises(SourceError, match="not a frontier"):
        Frontier(foreign, PLAIN)
    text = tmp_path / "text.sqlite"
    text.write_text("no database at all, but long enough to be looked at" * 100)
    with pytest.raises(SourceError, match="damaged"):
        Frontier(text, PLAIN)
    path = tmp_path / "frontier.sqlite"
    frontier = Frontier(path, PLAIN, shard=0, n_shards=2)
    with pytest.raises(SourceError, match="in use"):
        Frontier(path, PLAIN, shard=0, n_shards=2)
    frontier.close()
    frontier.close()
    with pytest.raises(SourceError, match="part 0 of 2, not 0 of 4"):
        Frontier(path, PLAIN, shard=0, n_shards=4)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(SourceError, match="schema 99"):
        Frontier(path, PLAIN, shard=0, n_shards=2)


N_PAGES = 4000
N_SITES = 40


def synthetic(number: int) -> Url:
    return parsed(f"https://site{number % N_SITES}.org/{number}")


def links_of(number: int) -> list[Url]:
    """A connected web of `N_PAGES` pages."""
    return [synthetic(n) for n in (2 * number + 1, 2 * number + 2, 7 * number % N_PAGES, number // 3) if n < N_PAGES]


def crawl(folder: Path, seed: int) -> None:
    """Work until nothing is left, delivering documents as a reader with a durable cursor would."""
    draw = random.Random(seed)
    frontier = Frontier(folder / "frontier-0.sqlite", PLAIN)
    events = os.open(folder / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    delivered = os.open(folder / "delivered", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    lines = os.pread(delivered, 1 << 24, 0).split(b"\n")
    after = int(lines[-2].split()[0]) if len(lines) > 1 else 0
    frontier.add([synthetic(0)], 0)
    flying: list[Claim] = []
    finished: list[str] = []
    now = time.time()
    while True:
        now += 0.01
        while len(flying) < 20 and (claim := frontier.claim(now)) is not None:
            os.write(events, f"claim {claim.url.text}\n".encode())
            flying.append(claim)
        if flying and (len(flying) == 20 or frontier.next_due(now) is None or draw.random() < 0.7):
            claim = flying.pop(draw.randrange(len(flying)))
            number = int(claim.url.text.rpartition("/")[2])
            frontier.finish(
                claim, now=now, gap_s=0.05, status=200, links=links_of(number), document=claim.url.text.encode()
            )
            finished.append(claim.url.text)
        over = not flying and frontier.next_due(now) is None
        if draw.random() < 0.05 or over:
            frontier.commit()
            os.write(events, "".join(f"safe {text}\n" for text in finished).encode())
            finished.clear()
            for number, document in frontier.outbox(after, 50):
                os.write(delivered, b"%d %s\n" % (number, document))
                after = number
            frontier.forget(after)
        if over and not frontier.outbox(after, 1):
            break
    os.write(events, b"over\n")
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_it_loses_and_repeats_no_finished_page(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    context = multiprocessing.get_context("fork")
    events = tmp_path / "events"
    n_kills = 0
    while True:
        process = context.Process(target=crawl, args=(tmp_path, draw.randrange(1 << 30)))
        process.start()
        assert process.pid is not None
        # the moment of the kill is a random amount of work, however fast the machine is
        target = (events.stat().st_size if events.exists() else 0) + draw.randrange(100, 40_000)
        while process.exitcode is None and (not events.exists() or events.stat().st_size < target):
            process.join(0.001)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            n_kills += 1
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert n_kills >= 5
    safe: set[str] = set()
    flying: Counter[str] = Counter()
    for line in events.read_text().splitlines()[:-1]:
        event, text = line.split()
        if event == "claim":
            assert text not in safe  # a committed page is never asked for again
            flying[text] += 1
        else:
            safe.add(text)
    everything = {synthetic(n).text for n in range(N_PAGES)}
    assert set(flying) == everything
    rows = [line.split() for line in (tmp_path / "delivered").read_text().splitlines()]
    numbers = [int(number) for number, _ in rows]
    assert numbers == sorted(set(numbers))
    assert sorted(text for _, text in rows) == sorted(everything)  # every document exactly once


def share_links(folder: Path, shard: int, n_shards: int, n_claimed: "Synchronized[int]") -> None:
    """Work until all shards together have claimed as many pages as there are."""
    deep = FrontierSettings(max_depth=1000)  # several processes do not walk breadth first
    frontier = Frontier(folder / f"frontier-{shard}.sqlite", deep, shard=shard, n_shards=n_shards)
    if shard == 0:
        frontier.add([synthetic(0)], 0)
    now = time.time()
    claims = os.open(folder / f"claimed-{shard}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while n_claimed.value < N_PAGES:
        now += 1.0
        claim = frontier.claim(now)
        if claim is None:
            frontier.commit()
            time.sleep(0.002)
            continue
        os.write(claims, f"{claim.url.text}\n".encode())
        with n_claimed.get_lock():
            n_claimed.value += 1
        number = int(claim.url.text.rpartition("/")[2])
        frontier.finish(claim, now=now, gap_s=0.0, status=200, links=links_of(number))
    os._exit(0)


@pytest.mark.slow
def test_processes_that_exchange_links_fetch_every_page_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    n_claimed = context.Value("i", 0)
    processes = [context.Process(target=share_links, args=(tmp_path, shard, 4, n_claimed)) for shard in range(4)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(60.0)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    found = [text for shard in range(4) for text in (tmp_path / f"claimed-{shard}").read_text().splitlines()]
    assert sorted(found) == sorted(synthetic(n).text for n in range(N_PAGES))

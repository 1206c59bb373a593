"""Whatever a server does, a fetch ends in a page or in a named reason, and never at a private address."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from pydantic import ValidationError
from tests.live.hostile_server import PAGE, HostileServer, self_signed

from livelm.errors import SourceError
from livelm.sources.web import address
from livelm.sources.web.address import AddressPolicy, AddressSettings
from livelm.sources.web.connect import ROUTE, CheckedConnector, Route, tls_context
from livelm.sources.web.fetch import DAY_S, Fetcher, FetchError, FetchSettings, Response, backoff_s, retry_after

try:
    import uvloop
except ImportError:
    uvloop = None

LOOPS = {"asyncio": asyncio.new_event_loop} | ({} if uvloop is None else {"uvloop": uvloop.new_event_loop})
ENDS = {
    "/endless": "too_large",
    "/endless/chunks": "too_large",
    "/endless/headers": "protocol",
    "/endless/line": "protocol",
    "/endless/trailers": "incomplete",
    "/endless/100": "protocol",
    "/bomb/gzip": "bomb",
    "/bomb/deflate": "bomb",
    "/bomb/br": "bomb",
    "/bomb/zstd": "bomb",
    "/bomb/members": "bomb",
    "/lie/gzip": "bad_encoding",
    "/lie/deflate": "bad_encoding",
    "/lie/br": "bad_encoding",
    "/lie/zstd": "bad_encoding",
    "/lie/layers": "bad_encoding",
    "/lie/unknown": "bad_encoding",
    "/lie/longer": "incomplete",
    "/lie/shorter": "protocol",
    "/lie/huge": "too_large",
    "/lie/negative": "protocol",
    "/lie/two": "protocol",
    "/cut/gzip": "bad_encoding",
    "/cut/br": "bad_encoding",
    "/cut/zstd": "bad_encoding",
    "/die/now": "connection",
    "/die/header": "connection",
    "/die/body": "incomplete",
    "/die/chunk": "incomplete",
    "/die/reset": "incomplete",
    "/redirect/loop": "redirect_loop",
    "/redirect/round/0": "redirect_loop",
    "/redirect/many/0": "too_many_redirects",
    "/redirect/garbage": "bad_redirect",
    "/redirect/to/" + quote("javascript:alert(1)", safe=""): "bad_redirect",
    "/redirect/to/" + quote("http://user:secret@127.0.0.1/", safe=""): "bad_redirect",
    "/redirect/to/" + quote("http://127.0.0.1:1/", safe=""): "refused_address",
    "/redirect/to/" + quote("http://169.254.169.254/latest/meta-data/", safe=""): "refused_address",
    "/redirect/to/" + quote("http://[::ffff:a00:1]/", safe=""): "refused_address",
    "/garbage/bytes": "protocol",
    "/garbage/status": "protocol",
    "/garbage/header": "protocol",
    "/garbage/chunk": "protocol",
    "/garbage/ssh": "protocol",
    "/garbage/switch": "protocol",
}
GOOD = ["/page/1", "/encoded/gzip", "/encoded/deflate", "/encoded/br", "/encoded/zstd", "/redirect/to//page/7"]
PRIVATE = [
    "127.0.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.1",
    "127.0.0.1.",
    "\uff11\uff12\uff17.0.0.1",
    "%31%32%37.0.0.1",
    "0",
    "0.0.0.0",
    "127.0.0.2",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fd00::1]",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "any.localhost",
    "10.0.0.1",
    "169.254.169.254",
    "100.64.0.1",
]


def settings_for(server: HostileServer, **changes: Any) -> FetchSettings:
    allow = AddressSettings(allow=(f"127.0.0.1:{server.port}",))
    values = {"user_agent": "livelm-test (nobody@example.invalid)", "timeout_s": 20.0, "slow_grace_s": 10.0}
    return FetchSettings(**{**values, "connections_per_host": 64, "address": allow, **changes})


def fetch(
    settings: FetchSettings,
    work: Callable[[Fetcher], Awaitable[Any]],
    lookup: address.Lookup | None = None,
    loop: str = "asyncio",
) -> Any:
    """Run `work` with an open fetcher and return what it returned."""

    async def opened() -> Any:
        async with Fetcher(settings, lookup) as fetcher:
            return await work(fetcher)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(opened())


async def end_of(fetcher: Fetcher, url: str, **options: Any) -> Response | FetchError:
    try:
        return await fetcher.get(url, **options)
    except FetchError as error:
        return error


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        yield running


@pytest.fixture(scope="module", params=list(LOOPS))
def ends(request: pytest.FixtureRequest, server: HostileServer) -> dict[str, Response | FetchError]:
    """How the fetch of each path ended, all at once; the good pages come last."""

    async def work(fetcher: Fetcher) -> dict[str, Response | FetchError]:
        bad = await asyncio.gather(*(end_of(fetcher, server.url(path)) for path in ENDS))
        good = await asyncio.gather(*(end_of(fetcher, server.url(path)) for path in GOOD))
        return dict(zip([*ENDS, *GOOD], [*bad, *good], strict=True))

    return fetch(settings_for(server), work, loop=request.param)


@pytest.mark.parametrize(("path", "reason"), ENDS.items())
def test_every_misbehaviour_ends_in_its_reason(ends: dict[str, Response | FetchError], path: str, reason: str) -> None:
    end = ends[path]
    assert isinstance(end, FetchError), f"{path} was fetched: {end}"
    assert end.reason == reason, str(end)
    assert end.retry == (reason in ("connection", "incomplete", "timeout", "too_slow"))
    assert str(end).isprintable()
    assert len(str(end)) < 1000


@pytest.mark.parametrize("path", GOOD)
def test_good_pages_still_come_whole_after_all_that(ends: dict[str, Response | FetchError], path: str) -> None:
    end = ends[path]
    assert isinstance(end, Response), end
    assert end.status == 200
    assert end.body.startswith(PAGE)
    assert end.address == "127.0.0.1"
    assert (end.n_wire_bytes < len(PAGE)) == path.startswith("/encoded")


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize(
    ("path", "reason"),
    [("/drip", "too_slow"), ("/drip/headers", "timeout"), ("/silence", "timeout")],
)
def test_who_is_slow_or_never_comes_to_the_point_is_given_up(
    server: HostileServer, path: str, reason: str, loop: str
) -> None:
    end = fetch(settings_for(server, timeout_s=0.5, slow_grace_s=0.2), lambda f: end_of(f, server.url(path)), loop=loop)
    assert isinstance(end, FetchError)
    assert (end.reason, end.retry) == (reason, True)


def test_no_spelling_of_a_private_address_is_connected_to(server: HostileServer) -> None:
    settings = settings_for(server, address=AddressSettings(ports=(server.port, 80)))  # the port shall be no reason
    urls = [f"http://{host}{port}/page/665" for host in PRIVATE for port in ("", f":{server.port}")]
    before = server.n_connections

    async def work(fetcher: Fetcher) -> list[Response | FetchError]:
        return [await end_of(fetcher, url) for url in urls]

    for url, end in zip(urls, fetch(settings, work), strict=True):
        assert isinstance(end, FetchError), url
        assert (end.reason, end.retry) == ("refused_address", False), url
        assert "refused: port" not in str(end), url
    assert server.n_connections == before


def test_a_redirect_does_not_lead_to_a_private_address_either(server: HostileServer) -> None:
    # with the server's port some would be the one address that is allowed
    urls = [server.url("/redirect/to/" + quote(f"http://{host}/page/666", safe="")) for host in PRIVATE]

    async def work(fetcher: Fetcher) -> list[Response | FetchError]:
        return [await end_of(fetcher, url) for url in urls]

    for url, end in zip(urls, fetch(settings_for(server), work), strict=True):
        assert isinstance(end, FetchError), url
        assert end.reason == "refused_address", url
        assert server.paths[url.removeprefix(server.url(""))] == 1
    assert server.paths["/page/666"] == 0


@pytest.fixture
def first_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 pass for a public address, and no other: tests stay on this machine."""
    real = address.special
    monkeypatch.setattr(address, "special", lambda text: None if text == "127.0.0.1" else real(text))


@pytest.mark.usefixtures("first_is_public")
@pytest.mark.parametrize("ttl_s", [0.0, 300.0])
def test_an_answer_that_changes_between_check_and_connect_never_leads_to_the_private_address(ttl_s: float) -> None:
    asked = 0

    async def rebinding(host: str) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return ["127.0.0.1"] if asked % 2 else ["127.0.0.2"]

    async def work(fetcher: Fetcher) -> list[Response | FetchError]:
        return [await end_of(fetcher, f"http://rebind.example:{outside.port}/page/{n}") for n in range(8)]

    # one server at every address of this machine, so that the private one would answer too
    with HostileServer("0.0.0.0") as outside:
        addresses = AddressSettings(ports=(outside.port,), dns_ttl_s=ttl_s)
        ends = fetch(settings_for(outside, address=addresses), work, rebinding)
        fetched = [end for end in ends if isinstance(end, Response)]
        assert fetched, ends
        assert {end.address for end in fetched} == {"127.0.0.1"}
        assert {end.reason for end in ends if isinstance(end, FetchError)} <= {"refused_address"}
        assert set(outside.reached_at) == {"127.0.0.1"}
        assert asked == (1 if ttl_s else 8)  # one look-up for each fetch, none of aiohttp's own


@pytest.mark.usefixtures("first_is_public")
def test_a_name_with_one_private_address_is_refused_even_when_another_would_do(server: HostileServer) -> None:
    async def both(host: str) -> Sequence[str]:
        return ["127.0.0.1", "10.0.0.1"]

    settings = settings_for(server, address=AddressSettings(ports=(server.port,)))
    end = fetch(settings, lambda f: end_of(f, f"http://both.example:{server.port}/"), both)
    assert isinstance(end, FetchError)
    assert end.reason == "refused_address"


@pytest.mark.parametrize(("checked", "error"), [("1.1.1.1", aiohttp.ClientConnectorError), ("127.0.0.1", SourceError)])
def test_the_connector_itself_connects_to_nothing_unchecked_and_sends_nothing_to_a_private_peer(
    server: HostileServer, checked: str, error: type[Exception]
) -> None:
    """First: an address that is not the checked one. Then: the checked one, but it should not have passed."""
    before = len(server.requests)

    async def work() -> None:
        policy = AddressPolicy(AddressSettings())
        connector = CheckedConnector(policy, tls_context(""), keepalive_s=1.0, per_host=1, max_idle=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            ROUTE.set(Route("127.0.0.1", server.port, (checked,)))
            with pytest.raises(error):
                await session.get(server.url("/page/1"))

    asyncio.run(work())
    assert len(server.requests) == before


def test_a_redirect_goes_only_where_the_caller_agrees(server: HostileServer) -> None:
    seen: list[str] = []

    async def refuse(url: str) -> str | None:
        seen.append(url)
        return "robots"

    url = server.url("/redirect/to//page/31")
    end = fetch(settings_for(server), lambda f: end_of(f, url, check_redirect=refuse))
    assert isinstance(end, FetchError)
    assert end.reason == "robots"
    assert seen == [server.url("/page/31")]
    assert server.paths["/page/31"] == 0


def test_the_caller_may_fetch_while_it_looks_at_a_redirect_even_when_only_one_may_be_in_flight(
    server: HostileServer,
) -> None:
    async def work(fetcher: Fetcher) -> Response:
        async def robots(url: str) -> str | None:
            await fetcher.get(server.url("/robots.txt"))
            return None

        return await fetcher.get(server.url("/redirect/to//page/32"), check_redirect=robots)

    response = fetch(settings_for(server, in_flight=1), work)
    assert response.url == server.url("/page/32")
    assert response.redirects == (server.url("/redirect/to//page/32"),)


def test_the_caller_may_leave_a_body_for_what_the_headers_say(server: HostileServer) -> None:
    end = fetch(
        settings_for(server), lambda f: end_of(f, server.url("/endless"), check_head=lambda status, headers: "image")
    )
    assert isinstance(end, FetchError)
    assert end.reason == "image"


def test_a_body_is_cut_where_the_caller_wants_no_more(server: HostileServer) -> None:
    async def work(fetcher: Fetcher) -> list[Response]:
        paths = ("/endless", "/lie/huge", "/page/1", "/encoded/gzip")
        return [await fetcher.get(server.url(path), read_at_most=1000) for path in paths]

    for response in fetch(settings_for(server), work):
        assert response.truncated
        assert response.body in ((PAGE * 8)[:1000], PAGE[:1000])


def test_raw_bodies_are_kept_as_sent(server: HostileServer) -> None:
    response = fetch(settings_for(server, keep_raw=True), lambda f: f.get(server.url("/encoded/gzip")))
    assert response.raw is not None
    assert response.raw.startswith(b"\x1f\x8b")
    assert len(response.raw) == response.n_wire_bytes
    assert fetch(settings_for(server), lambda f: f.get(server.url("/page/1"))).raw is None


def test_a_page_seen_before_is_asked_for_conditionally_and_only_that_page(server: HostileServer) -> None:
    before = len(server.requests)

    async def work(fetcher: Fetcher) -> Response:
        options: dict[str, Any] = {"etag": '"v1"', "last_modified": "Sat, 01 Jan 2022 00:00:00 GMT"}
        await fetcher.get(server.url("/redirect/to//page/2"), **options)
        await fetcher.get(server.url("/page/3"), etag='"a"\r\nX-Injected: 1')
        return await fetcher.get(server.url("/status/304"), **options)

    response = fetch(settings_for(server), work)
    redirect, page, injected, unchanged = server.requests[before:]
    assert (response.status, response.headers["etag"]) == (304, '"v1"')
    for request in (redirect, unchanged):
        assert b'If-None-Match: "v1"\r\n' in request
        assert b"If-Modified-Since: Sat, 01 Jan 2022 00:00:00 GMT\r\n" in request
    assert b"If-None" not in page + injected
    assert b"X-Injected" not in injected
    assert b"User-Agent: livelm-test (nobody@example.invalid)\r\n" in redirect
    assert b"Cookie" not in redirect


def test_connections_are_used_again_and_bounded_per_host() -> None:
    async def one_by_one(fetcher: Fetcher) -> None:
        for n in range(10):
            await fetcher.get(server.url(f"/page/{n}"))

    async def together(fetcher: Fetcher) -> None:
        await asyncio.gather(*(fetcher.get(server.url(f"/page/{n}")) for n in range(40)))

    for work, changes, most in [
        (one_by_one, {}, 1),
        (together, {"connections_per_host": 2}, 2),
        (one_by_one, {"max_idle": 0}, 10),
    ]:
        with HostileServer() as server:
            fetch(settings_for(server, **changes), work)
            assert server.n_connections == most
            assert sum(server.paths.values()) in (10, 40)


@pytest.mark.parametrize("loop", list(LOOPS))
def test_a_connection_on_which_answers_come_unasked_is_hung_up_at_once(loop: str) -> None:
    async def work(fetcher: Fetcher) -> Response:
        response = await fetcher.get(server.url("/endless/answers"))
        for _ in range(200):
            if server.left["/endless/answers"]:
                break
            await asyncio.sleep(0.05)
        return response

    with HostileServer() as server:
        response = fetch(settings_for(server, keepalive_s=300.0), work, loop=loop)
        assert response.body == PAGE
        assert server.left["/endless/answers"] == 1, "the idle connection still takes what nobody asked for"


@pytest.mark.parametrize(
    ("host", "days", "trusted", "reason"),
    [
        ("IP:127.0.0.1", 2, True, None),
        ("IP:127.0.0.1", 2, False, "tls"),
        ("elsewhere.example", 2, True, "tls"),
        ("IP:127.0.0.1", -1, True, "tls"),
    ],
)
def test_only_valid_certificates_are_accepted(
    tmp_path: Path, host: str, days: int, trusted: bool, reason: str | None
) -> None:
    certificate = self_signed(tmp_path, host, days=days)
    if certificate is None:
        pytest.skip("there is no `openssl` command to make certificates with")
    with HostileServer(certificate=certificate) as server:
        settings = settings_for(server, ca_file=str(certificate[0]) if trusted else "")
        end = fetch(settings, lambda f: end_of(f, server.url("/page/1")))
    assert (end.reason if isinstance(end, FetchError) else None) == reason, str(end)


def test_tls_against_a_server_that_does_not_speak_it_is_a_tls_error(server: HostileServer) -> None:
    url = server.url("/page/1").replace("http:", "https:")
    end = fetch(settings_for(server), lambda f: end_of(f, url))
    assert isinstance(end, FetchError)
    assert end.reason == "tls"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "page",
        "ftp://a.example/",
        "file:///etc/passwd",
        "http://",
        "http://a b/",
        "http://[::1%25lo]/",
        "http://u@a.b",
    ],
)
def test_what_is_no_web_address_is_refused_as_such(server: HostileServer, url: str) -> None:
    end = fetch(settings_for(server), lambda f: end_of(f, url))
    assert isinstance(end, FetchError)
    assert end.reason == "bad_url"


def test_names_nobody_knows_are_a_dns_failure_and_are_asked_for_once(server: HostileServer) -> None:
    asked = []

    async def nobody(host: str) -> Sequence[str]:
        asked.append(host)
        raise OSError(-2, "Name or service not known")

    async def work(fetcher: Fetcher) -> list[Response | FetchError]:
        return [await end_of(fetcher, f"http://gone.example/{n}") for n in range(3)]

    assert [getattr(end, "reason", None) for end in fetch(settings_for(server), work, nobody)] == ["dns"] * 3
    assert asked == ["gone.example"]


def test_nobody_fetches_without_saying_who_asks() -> None:
    with pytest.raises(ValidationError):
        FetchSettings()  # type: ignore[call-arg]
    for agent in ("", "a\r\nX: y"):
        with pytest.raises(ValidationError):
            FetchSettings(user_agent=agent)


def test_certificates_that_cannot_be_read_are_said_before_anything_is_fetched(
    server: HostileServer, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("nothing here")
    for name in ("absent.pem", "empty.pem"):
        with pytest.raises(SourceError, match="no certificates"):
            fetch(settings_for(server, ca_file=str(tmp_path / name)), lambda f: f.get(server.url("/")))


@pytest.mark.parametrize("status", [429, 503])
def test_servers_that_ask_for_patience_say_for_how_long(server: HostileServer, status: int) -> None:
    async def work(fetcher: Fetcher) -> list[Response]:
        return [await fetcher.get(server.url(f"/later/{status}/{wait}")) for wait in ("120", "date/3600", "soon")]

    seconds, date, nothing = fetch(settings_for(server), work)
    assert [seconds.status, date.status] == [status, status]
    assert retry_after(seconds.headers, time.time()) == 120.0
    assert retry_after(date.headers, time.time()) == pytest.approx(3600, abs=60)
    assert retry_after(nothing.headers, time.time()) is None


def test_retry_after_is_never_negative_never_more_than_a_day_and_never_raises() -> None:
    now = 1_700_000_000.0
    past, far = formatdate(now - 500, usegmt=True), formatdate(now + 10 * DAY_S, usegmt=True)
    for text, wait in [("0", 0.0), (past, 0.0), (far, DAY_S), ("9" * 5000, DAY_S), ("1000000", DAY_S), ("", None)]:
        assert retry_after({"retry-after": text}, now) == wait
    for text in ("-5", "1.5", "\uff11\uff12", "Mon, 99 Nov 99999 25:61:61 GMT", "\x00", "Mon", "٣"):
        assert retry_after({"retry-after": text}, now) is None
    assert retry_after({}, now) is None


def test_back_off_doubles_and_is_spread_over_the_whole_time() -> None:
    chance = random.Random(0)
    for failures in (1, 3, 6):
        most = 10.0 * 2 ** (failures - 1)
        waits = [backoff_s(failures, chance) for _ in range(2000)]
        assert 0 <= min(waits) < 0.05 * most
        assert 0.95 * most < max(waits) <= most
    assert max(backoff_s(10**6, chance) for _ in range(100)) <= 3600

"""Nothing but public addresses on the usual ports is connected to, however they are written; names are asked once."""

import asyncio
import socket
from collections.abc import Sequence

import pytest

from livelm.sources.web.address import (
    MAX_ADDRESSES,
    AddressPolicy,
    AddressSettings,
    Refused,
    Resolver,
    SystemLookup,
    Unresolved,
    special,
)

PUBLIC = ["1.1.1.1", "93.184.216.34", "223.255.255.1", "2606:4700::1111", "2a00:1450:4001::200e"]
NOT_PUBLIC = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "100.64.0.1": "carrier_nat",
    "100.127.255.255": "carrier_nat",
    "127.0.0.1": "loopback",
    "127.255.0.9": "loopback",
    "169.254.169.254": "link_local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.8": "reserved",
    "192.0.2.1": "documentation",
    "192.88.99.1": "six_to_four",
    "192.168.1.1": "private",
    "198.18.0.1": "benchmarking",
    "203.0.113.9": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::127.0.0.1": "mapped_ipv4",
    "::ffff:127.0.0.1": "mapped_ipv4",
    "::ffff:8.8.8.8": "mapped_ipv4",
    "64:ff9b::7f00:1": "nat64",
    "64:ff9b::808:808": "nat64",
    "64:ff9b:1::a00:1": "nat64",
    "100::1": "not_global",
    "2001::1": "teredo",
    "2001:10::1": "reserved",
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "six_to_four",
    "2002:0a00:0001::1": "six_to_four",
    "3fff::1": "documentation",
    "4000::1": "not_global",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "fe80::1": "link_local",
    "fe80::1%eth0": "link_local",
    "fec0::1": "private",
    "ff02::1": "multicast",
    "2606:4700::1111%eth0": "not_global",
}


class Names:
    """A name service that gives one answer after the other, and counts."""

    def __init__(self, *answers: Sequence[str] | OSError) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        await asyncio.sleep(0)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


def resolve(names: Names, *hosts: str, port: int = 80, settings: AddressSettings | None = None) -> list[object]:
    """What each host resolves to, one after the other; the reason when it is refused."""

    async def work() -> list[object]:
        resolver, found = Resolver(settings or AddressSettings(), names), []
        for host in hosts:
            try:
                found.append(await resolver.resolve(host, port))
            except Refused as error:
                found.append(error.reason)
        return found

    return asyncio.run(work())


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not_special(address: str) -> None:
    assert special(address) is None


@pytest.mark.parametrize(("address", "reason"), NOT_PUBLIC.items())
def test_every_other_address_has_a_reason_against_it(address: str, reason: str) -> None:
    assert special(address) == reason


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_one_private_address_among_public_ones_refuses_the_name(address: str) -> None:
    assert resolve(Names(["1.1.1.1", address, "8.8.8.8"]), "mixed.example") == [NOT_PUBLIC[address]]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "a.localhost", "a.b.LocalHost."])
def test_localhost_is_refused_whatever_a_name_server_says(host: str) -> None:
    names = Names(["1.1.1.1"])
    assert resolve(names, host) == ["loopback"]
    assert names.asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "::ffff:10.0.0.1", "169.254.169.254", "[fe80::1%eth0]"])
def test_literal_addresses_are_checked_without_asking_anybody(host: str) -> None:
    names = Names(["1.1.1.1"])
    [reason] = resolve(names, host)
    assert isinstance(reason, str)
    assert names.asked == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1."])
def test_other_spellings_of_loopback_do_not_pass_the_systems_own_look_up(host: str) -> None:
    async def work() -> None:
        with pytest.raises((Refused, Unresolved)):
            await Resolver(AddressSettings()).resolve(host, 80)

    asyncio.run(work())


def test_only_the_ports_of_the_web_are_connected_to() -> None:
    names = Names(["1.1.1.1"])
    assert resolve(names, "a.example", port=443) == [("1.1.1.1",)]
    assert resolve(names, "a.example", port=22) == ["port"]
    assert resolve(names, "a.example", port=22, settings=AddressSettings(ports=(22,))) == [("1.1.1.1",)]


def test_a_setting_lets_one_host_or_one_port_of_it_through_and_nothing_else() -> None:
    policy = AddressPolicy(AddressSettings(allow=("intranet", "127.0.0.1:8080", "[::1]:8080")))
    policy.check_address("Intranet.", 9000, "10.0.0.1")
    policy.check_address("127.0.0.1", 8080, "127.0.0.1")
    policy.check_address("::1", 8080, "::1")
    for host, port, address in [
        ("127.0.0.1", 8081, "127.0.0.1"),
        ("127.0.0.2", 8080, "127.0.0.2"),
        ("evil.example", 8080, "127.0.0.1"),
        ("x.intranet", 9000, "10.0.0.1"),
        ("::1", 80, "::1"),
    ]:
        with pytest.raises(Refused):
            policy.check_address(host, port, address)


def test_an_answer_is_remembered_and_shared_by_those_who_ask_together() -> None:
    names = Names(["1.1.1.1", "1.1.1.1", "2606:4700:0::1111"])

    async def work() -> None:
        resolver = Resolver(AddressSettings(), names)
        together = await asyncio.gather(*(resolver.resolve(host, 80) for host in ("A.example", "a.example.") * 5))
        assert set(together) == {("1.1.1.1", "2606:4700::1111")}
        await resolver.resolve("a.example", 443)

    asyncio.run(work())
    assert names.asked == ["a.example"]


def test_whoever_stops_waiting_does_not_stop_the_others() -> None:
    async def work() -> None:
        resolver = Resolver(AddressSettings(), Names(["1.1.1.1"]))
        first = asyncio.create_task(resolver.resolve("a.example", 80))
        second = asyncio.create_task(resolver.resolve("a.example", 80))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == ("1.1.1.1",)

    asyncio.run(work())


def test_failures_are_remembered_too_and_say_whether_asking_again_may_help() -> None:
    for error, temporary in [
        (socket.gaierror(socket.EAI_NONAME, "no such name"), False),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
    ]:
        names = Names(error)

        async def work(names: Names = names, temporary: bool = temporary) -> None:
            resolver = Resolver(AddressSettings(), names)
            for _ in range(3):
                with pytest.raises(Unresolved) as raised:
                    await resolver.resolve("gone.example", 80)
                assert raised.value.temporary is temporary

        asyncio.run(work())
        assert len(names.asked) == 1


def test_memory_of_names_is_bounded_and_keeps_those_used_last() -> None:
    names = Names(["1.1.1.1"])
    hosts = ["a", "b", "a", "c", "a", "b"]  # two places: c drives out b, b is asked again
    resolve(names, *hosts, settings=AddressSettings(dns_entries=2))
    assert names.asked == ["a", "b", "c", "b"]


def test_answers_that_are_no_addresses_or_far_too_many_are_failures() -> None:
    for answer in (["not an address"], [], [f"1.1.{n // 256}.{n % 256}" for n in range(MAX_ADDRESSES + 1)]):
        with pytest.raises(Unresolved):
            resolve(Names(answer), "odd.example")


def test_a_name_server_that_never_answers_is_given_up() -> None:
    async def never(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> None:
        with pytest.raises(Unresolved, match="no answer") as raised:
            await Resolver(AddressSettings(dns_timeout_s=0.01), never).resolve("slow.example", 80)
        assert raised.value.temporary

    asyncio.run(work())


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "a\x00b", "ü.example", ""])
def test_names_that_cannot_exist_are_failures_and_nothing_worse(host: str) -> None:
    async def work() -> None:
        with pytest.raises((Unresolved, Refused)):
            await Resolver(AddressSettings()).resolve(host, 80)

    asyncio.run(work())


def test_the_system_knows_this_machine() -> None:
    assert asyncio.run(_ask_system("localhost"))


async def _ask_system(host: str) -> Sequence[str]:
    return await SystemLookup(1)(host)

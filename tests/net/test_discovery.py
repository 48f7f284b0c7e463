"""Nodes that hear of one another by multicast, and which addresses a node gives out."""

from __future__ import annotations

import asyncio
import random

import pytest

from hivenode.errors import InvalidInput
from hivenode.net.addresses import join_address, split_address
from hivenode.net.discovery import Discovery, Interface, choose_addresses
from hivenode.tasks import Signal
from tests.net.nodes import AUTHORITY, PATIENCE, STRANGERS, credentials_of

INTERFACES = (
    Interface("lo", "127.0.0.1"),
    Interface("lo", "::1"),
    Interface("docker0", "172.17.0.1"),
    Interface("br-0a1b2c", "172.18.0.1"),
    Interface("veth12ab", "169.254.3.4"),
    Interface("virbr0", "192.168.122.1"),
    Interface("wlan0", "2001:db8::5"),
    Interface("eth0", "192.168.1.20"),
    Interface("tailscale0", "100.64.0.7"),
)


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("", ("192.168.1.20:7700", "100.64.0.7:7700", "[2001:db8::5]:7700")),
        ("::", ("192.168.1.20:7700", "100.64.0.7:7700", "[2001:db8::5]:7700")),
        ("0.0.0.0", ("192.168.1.20:7700", "100.64.0.7:7700")),
        ("127.0.0.1", ("127.0.0.1:7700",)),
        ("localhost", ("127.0.0.1:7700",)),
        ("::1", ("[::1]:7700",)),
        ("192.168.1.20", ("192.168.1.20:7700",)),
    ],
)
def test_addresses_that_others_can_use_are_given_out(listen: str, expected: tuple[str, ...]) -> None:
    assert choose_addresses(INTERFACES, listen, 7700) == expected


def test_a_machine_without_a_network_still_has_an_address() -> None:
    assert choose_addresses([Interface("lo", "127.0.0.1"), Interface("docker0", "172.17.0.1")], "", 7700) == (
        "127.0.0.1:7700",
    )


def test_a_machine_with_many_addresses_gives_out_a_few() -> None:
    many = [Interface("eth0", f"10.0.0.{n}") for n in range(1, 50)]
    assert len(choose_addresses(many, "", 1)) == 8


def test_addresses_are_taken_apart_as_they_are_put_together() -> None:
    for host in ("10.0.0.1", "::1", "2001:db8::5", "node.example"):
        assert split_address(join_address(host, 7700)) == (host, 7700)


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":5", "host:0", "host:70000", "::1:5", "[::1]", "a b:5", "h/x:5"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        split_address(text)


class Heard:
    def __init__(self) -> None:
        self.nodes: dict[str, tuple[str, ...]] = {}
        self._changed = Signal()

    def found(self, node: str, addresses: tuple[str, ...]) -> None:
        self.nodes[node] = addresses
        self._changed.notify()

    async def until(self, node: str) -> tuple[str, ...]:
        async with asyncio.timeout(PATIENCE):
            while node not in self.nodes:
                await self._changed.wait()
        return self.nodes[node]


def discovery(hive: str, number: int, port: int, heard: Heard) -> Discovery:
    return Discovery(
        hive,
        credentials_of(number).identity.node_id,
        port,
        (f"127.0.0.1:{port}", "name.example:1"),
        ["127.0.0.1"],
        heard.found,
        version="0.0.test",
        boot=3,
    )


async def test_two_nodes_of_a_hive_find_each_other_and_ignore_others() -> None:
    # Other tests may be multicasting on this machine at the same time: numbers nobody else uses.
    base = random.SystemRandom().randrange(10**6, 10**9)
    heard = [Heard() for _ in range(3)]
    a = discovery(AUTHORITY.hive_id, base, 7701, heard[0])
    b = discovery(AUTHORITY.hive_id, base + 1, 7702, heard[1])
    foreign = discovery(STRANGERS.hive_id, base + 2, 7703, heard[2])
    for one in (foreign, a, b):
        await one.start()
    try:
        assert await heard[0].until(credentials_of(base + 1).identity.node_id) == ("127.0.0.1:7702",)
        assert await heard[1].until(credentials_of(base).identity.node_id) == ("127.0.0.1:7701",)
        async with asyncio.timeout(PATIENCE):
            while not a.foreign:
                await asyncio.sleep(0.05)
        assert credentials_of(base + 2).identity.node_id not in heard[0].nodes
        assert not any(credentials_of(n).identity.node_id in heard[2].nodes for n in (base, base + 1))
        assert credentials_of(base).identity.node_id not in heard[0].nodes
        assert "announcing on 127.0.0.1" in a.state()
    finally:
        for one in (a, b, foreign):
            await one.stop()
    assert a.state() == "off"


async def test_discovery_that_cannot_start_says_so_and_nothing_else_breaks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard = Heard()
    for interfaces in ([], ["203.0.113.77"]):
        one = Discovery(AUTHORITY.hive_id, "n" * 32, 7701, (), interfaces, heard.found)
        await one.start()
        assert one.state().startswith("not working")
        await one.stop()
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    assert all("network.seeds" in str(line["fix"]) for line in fields if "fix" in line)
    assert any("fix" in line for line in fields)

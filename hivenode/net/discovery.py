"""Finding nodes on the local network by DNS-SD (RFC 6763), and this machine's own addresses.

What is found is a hint from nobody in particular: who really is there shows in the TLS handshake.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psutil
from zeroconf import Error as ZeroconfError
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from hivenode.errors import InvalidInput
from hivenode.logs import get_logger
from hivenode.net.addresses import is_loopback, join_address, split_address
from hivenode.tasks import TaskGroup

log = get_logger("discovery")

SERVICE = "_hivenode._tcp.local."
SKIPPED = re.compile(r"docker\d*|veth.*|br-.*|virbr.*")
MAX_ADDRESSES = 8
MAX_RESOLVING = 64
RESOLVE_MILLISECONDS = 3000


@dataclass(frozen=True)
class Interface:
    """An address of this machine and the name of the interface that has it."""

    name: str
    address: str


@dataclass(frozen=True)
class Announced:
    """What some node says of itself by multicast. Nothing of it is proven."""

    node: str
    hive: str
    name: str
    version: str
    addresses: tuple[str, ...]


def interfaces() -> tuple[Interface, ...]:
    """Addresses of the interfaces that are up, in the system's order; link-local IPv6 left out."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return tuple(
        Interface(name, address.address)
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6) and "%" not in address.address
    )


def choose_addresses(found: Iterable[Interface], listen_host: str, port: int) -> tuple[str, ...]:
    """Addresses under which others can dial a node that listens on `listen_host`: IPv4 before IPv6, no bridges or
    container interfaces. Loopback only if that is where it listens, or if there is nothing else: a machine without a
    network is still a hive of one. Pure."""
    return tuple(join_address(host, port) for host in choose_hosts(found, listen_host))


def choose_hosts(found: Iterable[Interface], listen_host: str) -> tuple[str, ...]:
    """The hosts of `choose_addresses`; also the interfaces to multicast on. Pure."""
    if is_loopback(listen_host):
        return ("127.0.0.1" if listen_host == "localhost" else listen_host,)
    if listen_host not in ("", "0.0.0.0", "::"):  # noqa: S104 (compared with, not listened on)
        return (listen_host,)
    candidates = []
    for interface in found:
        if SKIPPED.fullmatch(interface.name):
            continue
        address = ipaddress.ip_address(interface.address)
        wrong_family = address.version == 6 and listen_host == "0.0.0.0"  # noqa: S104
        if not (address.is_loopback or address.is_link_local or address.is_unspecified or wrong_family):
            candidates.append(address)
    # Stable: IPv4 first, each family in the order of the interfaces.
    chosen = dict.fromkeys(str(a) for a in sorted(candidates, key=lambda address: address.version))
    return tuple(chosen)[:MAX_ADDRESSES] or ("127.0.0.1",)


class Discovery:
    """Announces this node and reports others of its hive.

    Args:
        port: announced; must be listening already when `start` is called.
        addresses: `host:port` as advertised; those that are IP addresses are announced.
        interfaces: IP addresses of the interfaces to use, never "all": container bridges would be flooded.
        on_found: called with id and addresses of a node of this hive, each time they are heard anew.
        version, boot: build and boot counter, announced for people who look.
        name: this node's, announced for people who look.
        on_heard: called with every announcement, of whatever hive.
    """

    def __init__(
        self,
        hive_id: str,
        node_id: str,
        port: int,
        addresses: Sequence[str],
        interfaces: Sequence[str],
        on_found: Callable[[str, tuple[str, ...]], None],
        *,
        version: str = "",
        boot: int = 0,
        name: str = "",
        on_heard: Callable[[Announced], None] = lambda announced: None,
    ) -> None:
        self._hive = hive_id
        self._node = node_id
        self._interfaces = list(interfaces)
        self._on_found = on_found
        self._on_heard = on_heard
        self._tasks = TaskGroup(_task_failed)
        self._resolving: dict[str, None] = {}
        self._state = "off"
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self.foreign = 0
        """Announcements of other hives heard."""
        self._info = AsyncServiceInfo(
            SERVICE,
            f"{node_id}.{SERVICE}",
            port=port,
            properties={"v": version, "hive": hive_id, "node": node_id, "boot": str(boot), "name": name[:64]},
            parsed_addresses=_literals(addresses),
            server=f"{node_id}.local.",
        )

    def state(self) -> str:
        """A sentence for the status."""
        return self._state

    async def start(self) -> None:
        """Begin; registering goes on in the background. Trouble is a warning, never an error."""
        if not self._interfaces:
            self._trouble("no usable network interface")
            return
        try:
            self._zeroconf = AsyncZeroconf(interfaces=self._interfaces)
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, [SERVICE], handlers=[self._changed])
        except (OSError, ZeroconfError) as error:
            self._trouble(str(error))
            return
        self._state = "starting"
        self._tasks.spawn(self._register(), "discovery: register")

    async def stop(self) -> None:
        """Take the announcement back and close."""
        await self._tasks.close()
        try:
            if self._browser is not None:
                await self._browser.async_cancel()
            if self._zeroconf is not None:
                async with asyncio.timeout(3.0):
                    await self._zeroconf.async_unregister_all_services()
                await self._zeroconf.async_close()
        except (OSError, ZeroconfError, TimeoutError) as error:
            log.debug("discovery did not end cleanly", reason=repr(error))
        self._browser = self._zeroconf = None
        self._state = "off"

    async def _register(self) -> None:
        assert self._zeroconf is not None
        try:
            announcing = await self._zeroconf.async_register_service(self._info, allow_name_change=False)
            self._state = f"announcing on {', '.join(self._interfaces)}"
            await announcing
        except (OSError, ZeroconfError, ValueError) as error:
            self._trouble(repr(error))

    def _trouble(self, reason: str) -> None:
        self._state = f"not working: {reason}"
        log.warning(
            "nodes on the local network cannot be discovered",
            reason=reason,
            fix="Name other nodes in network.seeds, or allow UDP port 5353.",
        )

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if (
            state_change is ServiceStateChange.Removed
            or name == self._info.name
            or name in self._resolving
            or len(self._resolving) >= MAX_RESOLVING
        ):
            return
        self._resolving[name] = None
        self._tasks.spawn(self._resolve(zeroconf, service_type, name), f"discovery: resolve {name}")

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        try:
            info = AsyncServiceInfo(service_type, name)
            if await info.async_request(zeroconf, RESOLVE_MILLISECONDS):
                self._report(info)
        finally:
            del self._resolving[name]

    def _report(self, info: AsyncServiceInfo) -> None:
        properties = info.decoded_properties
        node, hive = properties.get("node") or "", properties.get("hive") or ""
        foreign = hive != self._hive
        self.foreign += foreign
        if node == self._node or len(node) != len(self._node) or not info.port:
            return
        hosts = dict.fromkeys(info.parsed_addresses())
        addresses = tuple(join_address(host, info.port) for host in list(hosts)[:MAX_ADDRESSES])
        name, version = (properties.get(key) or "" for key in ("name", "v"))
        self._on_heard(Announced(node, hive[:64], name[:64], version[:64], addresses))
        if addresses and not foreign:
            log.debug("node heard", node=node, addresses=addresses)
            self._on_found(node, addresses)


def _literals(addresses: Sequence[str]) -> list[str]:
    """The IP addresses among `host:port` addresses."""
    found = []
    for address in addresses:
        try:
            found.append(str(ipaddress.ip_address(split_address(address)[0])))
        except (ValueError, InvalidInput):
            continue  # a name: whoever can resolve it will not need discovery
    return list(dict.fromkeys(found))[:MAX_ADDRESSES]


def _task_failed(name: str, error: BaseException) -> None:
    log.error("internal error", task=name, reason=repr(error), exc_info=error)

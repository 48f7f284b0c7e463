"""A small local network for tests: machines as network namespaces, and the switch between them as one more.

Nothing of it shows in the machine's own network: no interface, no address, no filter rule.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.cluster.machines import Machine

NETWORK = "198.18.0"
"""Of the range for tests of network devices (RFC 2544)."""
PORT = 7447
RELAY = Path(__file__).with_name("relay.py")
RELAY_PORT = 7999
STOP_SECONDS = 20.0

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def unusable() -> str:
    """Why there can be no such network here, or ""."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if missing := [tool for tool in ("ip", "nft", "tc") if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    name = f"hv{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    bridged = subprocess.run(
        ["ip", "-n", name, "link", "add", "name", "lan", "type", "bridge"], capture_output=True, text=True, check=False
    )
    run("ip", "netns", "del", name)
    return f"no bridges here: {bridged.stderr.strip()}" if bridged.returncode else ""


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in another network namespace. What it opens there stays there."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Host:
    """One machine's place in the network."""

    def __init__(self, prefix: str, name: str, number: int, switch: str) -> None:
        self.namespace = f"{prefix}-{name}"
        self.address = f"{NETWORK}.{number}"
        self._switch = switch
        self._port = f"to-{name}"
        self._relay: subprocess.Popen[bytes] | None = None
        ip = ("ip", "-n", self.namespace)
        run("ip", "netns", "add", self.namespace)
        run("ip", "-n", switch, "link", "add", self._port, "type", "veth", "peer", "name", "eth0",
            "netns", self.namespace)  # fmt: skip
        run("ip", "-n", switch, "link", "set", self._port, "master", "lan", "up")
        run(*ip, "link", "set", "lo", "up")
        run(*ip, "address", "add", f"{self.address}/24", "broadcast", f"{NETWORK}.255", "dev", "eth0")
        run(*ip, "link", "set", "eth0", "up")
        run(*ip, "route", "add", "default", "dev", "eth0")

    def unplug(self) -> None:
        run("ip", "-n", self._switch, "link", "set", self._port, "down")

    def plug(self) -> None:
        run("ip", "-n", self._switch, "link", "set", self._port, "up")

    def deafen(self, *sources: Host) -> None:
        """Drop what comes from these; what goes to them still does."""
        addresses = ", ".join(source.address for source in sources)
        self._nft("add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; "
                  f"add rule ip deaf in ip saddr {{ {addresses} }} drop")  # fmt: skip

    def hear(self) -> None:
        """Undo `deafen`."""
        self._nft("delete table ip deaf")

    def limit(self, rate: str) -> None:
        """No more than this goes out, such as 20mbit."""
        run("ip", "netns", "exec", self.namespace, "tc", "qdisc", "add", "dev", "eth0", "root",
            "tbf", "rate", rate, "burst", "32kb", "latency", "200ms")  # fmt: skip

    def lose(self, percent: int) -> None:
        """Drop so many of a hundred packets that come in."""
        self._nft("add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; "
                  f'add rule ip lossy in iifname "eth0" numgen random mod 100 < {percent} drop')  # fmt: skip

    def delay(self, seconds: float) -> None:
        """Have all connections from other hosts take so much longer, each way."""
        self._relay = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, sys.executable, str(RELAY), str(RELAY_PORT), str(seconds)],
            stdout=subprocess.PIPE,
        )
        assert self._relay.stdout is not None
        assert self._relay.stdout.readline() == b"ready\n"
        self._nft("add table ip late; add chain ip late in { type nat hook prerouting priority -100; }; "
                  f'add rule ip late in iifname "eth0" tcp dport 1-65535 redirect to :{RELAY_PORT}')  # fmt: skip

    def close(self) -> None:
        if self._relay is not None:
            self._relay.kill()
            self._relay.communicate()

    def _nft(self, rules: str) -> None:
        run("ip", "netns", "exec", self.namespace, "nft", rules)

    def socket(self, info: Any) -> socket.socket:
        """A socket in this network: it reaches the host's loopback."""
        family, kind, protocol = info[:3]
        with inside(self.namespace):
            return socket.socket(family, kind, protocol)


class Lan:
    """Namespaces with names of this process's own. `close` removes all of them, whatever state they are in."""

    def __init__(self) -> None:
        self._prefix = f"hv{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self.hosts: dict[str, Host] = {}
        self.machines: list[NetworkMachine] = []

    def build(self, names: Sequence[str]) -> None:
        run("ip", "netns", "add", self._switch)
        run("ip", "-n", self._switch, "link", "add", "name", "lan", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "lan", "up")
        for number, name in enumerate(names, start=1):
            self.hosts[name] = Host(self._prefix, name, number, self._switch)

    def machine(self, root: Path, name: str, *, discovery: bool = False) -> NetworkMachine:
        machine = NetworkMachine(root, name, self.hosts[name], discovery=discovery)
        self.machines.append(machine)
        return machine

    async def stop(self) -> None:
        """End the daemons; those that do not end by themselves are killed."""
        await asyncio.gather(*(machine.end() for machine in self.machines))

    def close(self) -> None:
        for host in self.hosts.values():
            host.close()
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            name = line.split(" ")[0]
            if name.startswith(f"{self._prefix}-"):
                subprocess.run(["ip", "netns", "del", name], check=False)


class NetworkMachine(Machine):
    """A daemon in a namespace of its own."""

    def __init__(self, root: Path, name: str, host: Host, *, discovery: bool = False) -> None:
        super().__init__(root, name)
        self.host = host
        self.configure(host.address, PORT, discovery=discovery)

    def command(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.host.namespace, *super().command())

    def session(self, **options: Any) -> aiohttp.ClientSession:
        return super().session(connector=aiohttp.TCPConnector(socket_factory=self.host.socket), **options)

    def pause(self) -> None:
        """SIGSTOP the daemon, not its workers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        if self.process is None or not psutil.pid_exists(self.process.pid) or self.process.returncode is not None:
            return
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.go_on()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.stop()
        except TimeoutError:
            await self.kill()
        for process in started:
            if process.is_running():
                process.kill()

    def changes(self, since: int = 0) -> list[tuple[str, str]]:
        """Members and the states that this node saw them take, from this line of its log on."""
        return [(line["member"], line["state"]) for line in self.lines[since:] if line.get("event") == "member changed"]

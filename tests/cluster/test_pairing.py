"""A machine let in with a pairing code: real daemons, and the command line on both ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cluster.machines import Machine, settled
from tests.cluster.test_bad_input import cli


@pytest.fixture
async def pair(tmp_path: Path):
    machines = Machine(tmp_path, "ash"), Machine(tmp_path, "cedar")
    await asyncio.gather(*(machine.start() for machine in machines))
    yield machines
    await asyncio.gather(*(machine.stop() for machine in machines))


@asynccontextmanager
async def showing(home: Path, *options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`hivenode pair` on a member, and the code it shows."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hivenode.cli.main", "--home", str(home), "pair", "--json", *options,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process, json.loads(await process.stdout.readline())["code"]
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def mistaken(code: str) -> str:
    """Another code whose check digit fits."""
    from hivenode.trust.pairing_codes import make_code, read_code

    return make_code(lambda below: (int(read_code(code)) + 1) % below)


async def test_a_code_typed_on_the_new_machine_lets_it_in(pair: tuple[Machine, Machine]) -> None:
    ash, cedar = pair
    address = (await ash.api("GET", "/v1/status"))["addresses"][0]
    async with showing(ash.home, "--role", "worker") as (shower, code):
        exit_code, said = await cli("pair", code[:-1] + str((int(code[-1]) + 1) % 10), address, home=cedar.home)
        assert exit_code == 2
        assert "nothing was sent" in said
        exit_code, said = await cli("pair", code, address, home=cedar.home)
        assert exit_code == 0, said
        assert "as worker" in said
        assert shower.stdout is not None
        ended = json.loads(await shower.stdout.readline())
        assert (ended["state"], ended["member"]) == ("joined", "cedar")
        assert await shower.wait() == 0
    cedar.look_up()
    for machine in pair:
        await machine.until("/v1/status", lambda status: settled(status, 2))
    status = await cedar.api("GET", "/v1/status")
    assert status["roles"] == ["worker"]
    assert status["hive"] == (await ash.api("GET", "/v1/status"))["hive"]

    # A worker's machine has no authority's key: it cannot show a code, and says who can.
    exit_code, said = await cli("pair", home=cedar.home)
    assert exit_code == 4
    assert "ash" in said


async def test_a_wrong_code_is_void_on_both_ends_and_seen_by_whoever_looks(pair: tuple[Machine, Machine]) -> None:
    ash, cedar = pair
    address = (await ash.api("GET", "/v1/status"))["addresses"][0]
    async with showing(ash.home) as (shower, code):
        exit_code, said = await cli("pair", mistaken(code), address, home=cedar.home)
        assert exit_code == 4
        assert "void" in said
        assert await shower.wait() == 4
        exit_code, said = await cli("pair", code, address, home=cedar.home)
        assert exit_code == 3
        assert "No pairing code is open" in said
    pending = (await ash.api("GET", "/v1/peers"))["pending"]
    assert [(peer["why"], peer["address"]) for peer in pending] == [("invite", "127.0.0.1")]
    assert (await cedar.api("GET", "/v1/status"))["hive"] != (await ash.api("GET", "/v1/status"))["hive"]

    # Taken back with Ctrl-C.
    async with showing(ash.home) as (shower, code):
        shower.send_signal(2)
        assert await shower.wait() == 130
    assert (await ash.api("GET", "/v1/pair"))["state"] == "closed"
    exit_code, said = await cli("pair", code, address, home=cedar.home)
    assert exit_code == 3
    exit_code, said = await cli("pair", code, home=cedar.home)
    assert exit_code == 5
    assert "hivenode pair CODE HOST" in said
    exit_code, said = await cli("pair", code, "not an address", home=cedar.home)
    assert exit_code == 2

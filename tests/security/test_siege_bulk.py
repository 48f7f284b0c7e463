"""A member that is after the bytes: transfers that never end, seals that are none, copies that nobody needs."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from hivenode.net.messages import Call, Failure, Held, Hold, Ping, Reply, SealOffered
from hivenode.spec.values import BlobRef
from tests.security.siege import Attacker, Siege, siege
from tests.security.wire import PATIENCE, Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hive(tmp_path_factory: pytest.TempPathFactory):
    async with siege(tmp_path_factory.mktemp("siege")) as one:
        job = await one.ash.api("POST", "/v1/jobs", {"spec": {"name": "tiny", "training": {"epochs": 1}}})
        await one.ash.until(f"/v1/jobs/{job['summary']['job']}", lambda d: d["summary"]["state"] == "finished")
        await one.ash.until("/v1/models", lambda models: models and models[0]["here"])
        yield one


async def model(hive: Siege) -> BlobRef:
    (found,) = await hive.ash.api("GET", "/v1/models")
    return BlobRef(*found["blob"]) if isinstance(found["blob"], list) else BlobRef(**found["blob"])


async def get(mallory: Attacker, digest: str, header: str = "") -> Wire:
    wire = await Wire.open(mallory.address, mallory.credentials.client_context())
    wire.raw(f"GET /bulk/{digest} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
    return wire


async def test_an_offered_seal_that_names_a_model_does_not_delete_it(hive: Siege) -> None:
    ref, mallory = await model(hive), await hive.attacker()
    async with hive.attack("a seal that is a model", lines=50, errors=True), await mallory.link() as wire:
        wire.say(SealOffered(number=7, digest="a" * 64, blob=ref))
        await wire.gone()
    (still,) = await hive.ash.api("GET", "/v1/models")
    assert still["here"]
    assert list(hive.ash.home.glob(f"hives/*/blobs/*/{ref.digest}"))
    await hive.named(mallory, "snapshot")


async def still_over(wire: Wire) -> bool:
    """Whether the other side ends the link within a moment."""
    try:
        async with asyncio.timeout(0.3):
            await wire.gone()
    except TimeoutError:
        return False
    return True


async def test_seals_of_any_size_cost_no_disk(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("seals out of nowhere"), await mallory.link() as wire:
        for number in range(1, 30):
            wire.say(SealOffered(number=number, digest=f"{number:064x}", blob=BlobRef(f"{number:064x}", 100 << 20)))
        wire.say(Ping(sequence=1))
        assert await wire.message() is not None
    mallory = await hive.attacker()
    async with hive.attack("a seal larger than any"), await mallory.link() as wire:
        for _ in range(100):  # while another offer is looked into, further ones are not looked at
            wire.say(SealOffered(number=99, digest="b" * 64, blob=BlobRef("9" * 64, 2**50)))
            if not await wire.flushed() or await still_over(wire):
                break
    await hive.named(mallory, "seal that is too large")


async def test_transfers_that_are_never_read_are_few(hive: Siege) -> None:
    ref, mallory = await model(hive), await hive.attacker()
    async with hive.attack("transfers that are never read"):
        wires = [await get(mallory, ref.digest) for _ in range(12)]
        answers = []
        for wire in wires:
            async with asyncio.timeout(PATIENCE):
                answers.append((await wire.reader.readuntil(b"\r\n"))[9:12])
        assert answers.count(b"200") >= 1
        assert set(answers) <= {b"200", b"429"}
        for header in ("Range: bytes=99999999999999-", "Range: bytes=-5", "Range: bytes=1-2,4-5", "Range: x"):
            async with await get(mallory, ref.digest, header + "\r\n") as wire:
                assert (await wire.reader.readuntil(b"\r\n"))[9:12] == b"416"
        for wire in wires:
            await wire.close()


async def test_a_copy_of_what_a_model_needs_is_kept_and_of_nothing_else(hive: Siege) -> None:
    ref, mallory = await model(hive), await hive.attacker()
    async with hive.attack("copies"), await mallory.link() as wire:
        wire.say(Call(1, Hold(ref)))
        wire.say(Call(2, Hold(BlobRef("3" * 64, 5))))
        answers: dict[int, object] = {}
        while len(answers) < 2:
            message = await wire.message()
            assert message is not None
            if isinstance(message, Reply):
                answers[message.id] = message.response
        wire.say(Ping(sequence=1))
    assert answers[1] == Held(ref.digest)
    assert isinstance(answers[2], Failure)
    assert answers[2].code == "refused"


@pytest.mark.slow
async def test_bulk_without_a_pause_makes_nobody_doubt_anybody(hive: Siege) -> None:
    ref, mallory = await model(hive), await hive.attacker()

    async def pull() -> int:
        """Ask for the model again and again on one connection; bytes that came."""
        got, end = 0, asyncio.get_running_loop().time() + 5.0
        async with await get(mallory, ref.digest) as wire:
            while asyncio.get_running_loop().time() < end:
                wire.raw(f"GET /bulk/{ref.digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 8)
                got += len(await wire.reader.read(1 << 20))
        return got

    async with hive.attack("bulk without a pause"):
        moved = sum(await asyncio.gather(*(pull() for _ in range(4))))
        assert moved > ref.size
    doubts = [line for machine in (hive.ash, hive.birch) for line in machine.lines if line.get("state") == "suspect"]
    assert not [line for line in doubts if line["member"] in ("ash", "birch")]

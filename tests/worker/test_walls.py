"""What a worker that trains can still reach: code of a package that its owner allowed tries, and gets nowhere."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from hivenode import walls
from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Finished, Log, PeersReady, Ready, Resources
from hivenode.spec.data import DataSpec
from hivenode.worker.reach import to_train, with_targets
from tests.worker.members import Member, begin, plan, spec

walled = pytest.mark.skipif(walls.landlock() < 1, reason="this kernel has no Landlock")

TRIES = """
import os, resource, socket, sys
from pathlib import Path

import torch

def one_of_a_pair(kind):
    global pair
    pair = socket.socketpair(socket.AF_UNIX, kind)
    return pair[0]


ATTEMPTS = {
    "read the node's key": lambda room: open(f"{room}/secret").read(),
    "list the home": lambda room: os.listdir(room),
    "write elsewhere": lambda room: open(f"{room}/mark", "w"),
    "write into what is lent": lambda room: open(f"{room}/rows", "a"),
    "read what was not lent to it": lambda room: open(f"{room}/lent/other").read(),
    "write into the store": lambda room: open(f"{room}/blobs/ab/mark", "w"),
    "write beside its code": lambda room: open(f"{os.path.dirname(__file__)}/mark", "w"),
    "write into /tmp": lambda room: open("/tmp/mark-of-hivenode", "w"),
    "read through a link": lambda room: (os.symlink(f"{room}/secret", "link"), open("link").read()),
    "its parent's memory": lambda room: open(f"/proc/{os.getppid()}/mem", "rb"),
    "its parent's environment": lambda room: open(f"/proc/{os.getppid()}/environ", "rb"),
    "a signal to its parent": lambda room: os.kill(os.getppid(), 0),
    "its parent's limits": lambda room: resource.prlimit(os.getppid(), 7),
    "run a program": lambda room: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "fork": lambda room: os.fork() or os._exit(0),
    "memory as a file": lambda room: os.memfd_create("x"),
    "more memory": lambda room: resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40)),
    "a service of this machine": lambda room: socket.socket(socket.AF_UNIX).connect(f"{room}/service"),
    "a message to one": lambda room: one_of_a_pair(socket.SOCK_DGRAM).sendto(b"READY=1", f"{room}/messages"),
    "a raw message to one": lambda room: one_of_a_pair(socket.SOCK_RAW).sendto(b"READY=1", f"{room}/messages"),
}
ALLOWED = {
    "read what is lent": lambda room: open(f"{room}/rows").read(),
    "read other blobs of the store": lambda room: open(f"{room}/blobs/cd/piece").read(),
    "write what is its own": lambda room: open(f"{room}/own", "w"),
    "a temporary file": lambda room: __import__("tempfile").TemporaryFile(),
    "listen": lambda room: socket.create_server(("127.0.0.1", 0)),
    "connect": lambda room: socket.create_connection((s := socket.create_server(("127.0.0.1", 0))).getsockname()),
    "a pair of sockets": lambda room: one_of_a_pair(socket.SOCK_STREAM | socket.SOCK_CLOEXEC).sendall(b"x"),
    "look names up": lambda room: socket.getaddrinfo("localhost", 80),
}


def model(input_shape, outputs, room, own):
    os.chdir(own)
    for attempts, where, wanted in ((ATTEMPTS, room, False), (ALLOWED, room, True)):
        for name, attempt in attempts.items():
            try:
                attempt(own if name == "write what is its own" else where)
                done = True
            except (OSError, ValueError):
                done = False
            print("as it should:" if done is wanted else "WRONG:", name, file=sys.stderr)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(*input_shape, outputs))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trying(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForkWorkers]:
    code = tmp_path_factory.mktemp("code")
    (code / "tries.py").write_text(TRIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(code))
        host = ForkWorkers()
        yield host
        await host.close()


@walled
@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_that_trains_reaches_what_it_needs_and_no_more(trying: ForkWorkers, tmp_path: Path) -> None:
    for folder in ("lent", "blobs/ab", "blobs/cd"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("secret", "blobs/ab/abcd", "blobs/cd/piece", "lent/other"):
        (tmp_path / file).write_text("there")
    (tmp_path / "rows").write_text("a,b,kind\n" + "1,2,x\n3,4,y\n" * 40)
    (tmp_path / "lent" / "rows.csv").symlink_to("../rows")
    private = DataSpec(source=f"csv:{tmp_path}/lent/rows.csv", target="kind")
    order = begin(spec(), plan([1.0]), 0, tmp_path / "work")
    params = {"room": str(tmp_path), "own": order.directory}
    job = spec("python:tries:model", "private:rows", params=params, max_steps=1, batch_size=16)
    order = msgspec.structs.replace(
        order,
        spec=job.model_dump_json().encode(),
        resources=Resources(
            packages=("tries",),
            private={"rows": private.model_dump_json().encode()},
            blobs={"abcd": str(tmp_path / "blobs" / "ab" / "abcd")},
        ),
    )
    with socket.socket(socket.AF_UNIX) as service, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messages:
        service.bind(str(tmp_path / "service"))
        service.listen()
        messages.bind(str(tmp_path / "messages"))
        member = await Member.start(trying)
        member.handle.send(order)
        await member.expect(Ready)
        member.handle.send(PeersReady(peers=()))
        await member.expect(Finished)
        assert (await member.exit()).startswith("exit 0")
    said = [line.event for line in member.all(Log) if line.level == "warning"]
    assert len(said) == 28
    assert [line for line in said if not line.startswith("as it should")] == []
    assert not (tmp_path / "mark").exists()


def test_a_folder_is_lent_with_what_its_links_point_at(tmp_path: Path) -> None:
    for folder in ("blobs", "model/more", "classes"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "blobs" / "a").write_text("a")
    (tmp_path / "model" / "more" / "weights").symlink_to("../../blobs/a")
    (tmp_path / "model" / "cats").symlink_to("../classes")
    (tmp_path / "model" / "all").symlink_to("..")
    (tmp_path / "model" / "everything").symlink_to("/")
    (tmp_path / "model" / "nothing").symlink_to("nowhere")
    found = set(with_targets(tmp_path / "model"))
    assert found == {tmp_path / name for name in ("model", "blobs/a", "classes", "model/nowhere")}


def test_a_job_is_lent_what_it_names_alone(tmp_path: Path) -> None:
    lent = Resources(
        directories={"one": str(tmp_path / "one"), "other": str(tmp_path / "other")},
        private={name: DataSpec(source=f"csv:{tmp_path}/{name}.csv").model_dump_json().encode() for name in "ab"},
        packages=("msgspec", "nonesuch"),
    )
    order = begin(spec("hf:one", "private:a"), plan([1.0]), 0, tmp_path)
    reads = to_train(msgspec.structs.replace(order, resources=lent, resume=str(tmp_path / "from")))
    assert {path for path in reads if tmp_path in path.parents} == {tmp_path / n for n in ("one", "a.csv", "from")}
    assert Path(msgspec.__file__).parent in reads

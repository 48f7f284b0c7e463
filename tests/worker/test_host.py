"""Worker processes: who dies with whom, and what is said about it."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hivenode.errors import InvalidInput, Unavailable
from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Cancel, Log, PeersReady, Predict, Ready
from tests.shortage import memory_for
from tests.worker.members import LIMITS, Member, begin, failure, plan, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")

DAEMON = """
import asyncio
from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import WorkerLimits

async def main():
    host = ForkWorkers()
    limits = WorkerLimits(threads=1, memory_bytes=1 << 30, nice=0)
    workers = [await host.start("train", "torch", limits, print, print) for _ in range(2)]
    print(*(worker.pid for worker in workers), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pidfd: int, seconds: float = 30.0) -> bool:
    """Whether the process ends in that time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


async def test_workers_and_forkserver_die_with_a_killed_daemon() -> None:
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    workers = [int(word) for word in daemon.stdout.readline().split()]
    assert len(workers) == 2
    processes = [*workers, parent(workers[0])]
    handles = [os.pidfd_open(pid) for pid in processes]
    daemon.kill()
    daemon.wait()
    assert all(gone(handle) for handle in handles)
    for handle in handles:
        os.close(handle)
    daemon.stdout.close()


async def test_a_killed_worker_is_reported_once(host: ForkWorkers) -> None:
    member = await Member.start(host)
    os.kill(member.handle.pid, signal.SIGKILL)
    assert await member.exit() == "killed by SIGKILL"
    member.handle.send(Cancel(reason="too late"))
    member.handle.kill()
    other = await Member.start(host)
    other.handle.kill()
    await other.exit()
    assert member.exits == ["killed by SIGKILL"]


async def test_workers_of_one_framework_share_their_parent(host: ForkWorkers) -> None:
    first, second = await asyncio.gather(Member.start(host), Member.start(host))
    assert parent(first.handle.pid) == parent(second.handle.pid) != os.getpid()
    assert os.getsid(first.handle.pid) != os.getsid(0)  # a terminal's Ctrl-C does not reach it
    for member in (first, second):
        member.handle.kill()
        await member.exit()


async def test_a_killed_forkserver_takes_its_workers_along_and_is_replaced(host: ForkWorkers) -> None:
    members = [await Member.start(host) for _ in range(2)]
    server = parent(members[0].handle.pid)
    handles = [os.pidfd_open(member.handle.pid) for member in members]
    os.kill(server, signal.SIGKILL)
    for member in members:
        assert "its worker server ended: killed by SIGKILL" in await member.exit()
    assert all(gone(handle) for handle in handles)
    for handle in handles:
        os.close(handle)
    fresh = await Member.start(host)
    assert parent(fresh.handle.pid) != server
    fresh.handle.kill()
    await fresh.exit()


async def test_what_a_worker_writes_to_stderr_is_logged_and_ends_in_the_sentence(
    host: ForkWorkers, tmp_path: Path
) -> None:
    member = await Member.start(host)
    member.handle.send(begin(spec(), plan([1.0]), 0, tmp_path))
    await member.expect(Ready)
    member.handle.send(Predict(1, "x", []))  # not for a worker that trains
    how = await member.exit()
    assert how == "exit 4 (TypeError: Predict is not for a worker that trains)"
    assert member.all(Log)[0].event.startswith("Traceback")


async def test_a_broken_declaration_is_refused_with_its_reason(host: ForkWorkers, tmp_path: Path) -> None:
    member = await Member.start(host)
    member.handle.send(begin(spec(model="zoo:vgg"), plan([1.0]), 0, tmp_path))
    failed = await failure(member)
    assert (failed.code, failed.retry) == ("invalid_input", False)
    assert failed.message == "There is no model zoo:vgg."


async def test_a_message_that_is_too_large_is_refused_where_it_is_sent(host: ForkWorkers) -> None:
    member = await Member.start(host)
    with pytest.raises(InvalidInput, match="fewer rows"):
        member.handle.send(Predict(1, "x", [[0.5] * 150_000]))
    member.handle.kill()
    await member.exit()


async def test_an_environment_full_of_secrets_does_not_reach_workers(host: ForkWorkers) -> None:
    assert "PYTEST_CURRENT_TEST" in os.environ
    member = await Member.start(host)
    environment = Path(f"/proc/{member.handle.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"PYTEST" not in environment
    member.handle.kill()
    await member.exit()


async def test_a_framework_that_is_not_there(host: ForkWorkers) -> None:
    assert "torch" in host.frameworks
    with pytest.raises(Unavailable, match="pip install"):
        await host.start("train", "tensorflow", LIMITS, print, print)


async def test_a_framework_that_cannot_be_imported_is_told_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: wrong machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    host = ForkWorkers()
    host.prewarm(["torch"])
    with pytest.raises(Unavailable, match="ended: exit 1") as caught:
        await host.start("train", "torch", LIMITS, print, print)
    assert "libtorch.so: wrong machine" in str(caught.value)
    await host.close()


async def test_closing_ends_everything_and_says_so(tmp_path: Path) -> None:
    host = ForkWorkers()
    host.prewarm(["torch"])
    members = [await Member.start(host) for _ in range(2)]
    server = os.pidfd_open(parent(members[0].handle.pid))
    members[0].handle.send(begin(spec(), plan([1.0]), 0, tmp_path))
    await members[0].expect(Ready)
    await host.close()
    assert [member.exits for member in members] == [["killed by SIGKILL"]] * 2
    assert gone(server, 0)
    os.close(server)
    with pytest.raises(Unavailable):
        await host.start("train", "torch", LIMITS, print, print)


async def test_closing_while_a_server_starts() -> None:
    host = ForkWorkers()
    starting = asyncio.create_task(host.start("train", "torch", LIMITS, print, print))
    await asyncio.sleep(0)
    await host.close()
    with pytest.raises(Unavailable):
        await starting


async def test_a_worker_that_the_kernel_kills_for_want_of_memory(host: ForkWorkers, tmp_path: Path) -> None:
    """It is said, with how much it held; a worker that is killed by somebody else is not taken for one."""
    job = spec(model="zoo:mlp", params={"hidden": 4000, "depth": 2}, epochs=1, optimizer="adam", learning_rate=0.001)
    member = await Member.start(host)
    member.handle.send(begin(job, plan([1.0]), 0, tmp_path))
    await member.expect(Ready)
    with memory_for([member.handle.pid], 64 << 20):
        member.handle.send(PeersReady(peers=()))
        how = await member.exit()
    told = re.fullmatch(r"killed by the kernel, which had run out of memory, when it held (\d+) MiB", how)
    assert told is not None
    assert 200 < int(told[1]) < 2000
    other = await Member.start(host)
    os.kill(other.handle.pid, signal.SIGKILL)
    assert await other.exit() == "killed by SIGKILL"

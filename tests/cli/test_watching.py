"""`submit --wait` and `logs --follow`: what is told while a job runs, whatever befalls daemon and hive."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hivenode.cli.client import AdminClient
from hivenode.cli.progress import JobView
from hivenode.errors import HiveError
from hivenode.spec.status import Notice
from tests.admin.memory import NODES, MemoryNode, summary
from tests.cli.conftest import Answer, Endpoint, Run

JOB = "j-abcdefghjk"


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text('name = "digits"\n')
    return path


def in_background(work: Callable[[], Answer]) -> Callable[[], Answer]:
    """Start; the returned function waits for the answer."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()

    def wait() -> Answer:
        thread.join(60)
        assert answers, "it has not ended"
        return answers[0]

    return wait


def follower(daemon: Endpoint, looks: int = 1) -> None:
    """Until somebody follows the events and has looked so often at the job."""

    async def followed() -> None:
        import asyncio

        while not daemon.node.bus._readers or daemon.node.asked.count(("job", JOB)) < looks:
            await asyncio.sleep(0.005)

    daemon.do(followed)


def test_it_ends_with_the_model_and_what_to_do(daemon: Endpoint, run: Run, job_file: Path) -> None:
    answer = in_background(lambda: run("submit", job_file, "--wait"))
    follower(daemon)
    node = daemon.node
    daemon.do(node.change, JOB, state="planned", strategy="data_parallel", attempt=1)
    follower(daemon, looks=2)  # else it may find the job finished when it looks for the plan, and has no more to tell
    for step in (1, 30, 60):
        for name in NODES:
            daemon.do(node.progress, JOB, name, step)
    daemon.do(node.lose, "birch")
    daemon.do(node.bus.tell, "coordinator", {"node": "c", "name": "cedar", "epoch": "8.cccccc", "counter": 8})
    daemon.do(node.change, JOB, state="running", reason="1 of 3 nodes lost, going on with 2")
    daemon.do(node.change, JOB, state="finished", model="digits:1", accuracy=0.97, ended_at=1.0, step=100, steps=100)
    told = answer()
    assert told.code == 0, told
    order = [
        "accepted as j-abcdefghjk", "2.1 times as quick", "birch is dead", "cedar coordinates now",
        "1 of 3 nodes lost, going on with 2", "accuracy 0.970", "hivenode predict digits",
    ]  # fmt: skip
    places = [told.out.find(text) for text in order]
    assert -1 not in places, (order, told.out)
    assert places == sorted(places)


def test_it_survives_a_restart_of_the_local_daemon(daemon: Endpoint, run: Run, job_file: Path) -> None:
    answer = in_background(lambda: run("submit", job_file, "--wait", "--json"))
    follower(daemon)
    daemon.do(daemon.node.change, JOB, state="running", strategy="data_parallel", attempt=1)
    daemon.stop()
    again = daemon.do(lambda: MemoryNode(home=str(daemon.home)))
    again.job_list[JOB] = summary(state="finished", model="digits:1", accuracy=0.97, ended_at=1.0, step=100)
    daemon.start(again)
    told = answer()
    assert told.code == 0, told
    assert told.json["summary"]["model"] == "digits:1", "and with --json the end alone is on stdout"


@pytest.mark.parametrize("options", [(), ("--json",)], ids=" ".join)
def test_a_failed_job_is_a_failure(daemon: Endpoint, run: Run, job_file: Path, options: tuple[str, ...]) -> None:
    answer = in_background(lambda: run("submit", job_file, "--wait", *options))
    follower(daemon)
    daemon.do(
        daemon.node.change, JOB, state="failed", error="Loss became NaN.", fix="Lower learning_rate.", ended_at=1.0
    )
    told = answer()
    assert told.code == 1
    assert "Loss became NaN." in told.err
    assert "Lower learning_rate." in told.err
    if options:
        assert told.json["error"]["code"] == "job_failed", "one object on stdout"


def test_logs_are_followed_to_the_end_and_each_printed_once(daemon: Endpoint, run: Run) -> None:
    daemon.node.job_list[JOB] = summary()
    answer = in_background(lambda: run("logs", JOB, "--follow"))
    follower(daemon)
    for step in range(3):
        daemon.do(daemon.node.progress, JOB, "ash", step)
    daemon.do(daemon.node.change, JOB, state="finished", ended_at=1.0)
    told = answer()
    assert told.code == 0
    assert told.out.count("birch: started") == 1


def progress(node: str, step: int, attempt: int = 1, state: str = "running") -> Notice:
    data = {
        "job": JOB, "attempt": attempt, "node": NODES[node], "name": node, "step": step, "steps": 100, "epoch": 1,
        "epochs": 4, "loss": 0.5, "accuracy": None, "samples_per_second": 100.0, "members": 3, "state": state,
    }  # fmt: skip
    return Notice("progress", 0.0, data)


def test_remaining_time_is_by_the_speed_of_late() -> None:
    view = JobView(JOB, {})
    assert view.remaining_seconds(0.0) is None
    for second in range(11):
        view.hear(progress("ash", 2 * second), float(second))
    assert view.remaining_seconds(10.0) == pytest.approx(40.0)
    assert view.samples_per_second == 100.0


def test_a_later_attempt_goes_back_to_its_checkpoint() -> None:
    view = JobView(JOB, {})
    for node in ("ash", "birch"):
        view.hear(progress(node, 80), 1.0)
    view.hear(Notice("member", 0.0, {"node": NODES["birch"], "name": "birch", "state": "dead", "was": "alive"}), 2.0)
    view.hear(progress("ash", 50, attempt=2), 3.0)
    assert view.step == 50
    assert view.rows[NODES["birch"]].state == "lost"
    assert view.samples_per_second == 100.0


def test_other_jobs_are_not_this_one() -> None:
    view = JobView("j-other", {})
    assert view.hear(progress("ash", 80), 1.0) == []
    assert view.step == 0


def test_a_loss_that_is_no_number_is_no_crash(daemon: Endpoint, run: Run, job_file: Path) -> None:
    answer = in_background(lambda: run("submit", job_file, "--wait"))
    follower(daemon)
    broken = {**progress("ash", 7).data, "loss": float("nan")}
    daemon.do(daemon.node.bus.tell, "progress", broken)
    daemon.do(daemon.node.change, JOB, state="failed", loss=float("nan"), error="Loss became NaN.", ended_at=1.0)
    told = answer()
    assert told.code == 1
    assert "Loss became NaN." in told.err


def test_a_stream_that_ends_is_gone_on_with_and_nothing_is_missed(daemon: Endpoint) -> None:
    heard: queue.Queue[Notice | None] = queue.Queue()

    def follow() -> None:
        with contextlib.suppress(HiveError):  # the endpoint goes in the end
            for notice in AdminClient(daemon.home).follow(patience=0.5):
                heard.put(notice)

    thread = threading.Thread(target=follow)
    thread.start()
    assert heard.get(timeout=10) is None
    daemon.do(daemon.node.bus.tell, "coordinator", {"node": "0"})
    assert heard.get(timeout=10).data == {"node": "0"}

    def end_and_tell() -> None:
        daemon.server._streams.close()
        for name in "12":
            daemon.node.bus.tell("coordinator", {"node": name})

    daemon.do(end_and_tell)
    assert heard.get(timeout=10) is None, "it may have changed what was asked before"
    assert [heard.get(timeout=10).data for _ in range(2)] == [{"node": "1"}, {"node": "2"}]
    daemon.stop()
    thread.join(30)
    assert not thread.is_alive()
    daemon.start()


def test_after_a_restart_it_is_said_that_something_may_be_missing(daemon: Endpoint) -> None:
    follow = AdminClient(daemon.home).follow()
    assert next(follow) is None
    daemon.do(daemon.node.bus.tell, "coordinator", {"node": "0"})
    assert next(follow).kind == "coordinator"
    daemon.stop()
    again = daemon.do(lambda: MemoryNode(home=str(daemon.home)))
    daemon.start(again)
    assert [getattr(next(follow), "kind", None) for _ in range(3)] == [None, "missed", None]
    daemon.do(again.bus.tell, "member", {"node": "1"})
    assert next(follow).data == {"node": "1"}
    follow.close()

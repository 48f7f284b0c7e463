"""Every verb against a daemon's real endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hivenode.spec.status import ModelSummary, Notice
from hivenode.spec.values import Role
from tests.admin.memory import BLOB, MemoryNode, summary
from tests.cli.conftest import Endpoint, Run

JOB = "j-abcdefghjk"


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text('name = "digits"\n[training]\nepochs = 3\n')
    return path


@pytest.fixture
def busy(daemon: Endpoint) -> Endpoint:
    daemon.node.job_list[JOB] = summary()
    daemon.node.model_list = (
        ModelSummary("digits", 1, JOB, "zoo:cnn", BLOB, ("ash", "birch"), True, {"accuracy": 0.975}, 1_700_000_000.0),
    )
    return daemon


def test_status(busy: Endpoint, run: Run) -> None:
    busy.node.health = ("cedar is dead: its jobs go on elsewhere.",)
    busy.node.member_states["cedar"] = "dead"
    answer = run("status")
    assert answer.code == 0
    assert answer.out.startswith("! cedar is dead")
    rows = {line.split()[-1]: line for line in answer.out.splitlines() if "127.0.0.1:7420" in line}
    assert rows["aaaaaaaa"].split()[:3] == ["*", "ash", "alive"]
    assert "(elected)" in rows["bbbbbbbb"]
    assert rows["cccccccc"].split()[:2] == ["cedar", "dead"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("jobs",),
        ("jobs", JOB),
        ("jobs", "digits"),
        ("models",),
        ("invite",),
        ("cancel", JOB),
        ("version",),
    ],
)
def test_json_is_all_there_is_on_stdout(busy: Endpoint, run: Run, arguments: tuple[str, ...]) -> None:
    answer = run(*arguments, "--json")
    assert answer.code == 0, answer
    assert answer.json
    assert answer.err == ""


def test_jobs(busy: Endpoint, run: Run) -> None:
    answer = run("jobs")
    assert f"{JOB}" in answer.out
    assert "10/100" in answer.out
    answer = run("jobs", "digits")
    assert "no data is private" in answer.out, "the plan's candidates and why not"
    assert "checkpoint of step 5 on ash, birch" in answer.out
    assert run("jobs", "j-nope").code == 3
    busy.node.job_list.clear()
    assert "submit" in run("jobs").out, "what to do next"


def test_why_a_job_waits_is_short_in_the_listing_and_whole_by_itself(busy: Endpoint, run: Run) -> None:
    why = (
        "This job cannot run now: data_parallel: needs 2 nodes (placement.min_nodes), and 1 can take part: oak has "
        "torch 2.12.1 and ash 2.13 (one minor version has to be on all). Lower placement.min_nodes or add nodes."
    )
    busy.node.job_list[JOB] = summary(state="queued", reason=why)
    (row,) = [line for line in run("jobs").out.splitlines() if JOB in line]
    assert row.rstrip().endswith("needs 2 nodes, and 1 can take part: oak has…")
    assert "Lower placement.min_nodes or add nodes." in " ".join(run("jobs", JOB).out.split())
    assert run("jobs", "--json").json[0]["reason"] == why


def test_plan_submits_nothing(busy: Endpoint, run: Run, job_file: Path) -> None:
    busy.node.job_list.clear()
    answer = run("plan", job_file)
    assert "data_parallel" in answer.out
    assert "33.3%" in answer.out
    assert "cannot run" in answer.out
    assert "480 to 959" in answer.out, "whose samples are whose"
    assert "3 nodes take turns" in answer.out
    told = run("plan", job_file, "--json").json
    assert told["predicted_seconds"] == 12.5
    assert [task["data_range"] for task in told["subtasks"]] == [[0, 480], [480, 960], [960, 1440]]
    assert busy.node.job_list == {}


def test_submit(daemon: Endpoint, run: Run, job_file: Path) -> None:
    answer = run("submit", job_file)
    assert answer.code == 0
    assert f"hivenode jobs {JOB}" in answer.out
    assert ("submit", {"name": "digits", "training": {"epochs": 3}}) in daemon.node.asked
    assert run("submit", job_file, "--json").json["summary"]["state"] == "queued"


def test_a_wrong_job_file_names_file_field_and_the_nearest_name(daemon: Endpoint, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "x"\n[trainig]\nepochs = 3\n')
    for verb in ("submit", "plan"):
        answer = run(verb, path)
        assert answer.code == 2
        assert "bad.toml" in answer.err
        assert "did you mean 'training'" in answer.err
    assert run("submit", tmp_path / "none.toml").code == 3
    assert not daemon.node.job_list


def test_cancel(busy: Endpoint, run: Run) -> None:
    assert "cancelled" in run("cancel", "digits", "--reason", "enough").out
    assert ("cancel", "digits", "enough") in busy.node.asked
    answer = run("cancel", "digits")
    assert answer.code == 6
    assert "already cancelled" in answer.err


def test_logs(busy: Endpoint, run: Run) -> None:
    answer = run("logs", "digits")
    lines = answer.out.splitlines()
    assert len(lines) == 2
    assert "birch: started" in lines[0]
    assert "pid=7" in lines[0]
    assert "\x1b" not in answer.out, "what other machines say cannot act on the terminal"
    assert "cedar" in answer.err
    lines = [json.loads(line) for line in run("logs", "digits", "--json").out.splitlines()]
    assert [line["event"] for line in lines] == ["started", "evil \x1b[2J"]


def test_models_and_predictions(busy: Endpoint, run: Run, tmp_path: Path) -> None:
    answer = run("models")
    assert "digits:1" in answer.out
    assert "0.9750" in answer.out
    row = [float(pixel % 8) for pixel in range(64)]
    path = tmp_path / "digit.json"
    path.write_text(json.dumps(row))
    answer = run("predict", "digits", "--input", path)
    assert answer.code == 0
    assert "██" in answer.out
    assert "0.910" in answer.out
    assert ("predict", "digits", [row]) in busy.node.asked
    answer = run("predict", "digits", "--input", path, "--json")
    assert answer.json["outputs"][0][3] == 0.91
    answer = run("predict", "letters", "--input", path)
    assert answer.code == 3
    assert "letters" in answer.err


def test_invite(daemon: Endpoint, run: Run) -> None:
    answer = run("invite", "--role", "worker", "--role", "submitter", "--uses", 3, "--expires", "7d")
    assert answer.out == "hivenode up --detach --join hive1-TOKEN\n"
    assert ("invite", (Role.worker, Role.submitter), 3, 7 * 86400.0) in daemon.node.asked
    assert run("invite").code == 0
    assert daemon.node.asked[-1] == ("invite", (Role.coordinator, Role.worker, Role.submitter), 1, 3600.0)
    for wrong in ("1", "h", "-1h", "1 fortnight"):
        answer = run("invite", "--expires", wrong)
        assert (answer.code, "30m" in answer.err) == (2, True)
    assert run("invite", "--role", "king").code == 2


def test_join(daemon: Endpoint, run: Run) -> None:
    answer = run("join", "hive1-other")
    assert answer.code == 0
    assert "worker" in answer.out
    answer = run("join", "bad")
    assert (answer.code, "whole token" in answer.err) == (2, True)


def test_down(daemon: Endpoint, run: Run) -> None:
    answer = run("down")
    assert answer.code == 0
    assert daemon.node.stopping.is_set()


def test_events_are_followed_until_somebody_stops_it(
    daemon: Endpoint, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hivenode.cli.client import AdminClient

    def some(self: AdminClient) -> Any:
        yield None
        yield Notice("member", 1.0, {"name": "birch", "state": "dead", "was": "suspect"})
        yield Notice("coordinator", 2.0, {"node": "c", "name": "cedar", "epoch": "8.cccccc", "counter": 8})
        raise KeyboardInterrupt

    monkeypatch.setattr(AdminClient, "follow", some)
    answer = run("events")
    assert answer.code == 130
    assert "birch is dead (was suspect)" in answer.out
    lines = [json.loads(line) for line in run("events", "--json").out.splitlines()]
    assert [line["kind"] for line in lines] == ["member", "coordinator"]


def test_config_shows_what_is_in_force(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "hivenode.toml").write_text("[worker]\nnice = 3\n")
    answer = run("config", "show")
    assert answer.code == 0
    assert "nice = 3  # default: 10" in answer.out
    assert run("config", "show", "--json").json["worker"]["nice"] == 3
    (home / "hivenode.toml").write_text("[worker]\nnicce = 3\n")
    answer = run("config", "show")
    assert (answer.code, "'nice'" in answer.err) == (2, True)


def test_a_narrow_terminal_gets_fewer_columns_not_broken_ones(
    busy: Endpoint, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = run("jobs").out
    monkeypatch.setenv("COLUMNS", "80")
    narrow = run("jobs").out
    assert "STRATEGY" in wide
    assert "STRATEGY" not in narrow
    (row,) = [line.split() for line in narrow.splitlines() if JOB in line]
    assert row[:4] == [JOB, "digits", "running", "10/100"]
    assert all(len(line) <= 80 for line in narrow.splitlines())


def test_names_from_other_machines_cannot_act_on_the_terminal(busy: Endpoint, run: Run) -> None:
    busy.node.job_list[JOB] = summary(name="x\x1b]0;title\x07y", submitted_by="a[red]sh\r\n", reason="z\u202e\x9b2J")
    for answer in (run("jobs"), run("jobs", JOB)):
        assert answer.code == 0
        assert not set(answer.out) & set("\x1b\x07\r\x9b\u202e")
        assert "[red]" in answer.out, "no markup is taken from it"


def test_answers_of_another_version_are_no_crash(daemon: Endpoint, run: Run) -> None:
    daemon.node.model_list = (msgspec.Raw(b'{"name": 1}'),)  # type: ignore[assignment]
    answer = run("models")
    assert (answer.code, "another version" in answer.err) == (5, True)


def test_the_memory_node_is_what_the_endpoint_is_given(daemon: Endpoint) -> None:
    from hivenode.spec.status import NodeService

    methods = {name for name in vars(NodeService) if not name.startswith("_")}
    assert methods <= set(dir(MemoryNode))

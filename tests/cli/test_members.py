"""The verbs about members, against a daemon's real endpoint."""

from __future__ import annotations

from hivenode.spec.members import PairingStatus
from hivenode.spec.values import Role
from tests.cli.conftest import Endpoint, Run


def test_peers_names_members_strangers_and_the_revoked(daemon: Endpoint, run: Run) -> None:
    answer = run("peers")
    assert answer.code == 0
    assert all(word in answer.out for word in ("birch", "dogwood", "It is in another hive.", "cedar", "laptop sold"))
    assert "\x1b" not in answer.out
    found = run("peers", "--json").json
    assert [len(found[key]) for key in ("known", "pending", "revoked")] == [1, 1, 1]


def test_revoke_grant_and_forget(daemon: Endpoint, run: Run) -> None:
    assert "no member any more" in run("revoke", "birch", "--reason", "sold").out
    assert run("grant", "birch", "--role", "worker", "--role", "submitter").out == "birch is worker, submitter now.\n"
    assert run("forget", "birch", "--json").json["roles"] == []
    assert daemon.node.members.asked == [
        ("revoke", "birch", "sold"),
        ("grant", "birch", (Role.worker, Role.submitter)),
        ("forget", "birch"),
    ]


def test_what_is_wrong_with_the_words_is_said(daemon: Endpoint, run: Run) -> None:
    assert run("revoke", "elm").code == 3
    assert run("revoke", "ash").code == 4
    assert run("grant", "birch").code == 2
    for verb in (("grant", "birch"), ("invite",), ("pair",)):
        refused = run(*verb, "--role", "king")
        assert refused.code == 2
        assert "worker, submitter, coordinator or admin" in refused.err
    assert run("revoke", "../../v1/stop").code == 3, "a name cannot become another address"


def test_the_doctors_exit_code_says_whether_all_is_well(daemon: Endpoint, run: Run) -> None:
    answer = run("doctor")
    assert (answer.code, "All is well." in answer.out) == (0, True)
    daemon.node.members.fix = "Start it with `hivenode up`."
    answer = run("doctor", "birch")
    assert answer.code == 5
    assert "Start it with `hivenode up`." in answer.out
    assert daemon.node.members.asked[-1] == ("doctor", "birch")
    answer = run("doctor", "--json")
    assert (answer.code, answer.json["healthy"]) == (5, False)


def test_without_a_daemon_the_doctor_says_what_to_do(run: Run) -> None:
    answer = run("doctor")
    assert answer.code == 5
    assert "hivenode up" in answer.err


SHOWN = PairingStatus("open", "471-399-205", ("worker",), 1_700_000_600.0)


def test_pair_shows_a_code_until_somebody_has_joined(daemon: Endpoint, run: Run) -> None:
    ends = SHOWN.ends_at
    members = daemon.node.members
    members.codes = [
        SHOWN,
        SHOWN,
        PairingStatus("paired", "", ("worker",), ends, "cedar at 192.0.2.9 gave the code and joins now.", "cedar"),
        PairingStatus("joined", "", ("worker",), ends, "cedar has joined.", "cedar"),
    ]
    answer = run("pair", "--role", "worker")
    assert answer.code == 0
    assert answer.out == "hivenode pair 471-399-205\ncedar has joined. Next: `hivenode status`.\n"
    assert "one guess" in answer.err
    assert "cedar at 192.0.2.9 gave the code" in answer.err
    assert members.asked == [("pair", (Role.worker,))]


def test_pair_says_why_a_code_is_void(daemon: Endpoint, run: Run) -> None:
    for state, code in (("void", 4), ("expired", 5), ("closed", 6)):
        ended = PairingStatus(state, "", ("worker",), SHOWN.ends_at, "A machine at 192.0.2.9 gave a wrong code.")
        daemon.node.members.codes = [SHOWN, ended]
        answer = run("pair")
        assert answer.code == code
        assert "192.0.2.9" in answer.err
        assert "`hivenode pair` again" in answer.err
    daemon.node.members.codes = [SHOWN, PairingStatus("open", "1", (), SHOWN.ends_at + 5)]
    answer = run("pair")
    assert (answer.code, "newer code" in answer.err) == (6, True)
    answer = run("pair")
    assert (answer.code, "authority key" in answer.err) == (4, True)


def test_pair_with_a_code_joins(daemon: Endpoint, run: Run) -> None:
    assert run("pair", "wrong").code == 4
    answer = run("pair", "471-399-205", "192.0.2.1")
    assert answer.code == 0
    assert "as worker" in answer.out
    assert ("pair_with", "471-399-205", "192.0.2.1") in daemon.node.asked
    assert run("pair", "471-399-205", "--role", "worker").code == 2

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hivenode.logs import JobLogFile, bind, configure, get_logger


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("hivenode")
    before = (list(root.handlers), root.level, ours.level)
    yield
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_a_line_is_json() -> None:
    stream = io.StringIO()
    configure("info", "auto", stream)
    get_logger("jobs").info("worker exited", job="j-1", pid=7, code=None, nodes=["a", "b"], ratio=0.5)
    get_logger("jobs").debug("not said")
    (line,) = lines(stream)
    assert str(line.pop("at")).endswith("Z")
    assert line == {
        "level": "info", "logger": "jobs", "event": "worker exited",
        "job": "j-1", "pid": 7, "code": None, "nodes": ["a", "b"], "ratio": 0.5,
    }  # fmt: skip


def test_on_a_terminal_a_line_is_text() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    configure("info", "auto", stream)
    get_logger("jobs").warning("worker exited", job="j-1", reason="out of memory")
    assert stream.getvalue().endswith('warning jobs: worker exited  job=j-1 reason="out of memory"\n')


def test_fields_of_the_context_reach_every_part_and_every_task() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    log = get_logger("a").bind(node="n1", epoch="1")

    async def inside() -> None:
        get_logger("b").info("in a task")

    async def main() -> None:
        with bind(job="j-1", attempt=1):
            log.info("bound", epoch="2")
            await asyncio.create_task(inside())
        get_logger("b").info("outside")

    asyncio.run(main())
    found = [{k: v for k, v in line.items() if k not in ("at", "level", "logger")} for line in lines(stream)]
    assert found == [
        {"event": "bound", "job": "j-1", "attempt": 1, "node": "n1", "epoch": "2"},
        {"event": "in a task", "job": "j-1", "attempt": 1},
        {"event": "outside"},
    ]


def test_the_standard_way_of_giving_fields_works_too() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("hivenode.old").info("event %d", 5, extra={"fields": {"x": 1}})
    logging.getLogger("library").warning("careful")
    logging.getLogger("library").info("chatter")
    first, second = lines(stream)
    assert (first["event"], first["x"]) == ("event 5", 1)
    assert (second["logger"], second["event"]) == ("library", "careful")


def test_nothing_in_a_field_breaks_out_of_its_line() -> None:
    evil = "x\n\x1b[2J14:00:00.000 info node: all is well\r"
    for form in ("json", "text"):
        stream = io.StringIO()
        configure("info", form, stream)  # type: ignore[arg-type]
        get_logger("net").info("from a peer", name=evil, **{"key\n": 1}, more=[evil])
        text = stream.getvalue()
        assert text.count("\n") == 1
        assert text.endswith("\n")
        assert "\x1b" not in text
        assert "\r" not in text
    stream = io.StringIO()
    configure("info", "text", stream)
    get_logger("net").info(evil)
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_values_without_a_form_in_json_are_still_said() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    circle: list[object] = []
    circle.append(circle)
    get_logger("x").info(
        "odd", nan=float("nan"), path=Path("/a"), data=b"\x01", bad="\udc80", circle=circle, big=2**80, level="mine"
    )
    (line,) = lines(stream)
    assert (line["nan"], line["path"], line["data"], line["big"]) == ("nan", "/a", "01", 2**80)
    assert (line["level"], line["level_"]) == ("info", "mine")


def test_an_exception_is_told_with_its_trace() -> None:
    for form in ("json", "text"):
        stream = io.StringIO()
        configure("info", form, stream)  # type: ignore[arg-type]
        try:
            raise ValueError("why")
        except ValueError as error:
            get_logger("x").exception("it broke", job="j")
            get_logger("x").error("told later", exc_info=error)
        assert stream.getvalue().count("ValueError: why") == 2
    assert len(stream.getvalue().splitlines()) > 4


def test_configuring_again_replaces_what_was_configured() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("info", "json", first)
    configure("error", "json", second)
    get_logger("x").info("quiet")
    get_logger("x").error("loud")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


# --- job logs -------------------------------------------------------------------------------------------------------


def test_lines_of_a_job_are_paged_by_number(tmp_path: Path) -> None:
    job_log = JobLogFile(tmp_path / "logs")
    for n in range(10):
        job_log.write("j-1", {"event": "step", "n": n})
    job_log.write("j-2", {"event": "other"})
    first, place, more = job_log.read("j-1", 0, 120)
    assert more
    assert 0 < len(first) < 10
    assert place == len(first)
    rest, end, more = job_log.read("j-1", place, 1 << 20)
    assert [json.loads(line)["n"] for line in (*first, *rest)] == list(range(10))
    assert (end, more) == (10, False)
    assert job_log.read("j-1", end, 1 << 20) == ([], 10, False)
    job_log.write("j-1", {"event": "later"})
    assert job_log.read("j-1", end, 1) == (['{"event":"later"}'], 11, False)
    assert job_log.read("never", 0, 100) == ([], 0, False)


def test_a_job_that_says_much_keeps_its_latest_lines(tmp_path: Path) -> None:
    job_log = JobLogFile(tmp_path, job_bytes=64_000)
    for n in range(4000):
        job_log.write("j", {"event": "step", "n": n})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 64_000
    found, place = [], 0
    while True:
        page, place, more = job_log.read("j", place, 10_000)
        found += [json.loads(line)["n"] for line in page]
        if not more:
            break
    assert place == 4000
    assert found == list(range(found[0], 4000))
    assert len(found) > 500
    late, place, _ = job_log.read("j", 3998, 10_000)
    assert [json.loads(line)["n"] for line in late] == [3998, 3999]


def test_numbers_go_on_after_a_restart_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    first = JobLogFile(tmp_path, job_bytes=64_000)
    for n in range(1500):
        first.write("j", {"n": n})
    newest = max(tmp_path.iterdir(), key=lambda path: int(path.name.split(".")[1]))
    with newest.open("ab") as file:
        file.write(b'{"n": 15')
    again = JobLogFile(tmp_path, job_bytes=64_000)
    assert again.read("j", 1499, 1000)[0] == ['{"n":1499}']
    again.write("j", {"n": 1500})
    assert again.read("j", 1499, 1000) == (['{"n":1499}', '{"n":1500}'], 1501, False)


def test_all_jobs_together_stay_bounded_and_the_longest_silent_go_first(tmp_path: Path) -> None:
    job_log = JobLogFile(tmp_path, job_bytes=32_000, total_bytes=100_000)
    for n in range(40):
        for _ in range(10):
            job_log.write(f"j-{n}", {"event": "x" * 1000})
        newest = max(tmp_path.glob(f"j-{n}.*"))
        os.utime(newest, (1000 + n, 1000 + n))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100_000
    assert job_log.read("j-0", 0, 1000)[0] == []
    assert len(job_log.read("j-39", 0, 1 << 20)[0]) == 10
    job_log.write("j-0", {"event": "back again"})
    assert job_log.read("j-0", 10, 1000) == (['{"event":"back again"}'], 11, False)


def test_a_huge_record_is_cut_to_fit_a_message(tmp_path: Path) -> None:
    job_log = JobLogFile(tmp_path)
    job_log.write("j", {"event": "trace", "text": "é" * 100_000, "n": 5, "list": list(range(50_000))})
    job_log.write("j", {f"key {n}": "v" * 500 for n in range(1000)})
    job_log.write("j", {f"{n}" + "é" * 100: "é" * 500 for n in range(1000)})
    found, _, _ = job_log.read("j", 0, 1 << 20)
    assert all(len(line) <= 8192 for line in found)
    record = json.loads(found[0])
    assert (record["event"], record["n"], record["cut"]) == ("trace", 5, True)
    assert record["text"].startswith("ééé")


def test_a_job_id_is_never_a_path(tmp_path: Path) -> None:
    job_log = JobLogFile(tmp_path / "logs")
    for job in ("../escape", "/etc/x", "*", "a.b", ""):
        job_log.write(job, {"job": job})
        assert job_log.read(job, 0, 1000)[0] == [json.dumps({"job": job}, separators=(",", ":"))]
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


FILLING = """
import sys
from pathlib import Path
from hivenode.logs import JobLogFile, configure
configure("info", "text", sys.stderr)
job_log = JobLogFile(Path(sys.argv[1]), job_bytes=1 << 20)
for n in range(3000):
    job_log.write("j", {"n": n})
lines, place, more = job_log.read("j", 0, 1 << 20)
print(len(lines), place, lines[-1])
"""


def test_a_full_disk_loses_lines_but_harms_nobody(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(tmp_path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5003, 5003)),
    )
    assert done.returncode == 0, done.stderr
    count, place, last = done.stdout.split()
    assert int(count) == int(place) > 100
    assert json.loads(last)["n"] == int(count) - 1, "no half line is left"
    assert done.stderr.count("job log lines are being lost") == 1


def test_reading_is_bounded_in_lines(tmp_path: Path) -> None:
    job_log = JobLogFile(tmp_path)
    for n in range(JobLogFile.PAGE_LINES + 5):
        job_log.write("j", {"n": n})
    page, place, more = job_log.read("j", 0, 1 << 30)
    assert (len(page), place, more) == (JobLogFile.PAGE_LINES, JobLogFile.PAGE_LINES, True)

"""`hivenode data summary`, without a daemon."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run

ROWS = "a,b,kind\n" + "".join(f"{n},{n % 5},{'rare' if n == 7 else 'usual'}\n" for n in range(40))


def test_a_file_and_a_job_are_summed_up(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    (tmp_path / "job.toml").write_text('name = "x"\n[data]\nsource = "csv:rows.csv"\ntest_fraction = 0.5\n')
    answer = run("data", "summary", tmp_path / "rows.csv")
    assert answer.code == 0
    assert "40 samples of 2 numbers, for classification: 32 to train on, 8 held out." in " ".join(answer.out.split())
    assert "rare has 1 sample," in " ".join(answer.out.split())
    answer = run("data", "summary", tmp_path / "job.toml", "--json")
    assert answer.json["info"]["labels"] == ["rare", "usual"]
    assert "20 to train on" in answer.json["summary"][0]
    answer = run("data", "summary", tmp_path / "rows.csv", "--target", "c")
    assert answer.code == 2
    assert "has no column 'c'" in answer.err
    answer = run("data", "summary", f"csv:{tmp_path}/rows.csv")
    assert "40 samples of 2 numbers" in " ".join(answer.out.split())


def test_a_verb_that_was_left_out_is_named(run: Run) -> None:
    answer = run("data", "csv:rows.csv")
    assert answer.code == 2
    assert "`hivenode data summary csv:rows.csv`" in answer.err

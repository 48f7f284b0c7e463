from __future__ import annotations

from pathlib import Path

import pytest

from hivenode.errors import InvalidInput, NotFound
from hivenode.spec.job import parse_job, read_job


def test_a_mistyped_field_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(InvalidInput, match=r"training\.epoch: unknown field, did you mean 'epochs'\?"):
        parse_job({"name": "j", "training": {"epoch": 3}})


def test_a_wrong_value_is_named_in_plain_words() -> None:
    with pytest.raises(InvalidInput, match=r"placement: min_nodes \(3\) is above max_nodes \(2\)"):
        parse_job({"name": "j", "placement": {"min_nodes": 3, "max_nodes": 2}})


def test_a_mistyped_choice_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(InvalidInput, match=r"strategy: 'autoo' is not a choice, did you mean 'auto'\? Correct"):
        parse_job({"name": "j", "placement": {"strategy": "autoo"}})
    with pytest.raises(InvalidInput, match=r"optimizer: 'lion' is not a choice, choose sgd, adam, adamw\. Correct"):
        parse_job({"name": "j", "training": {"optimizer": "lion"}})


def test_a_job_file_is_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    with pytest.raises(NotFound, match=r"job file .*job\.toml"):
        read_job(path)
    path.write_text("name = 'digits'\n[training]\nepochs = 2\n")
    assert read_job(path).training.epochs == 2
    path.write_text("name = ")
    with pytest.raises(InvalidInput, match=r"job\.toml is not valid TOML"):
        read_job(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match=r"job\.toml cannot be read"):
        read_job(path)

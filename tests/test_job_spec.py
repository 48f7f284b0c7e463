from __future__ import annotations

import re
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


def test_patience_needs_samples_held_out() -> None:
    training = {"patience": 3}
    with pytest.raises(InvalidInput, match="patience goes by samples held out"):
        parse_job({"name": "x", "training": training, "data": {"test_fraction": 0.0}})
    parse_job({"name": "x", "training": training})
    parse_job({"name": "x", "training": training, "data": {"source": "private:visits", "test_fraction": 0.0}})


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"micro_batch_size": 8}, 'micro_batch_size belongs to sync = "accumulate"'),
        ({"sync_every": 5}, 'sync_every belongs to sync = "local"'),
        ({"fragments": 2}, 'fragments belongs to sync = "local"'),
        ({"sync": "local", "sync_every": 4, "fragments": 5}, "fragments (5) is above sync_every (4)"),
        ({"sync": "local", "sync_every": 10, "fragments": 3, "overlap": 4}, "above sync_every / fragments (3)"),
        ({"sync": "accumulate", "batch_size": 4, "micro_batch_size": 8}, "is above batch_size"),
        ({"final_learning_rate": 1.0}, "is above learning_rate"),
        ({"codec": "int7"}, "'int7' is not a choice, did you mean 'int8'?"),
        ({"sync": "locl"}, "did you mean 'local'?"),
    ],
)
def test_training_fields_that_do_not_go_together_are_named(training: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(words)):
        parse_job({"name": "j", "training": training})


def test_an_estimator_names_its_framework() -> None:
    job = parse_job({"name": "j", "model": {"source": "sklearn:SGDClassifier"}})
    assert (job.framework, job.runtime) == ("sklearn", "sklearn")
    assert parse_job(job.model_dump(mode="json")) == job
    parts = {"sync": "local", "fragments": 2}
    with pytest.raises(InvalidInput, match="are not for estimators"):
        parse_job({"name": "j", "model": {"source": "sklearn:SGDClassifier"}, "training": parts})
    with pytest.raises(InvalidInput, match="framework is sklearn, and zoo:cnn is not a model of it"):
        parse_job({"name": "j", "framework": "sklearn"})
    with pytest.raises(InvalidInput, match="keras builds zoo:, layers: and keras: models"):
        parse_job(
            {"name": "j", "framework": "keras", "model": {"source": "hf:config", "config": {"model_type": "bert"}}}
        )

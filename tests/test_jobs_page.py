"""docs/jobs.md names everything that can be declared, and its examples are right."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from hivenode.cli.jobs import located
from hivenode.config import FILE, load_settings
from hivenode.data.sources import information
from hivenode.models.declared import describe
from hivenode.models.keras_configs.files import embedded
from hivenode.models.layers import KINDS as LAYERS
from hivenode.models.zoo import ZOO
from hivenode.spec.data import KINDS, DataSpec
from hivenode.spec.job import parse_job, read_job

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "jobs.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
SETTINGS = [example for example in EXAMPLES if example.startswith("# hivenode.toml")]
JOBS = [example for example in EXAMPLES if example not in SETTINGS]


@pytest.mark.parametrize("example", JOBS)
def test_an_example_is_a_job(example: str) -> None:
    job = parse_job({"name": "example", **tomllib.loads(example)})
    if job.data.kind == "sklearn":
        assert describe(job.model, information(job.data)).parameters > 0


@pytest.mark.parametrize("example", SETTINGS)
def test_an_example_of_settings_is_taken(example: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(example)
    assert load_settings(tmp_path) != load_settings(tmp_path / "none")


def test_every_declaration_is_on_the_page() -> None:
    for name, entry in ZOO.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `zoo:{name}`"))
        assert all(f"`{param}` ({default.default})" in row for param, default in entry.params.items()), row
    for kind in LAYERS:
        assert f"`{kind}`" in PAGE or f'type = "{kind}"' in PAGE, kind
    for kind in KINDS:
        assert f"`{kind}:" in PAGE or kind == "shared", kind
    for field in DataSpec.model_fields:
        assert f"`{field}`" in PAGE or f"{field} =" in PAGE or field in ("source", "shared"), field


def test_ready_jobs_can_be_planned() -> None:
    paths = sorted((ROOT / "configs" / "jobs").glob("*.toml"))
    assert len(paths) >= 10
    for path in paths:
        job = located(read_job(path), path.parent)
        assert job.name == path.stem
        if job.data.kind == "sklearn":
            assert describe(embedded(job.model), information(job.data)).flops_per_sample > 0

"""What a person submits: a declarative job, read from TOML. Unknown keys are refused with the nearest valid name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hivenode.errors import InvalidInput
from hivenode.spec.training import TrainingSpec as TrainingSpec
from hivenode.spec.values import Strategy
from hivenode.validation import explain, read_toml

Scalar = bool | int | float | str


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class ModelSpec(_Section):
    """Which model. `source` is `zoo:NAME`; `params` are the arguments that model takes."""

    source: Annotated[str, Field(pattern=r"^zoo:[a-z0-9_]+$", max_length=64)] = "zoo:cnn"
    params: Annotated[dict[str, Scalar], Field(max_length=32)] = {}


class DataSpec(_Section):
    """Which data. `source` is `sklearn:NAME`, a set bundled with scikit-learn."""

    source: Annotated[str, Field(pattern=r"^sklearn:[a-z0-9_]+$", max_length=64)] = "sklearn:digits"
    test_fraction: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.2
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 0


class PlacementSpec(_Section):
    """Where. `nodes` limits the job to these node names or ids; empty means any capable node."""

    strategy: Literal["auto"] | Strategy = "auto"
    min_nodes: Annotated[int, Field(strict=True, ge=1, le=4096)] = 1
    max_nodes: Annotated[int, Field(strict=True, ge=1, le=4096)] = 64
    nodes: Annotated[tuple[str, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _ordered(self) -> PlacementSpec:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes ({self.min_nodes}) is above max_nodes ({self.max_nodes})")
        return self


class JobSpec(_Section):
    """One training job."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    framework: Literal["torch"] = "torch"
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    training: TrainingSpec = TrainingSpec()
    placement: PlacementSpec = PlacementSpec()


def read_job(path: Path) -> JobSpec:
    """Read and validate a job file.

    Raises:
        NotFound: the file does not exist.
        InvalidInput: it is unreadable, not TOML, or has a wrong or unknown field (named, with the nearest name).
    """
    data = read_toml(path, "job file", missing_fix="Check the path; configs/jobs/ has examples.")
    return parse_job(data, where=str(path))


def parse_job(data: object, *, where: str = "the job") -> JobSpec:
    """Validate a decoded job; raises InvalidInput naming every wrong field."""
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(
            f"{where} is not a valid job: {explain(error, JobSpec)}", fix="Correct the fields named and submit again."
        ) from error

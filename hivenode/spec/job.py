"""What a person submits: a declarative job, read from TOML. Unknown keys are refused with the nearest valid name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from hivenode.errors import InvalidInput
from hivenode.spec.data import DataSpec
from hivenode.spec.model import ModelSpec, runtime
from hivenode.spec.section import Section
from hivenode.spec.training import TrainingSpec as TrainingSpec
from hivenode.spec.values import Strategy
from hivenode.validation import explain, read_toml


class PlacementSpec(Section):
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


class JobSpec(Section):
    """One training job."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    framework: Literal["torch", "keras", "sklearn"] = "torch"
    """What builds and trains the model; that of `sklearn:` and `keras:` models goes without saying."""
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    training: TrainingSpec = TrainingSpec()
    placement: PlacementSpec = PlacementSpec()

    @model_validator(mode="before")
    @classmethod
    def _framework(cls, given: Any) -> Any:
        model = given.get("model") if isinstance(given, dict) else None
        source = model.get("source") if isinstance(model, dict) else getattr(model, "source", None)
        kind = source.partition(":")[0] if isinstance(source, str) else ""
        if kind in ("sklearn", "keras") and "framework" not in given:
            return {**given, "framework": kind}
        return given

    @model_validator(mode="after")
    def _together(self) -> JobSpec:
        estimator = self.model.kind == "sklearn"
        if self.training.patience is not None and self.data.kind != "private" and self.data.test_fraction == 0:
            raise ValueError("training.patience goes by samples held out, and data.test_fraction is 0")
        if self.model.kind != "catalog" and estimator != (self.framework == "sklearn"):
            raise ValueError(f"framework is {self.framework}, and {self.model.source} is not a model of it")
        if self.framework == "keras" and self.model.kind not in ("zoo", "layers", "keras", "catalog"):
            raise ValueError(f"keras builds zoo:, layers: and keras: models, and {self.model.source} is none")
        if self.framework != "keras" and self.model.kind == "keras":
            raise ValueError(f"framework is {self.framework}, and {self.model.source[:64]} is built by keras alone")
        if estimator and self.training.sync == "accumulate":
            raise ValueError("training.sync is accumulate, and an estimator has no gradients to accumulate")
        if estimator and (self.training.fragments > 1 or self.training.overlap):
            raise ValueError("training.fragments and training.overlap are not for estimators, which are averaged whole")
        if estimator and self.training.precision in ("bf16", "fp16"):
            raise ValueError(f"training.precision is {self.training.precision}, and estimators compute in their own")
        if self.training.engine == "torch" and self.framework != "torch":
            raise ValueError(f'training.engine = "torch" is for torch models, and framework is {self.framework}')
        if self.training.engine == "torch" and self.placement.strategy not in ("auto", Strategy.data_parallel):
            raise ValueError(
                f'training.engine = "torch" is for data_parallel, and placement.strategy is {self.placement.strategy}'
            )
        return self

    @property
    def runtime(self) -> str:
        """What a node has to have installed to build the model."""
        return runtime(self.model.source, self.framework)

    @property
    def libraries(self) -> tuple[str, ...]:
        """What has to be installed on a node besides the framework."""
        found: list[str] = [self.framework] if self.runtime != self.framework else []
        if self.model.lora is not None:
            found.append("peft")
        if self.data.kind == "sklearn":
            found.append("scikit-learn")
        return tuple(found)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a node must have that not every node has: data, a model, a package."""
        found = []
        if self.data.kind == "private":
            found.append(self.data.source)
        if self.model.kind == "hf" and self.model.source != "hf:config":
            found.append(self.model.source)
        if self.model.kind == "python":
            found.append("python:" + self.model.name.partition(":")[0].partition(".")[0])
        return tuple(found)


def read_job(path: Path) -> JobSpec:
    """Read and validate a job file.

    Raises:
        NotFound: the file does not exist.
        InvalidInput: it is unreadable, not TOML, or has a wrong or unknown field (named, with the nearest name).
    """
    data = read_toml(path, "job file", missing_fix="Check the path; configs/jobs/ has examples.")
    return parse_job(data, where=str(path))


MAX_ENCODED = 65_536


def encoded(spec: JobSpec) -> bytes:
    """As JSON. Raises InvalidInput when it is too long to be stated."""
    said = spec.model_dump_json().encode()
    if len(said) > MAX_ENCODED:
        raise InvalidInput(
            f"The declaration has {len(said)} bytes; at most {MAX_ENCODED} are passed on.",
            fix="Shorten model.config, model.layers or data.features.",
        )
    return said


def parse_job(data: object, *, where: str = "the job") -> JobSpec:
    """Validate a decoded job; raises InvalidInput naming every wrong field."""
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(
            f"{where} is not a valid job: {explain(error, JobSpec)}", fix="Correct the fields named and submit again."
        ) from error

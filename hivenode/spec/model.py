"""Which model a job trains: a declaration, never code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hivenode.spec.section import Scalar, Section

MAX_SOURCE = 200
"""Characters, but for a path."""
KINDS = ("zoo", "layers", "hf", "keras", "sklearn", "catalog", "python")


def runtime(source: str, framework: str = "torch") -> str:
    """What a node has to have installed to build a model: transformers, keras, or what the job names."""
    return {"hf": "transformers", "keras": "keras"}.get(source.partition(":")[0], framework)


class LoraSpec(Section):
    """Low-rank adapters (arXiv 2106.09685) beside chosen matrices of an `hf:` model; all else stays as it is."""

    rank: Annotated[int, Field(strict=True, ge=1, le=1024)] = 8
    alpha: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 16
    targets: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=32)] = ()
    """Names of modules, such as "query" or "c_attn"; empty: those that peft knows for this kind of model."""


class ModelSpec(Section):
    """`source` is one of

    - `zoo:NAME`, a small model of our own; `params` are its arguments;
    - `layers:`, the list in `layers`, each a table with its `type` and arguments;
    - `hf:config`, a transformers configuration given in `config`; `hf:NAME`, a directory (config.json and safetensors)
      that nodes call by this name in their own configuration (`models.directories`);
    - `keras:PATH`, a model of Keras's own layers in a .json (`model.to_json()`), .keras or .h5 on the submitting node;
      of its weights nothing is taken. `keras:config`, the same in `config`;
    - `sklearn:ESTIMATOR`, an estimator of scikit-learn by the name of its class; `params` are its arguments, and
      `estimators`, each a table with its `estimator` and arguments, what a Pipeline or an ensemble is made of;
    - `catalog:NAME[:VERSION]`, a model of the hive's catalogue, to go on with;
    - `python:MODULE:FACTORY`, a function in a package that the node's owner allowed (`jobs.allowed_packages`), called
      with `params`, `input_shape` and `outputs`, that returns a torch module.

    `weights` are what training starts from instead of chance: `file:PATH` (safetensors, on the submitting node) or
    `catalog:NAME[:VERSION]`. Tensors that the file lacks, or has in another shape, start afresh; the job's log
    names them.
    """

    source: Annotated[str, Field(max_length=4096)] = "zoo:cnn"
    params: dict[str, Scalar] = Field(default_factory=dict, max_length=32)
    layers: Annotated[tuple[dict[str, Scalar], ...], Field(max_length=256)] = ()
    estimators: Annotated[tuple[dict[str, Scalar], ...], Field(max_length=64)] = ()
    config: dict[str, Any] = Field(default_factory=dict, max_length=256)
    weights: Annotated[str, Field(max_length=4096)] = ""
    lora: LoraSpec | None = None
    parameters: Annotated[int, Field(strict=True, ge=1, le=2**40)] | None = None
    """Parameters of a `python:` model, for the planner, who cannot look into it."""

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        kind, colon, name = source.partition(":")
        if not colon or kind not in KINDS:
            raise ValueError(f"'{source[:64]}' is no model; it begins with one of {', '.join(f'{k}:' for k in KINDS)}")
        if not name and kind != "layers":
            raise ValueError(f"'{source}' lacks a name after the colon")
        if len(source) > MAX_SOURCE and kind != "keras":
            raise ValueError(f"'{source[:64]}...' has {len(source)} characters, and no name has over {MAX_SOURCE}")
        return source

    @field_validator("weights")
    @classmethod
    def _weights(cls, weights: str) -> str:
        if weights and not weights.startswith(("file:", "catalog:", "blob:")):
            raise ValueError(f"'{weights[:64]}' are no weights; give file:PATH or catalog:NAME")
        return weights

    @model_validator(mode="after")
    def _fitting(self) -> ModelSpec:
        if self.kind == "layers" and not self.layers:
            raise ValueError('source = "layers:" takes its layers from model.layers, and that lists none')
        if self.layers and self.kind != "layers":
            raise ValueError('a list of layers belongs to source = "layers:", and only to it')
        if self.estimators and self.kind not in ("sklearn", "catalog"):
            raise ValueError(f"estimators belong to sklearn: models, and {self.source} is none")
        if (self.source in ("hf:config", "keras:config")) != bool(self.config):
            raise ValueError('config belongs to source = "hf:config" or "keras:config", and only to them')
        if self.params and self.kind == "keras":
            raise ValueError(
                "params belong to other models; all that a keras: model is made of is in its configuration"
            )
        if self.lora is not None and self.kind not in ("hf", "catalog"):
            raise ValueError(f"lora adapts hf: models, and {self.source} is none")
        if "auto_map" in self.config:
            raise ValueError("config.auto_map names code of the model's author, which is never run; remove it")
        return self

    @property
    def kind(self) -> Literal["zoo", "layers", "hf", "keras", "sklearn", "catalog", "python"]:
        return self.source.partition(":")[0]  # type: ignore[return-value]  # validated

    @property
    def name(self) -> str:
        """What follows the kind."""
        return self.source.partition(":")[2]

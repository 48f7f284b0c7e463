"""Which data a job trains on: a declaration; reading it is `hivenode.data`'s."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hivenode.spec.section import Section

FILES = ("npz", "npy", "csv", "parquet", "jsonl", "text", "images", "arrow")
"""Kinds of files, read on the submitting node (or, if private, where they lie)."""
BUILT_IN = ("char", "byte")
"""Tokenizers that are no file."""
KINDS = ("sklearn", *FILES, "private", "shared")

Task = Literal["classification", "regression", "language", "text_to_text", "reconstruction", "clustering"]
Column = Annotated[str, Field(max_length=256)]


class SharedData(Section):
    """What the submitting node has made of a file: enough to plan with, and the digest under which all the rest is
    found. Not for people to write."""

    size: Annotated[int, Field(ge=1, le=2**40)]
    samples: Annotated[int, Field(ge=1, le=2**40)]
    input_shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**40)], ...], Field(min_length=1, max_length=4)]
    outputs: Annotated[int, Field(ge=1, le=2**40)]
    task: Task
    vocabulary: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    padding: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    origin: Annotated[str, Field(max_length=256)] = ""
    """As the person wrote it, without folders."""


class DataSpec(Section):
    """`source` is one of

    - `sklearn:NAME`, a set bundled with scikit-learn;
    - `KIND:PATH` for KIND in npz, npy, csv, parquet, jsonl, text, images, arrow: a file or folder on the submitting
      node;
    - `private:NAME`, whatever each node's own configuration calls so (`data.private`); it never leaves that node;
    - `shared:DIGEST`, what the submitting node has made of a file.

    `target` names the column (or array) to predict, `features` those to predict it from (empty: all others).
    """

    source: Annotated[str, Field(max_length=4096)] = "sklearn:digits"
    test_fraction: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.2
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 0
    task: Literal["auto"] | Task = "auto"
    target: Column = ""
    features: Annotated[tuple[Column, ...], Field(max_length=4096)] = ()
    tokenizer: Annotated[str, Field(max_length=4096)] = "char"
    """How text becomes numbers: `char`, `byte`, or the path of a tokenizer.json on the submitting node."""
    length: Annotated[int, Field(strict=True, ge=2, le=131_072)] = 64
    """Tokens in a sample of text; for text_to_text, of each of the two."""
    size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 32
    """Side of the square to which images are scaled, pixels."""
    shared: SharedData | None = None

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        kind, colon, name = source.partition(":")
        if not colon or kind not in KINDS:
            raise ValueError(f"'{source[:64]}' is no data; it begins with one of {', '.join(f'{k}:' for k in KINDS)}")
        if not name:
            raise ValueError(f"'{source}' lacks a name after the colon")
        return source

    @model_validator(mode="after")
    def _resolved(self) -> DataSpec:
        if (self.kind == "shared") != (self.shared is not None):
            raise ValueError("shared: data are made by the node that a file is submitted on; give the file")
        return self

    @property
    def kind(self) -> str:
        return self.source.partition(":")[0]

    @property
    def name(self) -> str:
        """What follows the kind."""
        return self.source.partition(":")[2]

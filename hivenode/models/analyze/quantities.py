"""What an analysis says: quantities, each with its range and how it is known, and the machines they fit."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from enum import StrEnum
from typing import Any

import msgspec

from hivenode.errors import InvalidInput
from hivenode.spec.values import COMPLEXITY_EDGES

QUANTITY_NAMES = (
    "weights", "gradients", "optimizer_state", "activations", "kv_cache", "inference_memory", "training_memory",
    "inference_flops", "step_flops",
)  # fmt: skip
CLASSES = ("small", "medium", "large", "xlarge")
BITS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8, "int64": 64,
    "int32": 32, "int16": 16, "int8": 8, "uint8": 8, "bool": 8, "int4": 4, "uint4": 4,
}  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16", "float64", "mixed")
"""What a model can be computed in. `mixed`: float32 weights, bfloat16 where it is safe (torch.autocast)."""
LARGEST = 1 << 30
"""Of a batch or a sequence: beyond any use, and small enough that no product overflows what JSON readers hold."""


class Method(StrEnum):
    """How a quantity is known: `exact` follows from what stands in the file, `traced` was counted while the model ran
    on tensors without storage, `rule` comes from a formula of its kind of model."""

    exact = "exact"
    traced = "traced"
    rule = "rule"


class Quantity(msgspec.Struct, frozen=True):
    """A number with its range. `low` and `high` are where the truth is expected; equal to `value` where exact."""

    value: float
    low: float
    high: float
    unit: str
    method: Method
    why: str


class Optimizer(msgspec.Struct, frozen=True):
    """Bytes kept for each parameter, and parameters' worth of memory taken in passing while one is updated."""

    name: str
    state_bytes: float
    temporaries: float
    why: str


OPTIMIZERS = {
    one.name: one
    for one in (
        Optimizer("sgd", 0, 0, "keeps nothing"),
        Optimizer("momentum", 4, 0, "SGD with momentum: one float32 a parameter"),
        Optimizer("adam", 8, 2, "two float32 a parameter (arXiv 1412.6980)"),
        Optimizer("adamw", 8, 2, "two float32 a parameter (arXiv 1711.05101)"),
        Optimizer("adam8bit", 2.03, 2, "two bytes a parameter and a scale for every 256 (arXiv 2110.02861)"),
        Optimizer("rmsprop", 4, 2, "one float32 a parameter"),
        Optimizer("adagrad", 4, 2, "one float32 a parameter"),
        Optimizer("lion", 4, 1, "one float32 a parameter (arXiv 2302.06675)"),
    )
}


class Options(msgspec.Struct, frozen=True):
    """What is asked about. None: chosen from the model, and told in the answer."""

    batch: int = 1
    sequence: int | None = None
    train: bool = True
    infer: bool = True
    optimizer: str = "adam"
    dtype: str | None = None


class Fit(msgspec.Struct, frozen=True):
    """One machine. Seconds are of one pass over the batch, one training step; None where the FLOPs are not known.

    Attributes:
        inference, training: whether the expected peak fits into `room_bytes`; None if not asked or not known.
    """

    node: str
    name: str
    room_bytes: int
    inference: bool | None
    training: bool | None
    inference_seconds: Quantity | None
    step_seconds: Quantity | None
    self: bool
    paused: str


class Together(msgspec.Struct, frozen=True):
    """How many machines it takes, those with the most room first; `nodes` is 0 if all together have too little."""

    purpose: str
    nodes: int
    names: tuple[str, ...]
    needed_bytes: int
    offered_bytes: int


class Analysis(msgspec.Struct, kw_only=True):
    """The answer. A quantity that does not apply to this model, or was not asked for, is None."""

    path: str
    model: str | None = None
    framework: str | None = None
    family: str = "unknown"
    architecture: str | None = None
    complexity: str | None = None
    parameters: int | None = None
    options: Options = msgspec.field(default_factory=Options)
    weights: Quantity | None = None
    gradients: Quantity | None = None
    optimizer_state: Quantity | None = None
    activations: Quantity | None = None
    kv_cache: Quantity | None = None
    inference_memory: Quantity | None = None
    training_memory: Quantity | None = None
    inference_flops: Quantity | None = None
    step_flops: Quantity | None = None
    notes: list[str] = msgspec.field(default_factory=list)
    nodes_from: str = ""
    nodes: tuple[Fit, ...] = ()
    together: tuple[Together, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form; bytes and FLOPs as whole numbers."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for name in QUANTITY_NAMES:
            if plain[name] is not None:
                plain[name] |= {key: round(plain[name][key]) for key in ("value", "low", "high")}
        return plain


def exact(value: float, why: str, unit: str = "bytes") -> Quantity:
    return Quantity(value, value, value, unit, Method.exact, why)


def ruled(value: float, why: str, low: float, high: float, unit: str = "bytes") -> Quantity:
    """By a rule; `low` and `high` are factors of the value."""
    return Quantity(value, value * low, value * high, unit, Method.rule, why)


def traced(value: float, why: str, low: float = 1.0, high: float = 1.0, unit: str = "bytes") -> Quantity:
    """Counted; `low` and `high` are factors of the value."""
    return Quantity(value, value * low, value * high, unit, Method.traced, why)


def complexity(parameters: int) -> str:
    """small below 1e6 parameters, medium below 1e8, large below 1e9, xlarge from there."""
    return CLASSES[bisect_right(COMPLEXITY_EDGES, parameters)]


def check(options: Options) -> None:
    """Raises InvalidInput for what cannot be, with the nearest name."""
    for name, value in (("batch", options.batch), ("sequence", options.sequence)):
        if value is not None and not 1 <= value <= LARGEST:
            raise InvalidInput(f"--{name} is {value}.", fix=f"Give a whole number from 1 to {LARGEST}.")
    _known("optimizer", options.optimizer, list(OPTIMIZERS))
    if options.dtype is not None:
        _known("dtype", options.dtype, list(DTYPES))
    if not (options.train or options.infer):
        raise InvalidInput("Neither training nor inference is asked about.", fix="Leave out --train and --infer.")


def _known(what: str, name: str, names: list[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    fix = f"Did you mean '{near[0]}'?" if near else f"Valid are {', '.join(names)}."
    raise InvalidInput(f"There is no {what} {name!r}.", fix=fix)

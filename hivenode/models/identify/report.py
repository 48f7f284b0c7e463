"""What is known of a model file: plain values, and the JSON others build on."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from math import isfinite
from typing import Any

import msgspec

from hivenode.errors import Corrupted

UNKNOWN = "unknown"
FREE = -1
"""A dimension that is chosen when the model is used: batch, length."""


MOST_FINDINGS = 200
"""A hostile file may hold millions; the verdict needs one."""
LONGEST_FINDING = 300
MOST_ELEMENTS = (1 << 63) - 1
LONGEST_NAME = 1024
"""Of a tensor, characters: what is made of names takes time by their length, and a file says one prefix for many."""


def check_name(name: str) -> None:
    """Raises Corrupted for one that is longer than any tensor's."""
    if len(name) > LONGEST_NAME:
        raise Corrupted(
            f"The name of a tensor, {name[:40]}..., is {len(name)} characters long.",
            fix="The file is damaged or made to waste time; fetch it from where it was made.",
        )


class Confidence(StrEnum):
    """How a value is known: `read` stands in the file as such, `inferred` follows from what stands there by a rule that
    has no exceptions we know of, `guessed` is likely and may be wrong."""

    read = "read"
    inferred = "inferred"
    guessed = "guessed"


class Severity(StrEnum):
    """How much a finding says: `danger` makes a file unsafe; `notice` is named, and does not."""

    danger = "danger"
    notice = "notice"


class Evidence(msgspec.Struct, frozen=True):
    """How one field is known, and from what, for a person to check."""

    how: Confidence
    evidence: str


class Finding(msgspec.Struct, frozen=True):
    """A construct outside what is known to be harmless, or one a person should know of.

    Attributes:
        what: the global, layer, operator, path or template, as it stands in the file.
        where: file inside the directory, entry inside the archive and byte offset, as far as known.
        why: what could happen, in one sentence.
        severity: a notice alone leaves the file safe.
    """

    what: str
    where: str
    why: str
    severity: Severity = Severity.danger


class Port(msgspec.Struct, frozen=True):
    """An input or an output. `shape`: axes, -1 where free; None if the file does not say."""

    name: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None


class Tensor(msgspec.Struct, frozen=True):
    """One stored tensor and where its bytes lie.

    Attributes:
        dtype: numpy's name where numpy has one (`float32`, `int64`, ...), else the field's (`bfloat16`, `q4_k`).
        shape: axes, row-major unless `stride` says otherwise.
        file: path relative to what was identified; "" for a single file.
        offset, nbytes: of the raw bytes in that file; None where they are compressed or kept in some other form.
        stride: in elements; None for contiguous rows.
        trainable: False for buffers (running means, position ids); None if unknown.
        shared_with: the tensor whose bytes these are (tied weights); counted once.
        packed: where the bytes lie in a compressed storage: its key, and the offset once it is unpacked.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str = ""
    offset: int | None = None
    nbytes: int | None = None
    stride: tuple[int, ...] | None = None
    trainable: bool | None = None
    shared_with: str | None = None
    packed: tuple[str, int] | None = None


class Trouble(msgspec.Struct, frozen=True):
    """Why a file could not be read to its end: code, sentence, and what to do."""

    code: str
    message: str
    fix: str


class Report(msgspec.Struct, kw_only=True):
    """The answer to "what is this file?". Filled in by one reader; fields a file says nothing of stay None.

    Attributes:
        path: as it was given.
        format: e.g. `safetensors`, `torch_zip`, `gguf`, `onnx`, `keras_h5`.
        framework: `pytorch`, `tensorflow`, `keras`, `transformers`, `diffusers`, `flax`, `scikit-learn`,
            `onnx`, `xgboost`, ...
        family: nlp, computer_vision, tabular, reinforcement_learning, audio, other or unknown.
        task: e.g. `text_classification`, `image_classification`, `object_detection`, `regression`, `q_learning`.
        architecture: cnn, transformer, rnn, gan, diffusion, tree_based, ensemble, linear, neural_network, dqn, ppo, ...
        model: the most specific name (BertForSequenceClassification, resnet18, RandomForestClassifier).
        parameters: learnt numbers, tied ones once, optimizer state and buffers left out.
        trainable_parameters: of those, the ones that are not frozen.
        dtypes: elements by dtype.
        tensors: how many tensors are stored.
        layers: repeated blocks of a transformer, else modules that hold parameters, else declared layers.
        size_bytes: of all files read or pointed at.
        quantization: e.g. `q4_k_m`, `gptq-4bit`, `int8`.
        safe: True: nothing but data and known-harmless constructs; False: a finding is a danger; None: it could not
            be told.
        confidence: by field name, for every field that has a value and was not simply measured (path, size).
        hyperparameters: sizes needed to cost the model (hidden size, heads, vocabulary, ...), as they stand there.
        bytes_read: how much of the files was read to know this.
        listing: each tensor; kept out of the JSON unless asked for.
    """

    path: str = ""
    format: str | None = None
    framework: str | None = None
    family: str = UNKNOWN
    task: str | None = None
    architecture: str | None = None
    model: str | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    dtypes: dict[str, int] = msgspec.field(default_factory=dict)
    tensors: int | None = None
    layers: int | None = None
    inputs: list[Port] = msgspec.field(default_factory=list)
    outputs: list[Port] = msgspec.field(default_factory=list)
    size_bytes: int | None = None
    quantization: str | None = None
    safe: bool | None = None
    findings: list[Finding] = msgspec.field(default_factory=list)
    confidence: dict[str, Evidence] = msgspec.field(default_factory=dict)
    error: Trouble | None = None
    hyperparameters: dict[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    bytes_read: int | None = None
    listing: list[Tensor] = msgspec.field(default_factory=list)

    def know(self, how: Confidence, evidence: str, **fields: Any) -> None:
        """Set fields and say how they are known: `report.know(Confidence.read, "config.json: model", model="bert")`.

        A field that is None or empty is left as it was.
        """
        for name, value in fields.items():
            if value is None or value == []:
                continue
            setattr(self, name, value)
            self.confidence[name] = Evidence(how, evidence)

    def hold(self, tensors: Iterable[Tensor], evidence: str) -> None:
        """Take a listing and what follows: `tensors`, `dtypes`, `parameters` (everything but buffers, once).

        Raises:
            Corrupted: there are more numbers than 63 bits count, as where one stands for many, or names without end.
        """
        self.listing = list(tensors)
        for tensor in self.listing:
            check_name(tensor.name)
        total = sum(count(tensor.shape) for tensor in self.listing)
        if total > MOST_ELEMENTS:
            raise Corrupted(
                "The file claims more numbers than there are anywhere.",
                fix="It is damaged or made to mislead; fetch it from where it was made.",
            )
        own = [tensor for tensor in self.listing if tensor.shared_with is None]
        self.dtypes = {}
        for tensor in own:
            self.dtypes[tensor.dtype] = self.dtypes.get(tensor.dtype, 0) + count(tensor.shape)
        self.know(
            Confidence.read,
            evidence,
            tensors=len(self.listing),
            parameters=sum(count(tensor.shape) for tensor in own if tensor.trainable is not False),
        )

    def find(self, what: str, where: str, why: str, *, severity: Severity = Severity.danger) -> None:
        """Name a construct that is not known to be harmless; the verdict is then unsafe, unless it is a notice."""
        if severity is Severity.danger:
            self.safe = False
        if len(self.findings) < MOST_FINDINGS or (severity is Severity.danger and not self.dangerous):
            self.findings.append(Finding(what[:LONGEST_FINDING], where, why, severity))

    def adopt(self, inner: Report, place: str, between: str = ": ") -> None:
        """Take over what was found in a part of this: a file of the directory, an entry of the archive."""
        for finding in inner.findings:
            where = f"{place}{between}{finding.where}" if finding.where else place
            self.find(finding.what, where, finding.why, severity=finding.severity)

    @property
    def dangerous(self) -> bool:
        """Whether a finding makes the file unsafe."""
        return any(finding.severity is Severity.danger for finding in self.findings)

    def settle(self) -> None:
        """Make it what JSON can carry: files hold numbers that are none, endless integers, and halves of letters."""
        odd = {name: str(value) for name, value in self.hyperparameters.items() if not _finite(value)}
        self.hyperparameters |= odd
        try:
            msgspec.msgpack.encode(self)
        except (UnicodeEncodeError, OverflowError):
            plain = msgspec.convert(_plain(msgspec.to_builtins(self)), Report)
            for name in self.__struct_fields__:
                setattr(self, name, getattr(plain, name))

    def to_dict(self, *, listing: bool = False) -> dict[str, Any]:
        """The stable JSON form."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        if not listing:
            del plain["listing"]
        return plain


def _finite(value: object) -> bool:
    return not isinstance(value, float) or isfinite(value)


def _plain(value: Any) -> Any:
    """The same with letters and integers that can be written: lone surrogates as escapes, integers within 64 bits."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return max(-MOST_ELEMENTS, min(value, MOST_ELEMENTS)) if type(value) is int else value


def count(shape: tuple[int, ...]) -> int:
    """Elements of a shape."""
    total = 1
    for size in shape:
        total *= size
    return total

"""Small models of our own, by name: each a function from its arguments and the data's shape to a list of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.layers import Layer, Param, arguments, line, nearest
from hivenode.spec.data import Task
from hivenode.spec.section import Scalar
from hivenode.spec.shapes import spelled

Declared = dict[str, Scalar]
Arguments = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """`build` may raise ValueError with a clause on what the model needs instead, and a way out."""

    params: Mapping[str, Param]
    build: Callable[[Arguments, DataInfo], list[Declared]]
    tasks: Sequence[Task] = ("classification", "regression")


def declare(name: str, params: Mapping[str, Scalar], info: DataInfo) -> tuple[Layer, ...]:
    """Layers of a model for data of this kind, input first.

    Raises:
        InvalidInput: no such model, parameter or value, or the model cannot take that data.
    """
    source = f"zoo:{name}"
    entry = ZOO.get(name)
    if entry is None:
        raise InvalidInput(f"There is no model {source}.", fix=nearest(name, list(ZOO), "zoo:"))
    values = arguments(source, entry.params, params)
    if info.task not in entry.tasks:
        raise InvalidInput(
            f"{source} is for {' or '.join(entry.tasks)}, and {info.source} is for {info.task}.",
            fix=f"Choose another model, or set data.task = {entry.tasks[0]!r} if the data allow it.",
        )
    try:
        layers = entry.build({key: int(value) for key, value in values.items()}, info)
    except ValueError as error:
        raise InvalidInput(
            f"{source} needs {error}; a sample of {info.source} is {spelled(info.input_shape)} numbers.",
            fix="Use zoo:mlp or zoo:logistic for such data, or other params.",
        ) from None
    return line(layers, info.input_shape, info.outputs)


def _dense(name: str, outputs: int, activation: str = "relu") -> Declared:
    return {"type": "dense", "name": name, "outputs": outputs, "activation": activation}


_OUTPUT: Declared = {"type": "dense", "name": "output"}


def _plain(info: DataInfo) -> list[Declared]:
    """Tokens are embedded and averaged; anything else is taken as it is."""
    if not info.vocabulary:
        return []
    return [
        {"type": "embedding", "name": "embedding", "vocabulary": info.vocabulary, "width": 32, "positions": False},
        {"type": "average", "name": "average"},
    ]


def _logistic(params: Arguments, info: DataInfo) -> list[Declared]:
    return [*_plain(info), _OUTPUT]


def _mlp(params: Arguments, info: DataInfo) -> list[Declared]:
    hidden = [_dense(f"hidden{number}", params["hidden"]) for number in range(1, params["depth"] + 1)]
    return [*_plain(info), *hidden, _OUTPUT]


def _image(info: DataInfo, least: int) -> None:
    if len(info.input_shape) != 3 or info.vocabulary or min(info.input_shape[1:]) < least:
        raise ValueError(f"images of at least {least}x{least}")


def _cnn(params: Arguments, info: DataInfo) -> list[Declared]:
    _image(info, 2 ** params["blocks"])
    layers: list[Declared] = []
    for number in range(1, params["blocks"] + 1):
        outputs = params["channels"] * 2 ** (number - 1)
        layers.append({"type": "conv", "name": f"conv{number}", "outputs": outputs})
        layers.append({"type": "pool", "name": f"pool{number}"})
    return [*layers, _dense("hidden", params["hidden"]), _OUTPUT]


def _resnet18(params: Arguments, info: DataInfo) -> list[Declared]:
    """arXiv 1512.03385, table 1, 18 layers, with the 3x3 stem for small images (section 4.2)."""
    _image(info, 4)
    width = params["width"]
    layers: list[Declared] = [
        {"type": "conv", "name": "stem", "outputs": width, "activation": "none"},
        {"type": "batch_norm", "name": "stem_norm"},
        {"type": "activation", "name": "stem_relu"},
    ]
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            name = f"stage{stage + 1}_{block + 1}"
            layers.append({"type": "residual", "name": name, "outputs": width * 2**stage, "stride": stride})
    return [*layers, {"type": "average", "name": "average"}, _OUTPUT]


def _lstm(params: Arguments, info: DataInfo) -> list[Declared]:
    first: Declared = {"type": "steps", "name": "steps"}
    if info.vocabulary:
        first = {"type": "embedding", "name": "embedding", "vocabulary": info.vocabulary, "width": params["width"],
                 "positions": False}  # fmt: skip
    recurrent: Declared = {"type": "lstm", "name": "lstm", "width": params["width"], "layers": params["layers"]}
    last: list[Declared] = [] if info.task == "language" else [{"type": "last", "name": "last"}]
    return [first, recurrent, *last, _OUTPUT]


def _transformer(number: int, params: Arguments, causal: bool) -> Declared:
    return {"type": "transformer", "name": f"block{number}", "heads": params["heads"], "causal": causal}


def _gpt(params: Arguments, info: DataInfo) -> list[Declared]:
    """A decoder with learned positions and pre-normalised blocks, as GPT-2; the output matrix is its own."""
    return [
        {"type": "embedding", "name": "embedding", "vocabulary": info.vocabulary, "width": params["width"]},
        *(_transformer(number, params, causal=True) for number in range(1, params["layers"] + 1)),
        {"type": "layer_norm", "name": "norm"},
        _OUTPUT,
    ]


def _vit(params: Arguments, info: DataInfo) -> list[Declared]:
    """arXiv 2010.11929 with the mean over patches in place of a class token."""
    _image(info, params["patch"])
    return [
        {"type": "patches", "name": "patches", "size": params["patch"], "width": params["width"]},
        *(_transformer(number, params, causal=False) for number in range(1, params["layers"] + 1)),
        {"type": "layer_norm", "name": "norm"},
        {"type": "average", "name": "average"},
        _OUTPUT,
    ]


def _autoencoder(params: Arguments, info: DataInfo) -> list[Declared]:
    if info.vocabulary:
        raise ValueError("numbers, not text")
    return [
        _dense("encode", params["hidden"]),
        _dense("code", params["code"], "none"),
        _dense("decode", params["hidden"]),
        _OUTPUT,
    ]


_HEADS = Param(4, 1, 256)
_WIDTH = Param(64, 1, 16_384)

ZOO: Mapping[str, Entry] = {
    "logistic": Entry({}, _logistic),
    "mlp": Entry({"hidden": Param(64), "depth": Param(1, 1, 64)}, _mlp),
    "cnn": Entry({"channels": Param(16, 1, 1024), "hidden": Param(64), "blocks": Param(2, 1, 4)}, _cnn),
    "resnet18": Entry({"width": Param(64, 1, 1024)}, _resnet18),
    "lstm": Entry({"width": _WIDTH, "layers": Param(1, 1, 16)}, _lstm, ("classification", "regression", "language")),
    "gpt": Entry({"width": _WIDTH, "layers": Param(4, 1, 256), "heads": _HEADS}, _gpt, ("language",)),
    "vit": Entry({"width": _WIDTH, "layers": Param(4, 1, 256), "heads": _HEADS, "patch": Param(4, 1, 256)}, _vit),
    "autoencoder": Entry({"hidden": Param(64), "code": Param(8)}, _autoencoder, ("reconstruction",)),
}

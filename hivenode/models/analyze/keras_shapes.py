"""Keras models by the shapes of their layers, from the configuration alone (Keras 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

from hivenode.models.analyze.costs import Costs
from hivenode.models.analyze.quantities import Quantity
from hivenode.models.analyze.tape import Step, Tape, convolved, product
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.naming.keras_layers import shape_of
from hivenode.models.identify.report import FREE

Shape = tuple[int, ...]
_PICTURE = 224
_SAME = frozenset((
    "Activation", "Softmax", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout",
    "GaussianNoise", "GaussianDropout", "Identity",
    "BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "ReLU", "LeakyReLU",
    "PReLU", "ELU", "Rescaling", "Normalization", "Masking", "ActivityRegularization", "UnitNormalization",
))  # fmt: skip
_MERGES = frozenset((
    "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum",
))  # fmt: skip
_VIEWS = frozenset((
    "Flatten", "Reshape", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Identity",
))  # fmt: skip
_CONVOLUTIONS = {"Conv1D": 1, "Conv2D": 2, "Conv3D": 3, "DepthwiseConv2D": 2, "SeparableConv2D": 2,
                 "SeparableConv1D": 1, "DepthwiseConv1D": 1, "Conv1DTranspose": 1, "Conv2DTranspose": 2,
                 "Conv3DTranspose": 3}  # fmt: skip
_GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


def tape_of(config: Json, batch: int, sequence: int) -> Tape | None:
    """None where the configuration is no sequence or graph of known layers."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(layers, list):
        return None
    walk = _Walk(batch, sequence)
    before = ""
    built = shape_of(inner.get("build_input_shape"))
    for place, layer in enumerate(layers):
        if not isinstance(layer, dict) or not isinstance(layer.get("config"), dict):
            return None
        kind, settings = layer.get("class_name"), layer["config"]
        name = settings.get("name") or layer.get("name") or f"layer {place}"
        if not isinstance(kind, str) or not isinstance(name, str):
            return None
        if kind == "InputLayer" or (place == 0 and before == ""):
            given = shape_of(settings.get("batch_shape") or settings.get("batch_input_shape")) or built
            if given:
                before = f"{name} input" if kind != "InputLayer" else name
                walk.take(before, given)
            if kind == "InputLayer":
                continue
        takes = inbound(layer.get("inbound_nodes")) or (before,)
        walk.layer(name, kind, settings, takes)
        before = name
    what = f"{len(walk.steps)} layers of the configuration"
    return Tape(walk.steps, walk.inputs, what, walk.unknown, tuple(walk.assumed))


def packed(costs: Costs, largest_bytes: float) -> Costs:
    """TensorFlow keeps the weights of a product a second time at inference, packed for oneDNN; the largest count."""
    if costs.passing is None:
        return costs
    known = costs.passing
    return replace(costs, passing=Quantity(known.value + largest_bytes, known.low, known.high + 2 * largest_bytes,
                   known.unit, known.method, f"{known.why}, and the largest weight packed for products"))  # fmt: skip


def inbound(nodes: Json) -> tuple[str, ...]:
    """Names of the layers before, in Keras 3's form (keras_history in the arguments) or 2's (nested lists)."""
    found: list[str] = []
    stack: list[Json] = [nodes[0]] if isinstance(nodes, list) and nodes else []
    while stack and len(found) < 64:
        value = stack.pop()
        if isinstance(value, dict):
            history = value.get("keras_history")
            if isinstance(history, list) and history and isinstance(history[0], str):
                found.append(history[0])
            else:
                stack.extend(reversed(list(value.values())))
        elif isinstance(value, list):
            if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
                found.append(value[0])
            else:
                stack.extend(reversed(value))
    return tuple(found)


class _Walk:
    def __init__(self, batch: int, sequence: int) -> None:
        self.batch, self.sequence = batch, sequence
        self.shapes: dict[str, Shape] = {}
        self.steps: list[Step] = []
        self.inputs: list[tuple[str, int]] = []
        self.assumed: list[str] = []
        self.unknown = 0

    def take(self, name: str, shape: Shape) -> None:
        """An input; free axes but the first are lengths."""
        filled = [self.batch]
        for axis, size in enumerate(shape[1:], 1):
            filled.append(size if size >= 0 else _PICTURE if len(shape) == 4 else self.sequence)
            if size < 0:
                self.assumed.append(f"axis {axis} is {filled[-1]}")
        self.shapes[name] = tuple(filled)
        self.inputs.append((name, product(filled)))

    def layer(self, name: str, kind: str, settings: Mapping[str, Json], takes: tuple[str, ...]) -> None:
        shapes = [self.shapes[one] for one in takes if one in self.shapes]
        found = given(kind, settings, shapes) if shapes and len(shapes) == len(takes) else None
        if found is None:
            self.unknown += 1
            return
        shape, flops, passing = found
        self.shapes[name] = shape
        if passing and settings.get("activation") not in (None, "linear"):
            self.steps.append(
                Step(takes, f"{name} before its activation", product(shape), flops, free=True, copied="Conv" in kind)
            )
            self.steps.append(Step((f"{name} before its activation",), name, product(shape)))
        else:
            self.steps.append(Step(takes, name, product(shape), flops, kind in _VIEWS, copied="Conv" in kind))


def given(kind: str, settings: Mapping[str, Json], shapes: Sequence[Shape]) -> tuple[Shape, float, bool] | None:
    """Shape, FLOPs, and whether an activation follows in the same layer; None where that is not known."""
    first = shapes[0]
    if kind in _SAME:
        return first, 0.0, False
    if kind in _MERGES:
        return max(shapes, key=product), 0.0, False
    if kind == "Concatenate":
        axis = settings.get("axis", -1)
        if not isinstance(axis, int) or not -len(first) <= axis < len(first):
            return None
        joined = list(first)
        if any(len(shape) != len(first) for shape in shapes):
            return None
        joined[axis] = sum(shape[axis] for shape in shapes)
        return tuple(joined), 0.0, False
    if kind in _CONVOLUTIONS:
        return _convolution(kind, settings, first)
    if kind in ("Bidirectional", "TimeDistributed"):
        return _wrapped(kind, settings, first)
    units = settings.get("units")
    if kind == "Dense" and isinstance(units, int):
        return (*first[:-1], units), 2.0 * product(first) * units, True
    if kind in _GATES and isinstance(units, int) and len(first) == 3:
        flops = 2.0 * first[0] * first[1] * _GATES[kind] * units * (first[2] + units)
        whole = settings.get("return_sequences") is True
        return ((*first[:2], units) if whole else (first[0], units)), flops, False
    if kind == "Embedding" and isinstance(width := settings.get("output_dim"), int):
        return (*first, width), 0.0, False
    if kind == "Flatten":
        return (first[0], product(first[1:])), 0.0, False
    if kind == "Reshape":
        return _reshaped(settings, first)
    if kind == "Permute":
        order = shape_of(settings.get("dims"))
        fits = order is not None and sorted(order) == list(range(1, len(first)))
        return ((first[0], *(first[axis] for axis in order)), 0.0, False) if fits and order else None
    if kind == "RepeatVector" and isinstance(times := settings.get("n"), int) and len(first) == 2:
        return (first[0], times, first[1]), 0.0, False
    if kind == "MultiHeadAttention":
        return _attention(settings, shapes)
    if kind.startswith("Global"):
        return _global(settings, first)
    if "Pooling" in kind:
        return _pooling(settings, first)
    if kind.startswith(("UpSampling", "ZeroPadding", "Cropping")):
        return _grown(kind, settings, first)
    return None


def _reshaped(settings: Mapping[str, Json], first: Shape) -> tuple[Shape, float, bool] | None:
    wanted, elements = shape_of(settings.get("target_shape")), product(first[1:])
    if not wanted:
        return None
    if wanted.count(FREE) == 1 and (rest := -product(wanted)) > 0:
        wanted = tuple(elements // rest if size == FREE else size for size in wanted)
    return ((first[0], *wanted), 0.0, False) if product(wanted) == elements else None


def _global(settings: Mapping[str, Json], first: Shape) -> tuple[Shape, float, bool] | None:
    if len(first) < 3:
        return None
    leading = settings.get("data_format") == "channels_first"
    channels, ones = first[1] if leading else first[-1], (1,) * (len(first) - 2)
    if settings.get("keepdims") is not True:
        return (first[0], channels), 0.0, False
    return ((first[0], channels, *ones) if leading else (first[0], *ones, channels)), 0.0, False


def _attention(settings: Mapping[str, Json], shapes: Sequence[Shape]) -> tuple[Shape, float, bool] | None:
    """Projections, each head's scores and sums, and the projection of what comes out."""
    heads, key = settings.get("num_heads"), settings.get("key_dim")
    if not isinstance(heads, int) or not isinstance(key, int) or any(len(shape) != 3 for shape in shapes):
        return None
    value = settings.get("value_dim")
    value = value if isinstance(value, int) else key
    query, given = shapes[0], shapes[min(1, len(shapes) - 1)]
    batch, asked, width = query
    known = given[1]
    flops = 2.0 * batch * heads * (asked * width * (key + value) + known * given[2] * (key + value))
    flops += 2.0 * batch * heads * asked * known * (key + value)
    return query, flops, False


def _wrapped(kind: str, settings: Mapping[str, Json], first: Shape) -> tuple[Shape, float, bool] | None:
    """A layer run in both directions, or once for each step."""
    inner = settings.get("layer")
    if not isinstance(inner, dict) or not isinstance(inner.get("config"), dict) or len(first) < 3:
        return None
    name = inner.get("class_name")
    if not isinstance(name, str) or name in ("Bidirectional", "TimeDistributed"):
        return None
    if kind == "TimeDistributed":
        found = given(name, inner["config"], [(first[0] * first[1], *first[2:])])
        return None if found is None else ((*first[:2], *found[0][1:]), found[1], found[2])
    found = given(name, inner["config"], [first])
    if found is None:
        return None
    shape, flops, passing = found
    joined = 2 if settings.get("merge_mode", "concat") == "concat" else 1
    return (*shape[:-1], joined * shape[-1]), 2 * flops, passing


def _numbers(value: Json, axes: int, default: int) -> list[int] | None:
    """A number for each axis."""
    if value is None:
        return [default] * axes
    if isinstance(value, int) and not isinstance(value, bool):
        return [value] * axes
    shape = shape_of(value)
    return list(shape) if shape is not None and len(shape) == axes and min(shape) > 0 else None


def _spatial(settings: Mapping[str, Json], first: Shape, kernel: Json, strides: Json) -> list[int] | None:
    axes = len(first) - 2
    sizes = first[2:] if settings.get("data_format") == "channels_first" else first[1:-1]
    window, steps = _numbers(kernel, axes, 1), _numbers(strides, axes, 1)
    dilations = _numbers(settings.get("dilation_rate"), axes, 1)
    if window is None or steps is None or dilations is None or min(steps) < 1:
        return None
    if settings.get("padding") in ("same", "causal"):
        return [ceil(size / step) for size, step in zip(sizes, steps, strict=True)]
    return [convolved(sizes[i], window[i], steps[i], 0, 0, dilations[i]) for i in range(axes)]


def _convolution(kind: str, settings: Mapping[str, Json], first: Shape) -> tuple[Shape, float, bool] | None:
    axes = _CONVOLUTIONS[kind]
    window = _numbers(settings.get("kernel_size"), axes, 1)
    if len(first) != axes + 2 or window is None:
        return None
    spatial = _spatial(settings, first, settings.get("kernel_size"), settings.get("strides"))
    leading = settings.get("data_format") == "channels_first"
    channels = first[1] if leading else first[-1]
    filters, multiplier = settings.get("filters"), settings.get("depth_multiplier", 1)
    groups = settings.get("groups", 1)
    if spatial is None or not isinstance(multiplier, int) or not isinstance(groups, int) or groups < 1:
        return None
    places = first[0] * product(spatial)
    if kind.endswith("Transpose"):
        return _transposed(settings, first)
    if "Conv" in kind and not kind.startswith(("Depthwise", "Separable")):
        if not isinstance(filters, int):
            return None
        flops = 2.0 * places * filters * channels / groups * product(window)
    else:
        flops = 2.0 * places * channels * multiplier * product(window)
        if kind.startswith("Separable"):
            if not isinstance(filters, int):
                return None
            flops += 2.0 * places * channels * multiplier * filters
    out = filters if isinstance(filters, int) else channels * multiplier
    return ((first[0], out, *spatial) if leading else (first[0], *spatial, out)), flops, True


def _transposed(settings: Mapping[str, Json], first: Shape) -> tuple[Shape, float, bool] | None:
    axes, filters = len(first) - 2, settings.get("filters")
    window, steps = _numbers(settings.get("kernel_size"), axes, 1), _numbers(settings.get("strides"), axes, 1)
    if not isinstance(filters, int) or window is None or steps is None or settings.get("output_padding") is not None:
        return None
    if settings.get("data_format") == "channels_first" or settings.get("dilation_rate") not in (None, 1, [1] * axes):
        return None
    same = settings.get("padding") == "same"
    sizes = [s * n if same else s * n + max(k - n, 0) for s, k, n in zip(first[1:-1], window, steps, strict=True)]
    return (first[0], *sizes, filters), 2.0 * product(first) * filters * product(window), True


def _pooling(settings: Mapping[str, Json], first: Shape) -> tuple[Shape, float, bool] | None:
    window = settings.get("pool_size", 2)
    spatial = _spatial(settings, first, window, settings.get("strides") or window)
    if spatial is None:
        return None
    leading = settings.get("data_format") == "channels_first"
    return ((*first[:2], *spatial) if leading else (first[0], *spatial, first[-1])), 0.0, False


def _grown(kind: str, settings: Mapping[str, Json], first: Shape) -> tuple[Shape, float, bool] | None:
    axes = len(first) - 2
    if settings.get("data_format") == "channels_first" or axes < 1:
        return None
    sizes = first[1:-1]
    if kind.startswith("UpSampling"):
        factors = _numbers(settings.get("size"), axes, 2)
        if factors is None:
            return None
        return (first[0], *(s * f for s, f in zip(sizes, factors, strict=True)), first[-1]), 0.0, False
    cut = kind.startswith("Cropping")
    padding = settings.get("cropping" if cut else "padding")
    pairs = [padding] if axes == 1 and isinstance(padding, list) else padding
    pairs = pairs if isinstance(pairs, list) else [pairs] * axes
    grown = []
    for size, pair in zip(sizes, pairs, strict=False):
        both = shape_of(pair) if isinstance(pair, list) else (pair, pair) if isinstance(pair, int) else None
        if both is None or len(both) != 2:
            return None
        grown.append(size - both[0] - both[1] if cut else size + both[0] + both[1])
    sound = len(grown) == axes and min(grown) > 0
    return ((first[0], *grown, first[-1]), 0.0, False) if sound else None

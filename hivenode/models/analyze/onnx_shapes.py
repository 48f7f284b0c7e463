"""ONNX graphs by shape inference: what each operator gives, from the shapes of what it takes.

Only the graph's header walk and its small integer constants are read. Operators: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import ceil

from hivenode.models.analyze.tape import Step, Tape, convolved, product
from hivenode.models.identify.formats.onnx import Constant, Model, Node, parse
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.report import Report
from hivenode.models.identify.source import Source

Shape = tuple[int, ...]
MOST_VALUES = 64
"""Of a constant that is read: shapes, axes, pads."""
_PICTURE = 224
_SAME = frozenset((
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softmax",
    "LogSoftmax", "Softplus", "Gelu", "Clip", "Erf", "Sqrt", "Exp", "Log", "Abs", "Neg", "Reciprocal", "Floor",
    "Ceil", "Round", "Sign", "Not", "Dropout", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
    "GroupNormalization", "RMSNormalization", "LRN", "Identity", "Cast", "CumSum", "QuantizeLinear",
    "DequantizeLinear", "Mish", "Swish", "Celu", "ThresholdedRelu", "Sin", "Cos", "LpNormalization",
    "MeanVarianceNormalization", "ScatterND", "ScatterElements", "Trilu", "SkipLayerNormalization",
))  # fmt: skip
_BROADCAST = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "Where", "Equal", "Greater", "Less",
    "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Mod",
))  # fmt: skip
_REDUCE = frozenset((
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceProd", "ReduceSumSquare",
))  # fmt: skip
_VIEWS = frozenset((
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout",
))  # fmt: skip
_WEIGHTED = frozenset((
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "ConvInteger", "MatMulInteger", "QLinearConv",
))  # fmt: skip


def tape_of(report: Report, source: Source, batch: int, sequence: int) -> Tape:
    """The graph of an ONNX file, free axes of its inputs taken as the batch, then as lengths.

    Raises:
        Corrupted, Exhausted: see `formats.onnx`.
    """
    model = parse(Window(source.part(0, source.size), source.size, source.name))
    return _Walk(model, source, report, batch, sequence).tape()


class _Walk:
    def __init__(self, model: Model, source: Source, report: Report, batch: int, sequence: int) -> None:
        self.source = source
        self.graph = model.graph
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, list[int]] = {}
        self.assumed: list[str] = []
        self.inputs: list[tuple[str, int]] = []
        for constant in model.graph.initializers:
            self._hold(constant.name, constant)
        for port in model.graph.inputs:
            if port.name in self.shapes or port.shape is None:
                continue
            self.shapes[port.name] = self._filled(port.shape, report, batch, sequence)
            self.inputs.append((port.name, product(self.shapes[port.name])))

    def _filled(self, shape: Shape, report: Report, batch: int, sequence: int) -> Shape:
        """Free axes: the first is the batch; of a picture 224, else the sequence."""
        picture = report.family == "computer_vision" and len(shape) == 4
        filled = []
        for axis, size in enumerate(shape):
            if axis == 0 and len(shape) > 1:
                filled.append(batch)
            elif size >= 0:
                filled.append(size)
            else:
                filled.append(_PICTURE if picture else sequence)
                said = f"axis {axis} is {filled[-1]}"
                if said not in self.assumed:
                    self.assumed.append(said)
        return tuple(filled)

    def _hold(self, name: str, constant: Constant) -> None:
        self.shapes[name] = constant.shape
        if constant.dtype in ("int64", "int32") and constant.elements <= MOST_VALUES and constant.offset is not None:
            code = "q" if constant.dtype == "int64" else "i"
            raw = self.source.read(constant.offset, constant.elements * (8 if code == "q" else 4))
            self.values[name] = list(struct.unpack(f"<{constant.elements}{code}", raw))

    def tape(self) -> Tape:
        steps: list[Step] = []
        unknown = 0
        constants = set(self.shapes) - {name for name, _ in self.inputs}
        for node in self.graph.nodes:
            if node.op == "Constant":
                if node.constants and node.outputs:
                    self._hold(node.outputs[0], node.constants[0])
                    constants.add(node.outputs[0])
                elif "value_ints" in node.lists and node.outputs:
                    self._give(node, (len(node.lists["value_ints"]),), node.lists["value_ints"])
                continue
            if not node.outputs:
                continue
            self._fold(node)
            given = self._shape(node)
            if given is None or any(size < 0 for size in given):
                unknown += node.op in _WEIGHTED
                continue
            self.shapes[node.outputs[0]] = given
            takes = tuple(name for name in node.inputs if name and name not in constants)
            if not takes:
                constants.add(node.outputs[0])
            elif node.outputs[0] not in self.values:
                steps.append(
                    Step(
                        takes,
                        node.outputs[0],
                        product(given),
                        self._flops(node, given),
                        node.op in _VIEWS,
                        copied="Conv" in node.op,
                    )
                )
        what = f"{len(steps)} operators of the graph"
        return Tape(steps, self.inputs, what, unknown, tuple(self.assumed))

    def _give(self, node: Node, shape: Shape, values: list[int]) -> None:
        self.shapes[node.outputs[0]] = shape
        self.values[node.outputs[0]] = values

    # --- integers that shapes are made of ------------------------------------------------------------------------

    def _fold(self, node: Node) -> None:
        """Keep the values of what computes shapes: exporters write reshapes as Shape, Gather, Concat, Reshape."""
        if node.op == "Shape" and node.inputs[:1] and node.inputs[0] in self.shapes:
            shape = list(self.shapes[node.inputs[0]])
            shape = shape[node.numbers.get("start", 0) : node.numbers.get("end", len(shape))]
            self._give(node, (len(shape),), shape)
            return
        known = [self.values.get(name) for name in node.inputs if name]
        if not known or any(value is None for value in known):
            return
        held = [value for value in known if value is not None]
        found: list[int] | None = None
        match node.op:
            case "Gather" if len(held) == 2 and all(-len(held[0]) <= i < len(held[0]) for i in held[1]):
                found = [held[0][index] for index in held[1]]
            case "Concat":
                found = [value for part in held for value in part]
            case "Unsqueeze" | "Squeeze" | "Cast" | "Identity" | "Reshape":
                found = held[0]
            case "Mul" | "Add" | "Sub" | "Div" | "Mod" if len(held) == 2:
                found = _arithmetic(node.op, held[0], held[1])
            case "Slice" if len(held) >= 3:
                step = held[4][0] if len(held) > 4 and held[4] else 1
                found = held[0][held[1][0] : held[2][0] : step or 1]
        if found is not None and len(found) <= MOST_VALUES:
            scalar = node.op == "Gather" and self.shapes.get(node.inputs[1]) == ()
            self._give(node, () if scalar else (len(found),), found)

    # --- shapes -------------------------------------------------------------------------------------------------

    def _shape(self, node: Node) -> Shape | None:
        if node.outputs[0] in self.values:
            return self.shapes[node.outputs[0]]
        taken = [self.shapes.get(name) for name in node.inputs]
        first = taken[0] if taken else None
        if first is None:
            return None
        if node.op in _SAME:
            return first
        if node.op in _BROADCAST:
            return _broadcast([shape for shape in taken if shape is not None])
        if node.op in _REDUCE:
            return self._reduced(node, first)
        handler = _HANDLERS.get(node.op)
        return handler(self, node, first) if handler is not None else None

    def _numbers(self, node: Node, place: int, attribute: str) -> list[int] | None:
        """Integers that newer operators take as an input and older ones as an attribute."""
        if len(node.inputs) > place and node.inputs[place]:
            return self.values.get(node.inputs[place])
        return node.lists.get(attribute)

    def _conv(self, node: Node, first: Shape) -> Shape | None:
        weight = self.shapes.get(node.inputs[3 if node.op == "QLinearConv" else 1]) if len(node.inputs) > 1 else None
        if weight is None or len(weight) != len(first) or len(first) < 3:
            return None
        return (first[0], weight[0], *self._windows(node, first[2:], weight[2:]))

    def _windows(self, node: Node, sizes: Shape, kernel: Shape) -> Shape:
        axes = len(sizes)
        strides = node.lists.get("strides", [1] * axes)
        dilations = node.lists.get("dilations", [1] * axes)
        pads = node.lists.get("pads", [0] * 2 * axes)
        if node.texts.get("auto_pad", "NOTSET").startswith("SAME"):
            return tuple(ceil(size / max(1, stride)) for size, stride in zip(sizes, strides, strict=False))
        if len(strides) < axes or len(dilations) < axes or len(pads) < 2 * axes:
            return (-1,) * axes
        extra = [0] * axes
        if node.numbers.get("ceil_mode"):
            extra = [stride - 1 for stride in strides]
        return tuple(
            convolved(sizes[i], kernel[i], strides[i], pads[i], pads[i + axes] + extra[i], dilations[i])
            for i in range(axes)
        )

    def _transposed(self, node: Node, first: Shape) -> Shape | None:
        weight = self.shapes.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None or len(weight) != len(first):
            return None
        axes = len(first) - 2
        strides = node.lists.get("strides", [1] * axes)
        pads = node.lists.get("pads", [0] * 2 * axes)
        more = node.lists.get("output_padding", [0] * axes)
        if len(strides) < axes or len(pads) < 2 * axes or len(more) < axes:
            return None
        spatial = tuple(
            max(0, (first[2 + i] - 1) * strides[i] - pads[i] - pads[i + axes] + weight[2 + i] + more[i])
            for i in range(axes)
        )
        return (first[0], weight[1] * node.numbers.get("group", 1), *spatial)

    def _pool(self, node: Node, first: Shape) -> Shape | None:
        kernel = node.lists.get("kernel_shape")
        if not kernel or len(kernel) != len(first) - 2:
            return None
        return (*first[:2], *self._windows(node, first[2:], tuple(kernel)))

    def _global_pool(self, node: Node, first: Shape) -> Shape | None:
        return (*first[:2], *(1 for _ in first[2:]))

    def _gemm(self, node: Node, first: Shape) -> Shape | None:
        weight = self.shapes.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None or len(weight) != 2 or len(first) != 2:
            return None
        return (first[1] if node.numbers.get("transA") else first[0], weight[0 if node.numbers.get("transB") else 1])

    def _matmul(self, node: Node, first: Shape) -> Shape | None:
        second = self.shapes.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if second is None or len(second) < 2 or len(first) < 2:
            return None
        around = _broadcast([first[:-2], second[:-2]])
        return None if around is None else (*around, first[-2], second[-1])

    def _flat(self, node: Node, first: Shape) -> Shape | None:
        axis = node.numbers.get("axis", 1)
        return (product(first[:axis]), product(first[axis:]))

    def _reshaped(self, node: Node, first: Shape) -> Shape | None:
        wanted = self._numbers(node, 1, "shape")
        if wanted is None:
            return None
        shape = [first[i] if size == 0 and i < len(first) else size for i, size in enumerate(wanted)]
        if shape.count(-1) == 1:
            rest = product([size for size in shape if size != -1])
            shape[shape.index(-1)] = product(first) // rest if rest else 0
        if product(shape) != product(first) and wanted and wanted[0] > 0 and first:
            shape[0] = shape[0] * product(first) // max(1, product(shape))  # exported for one sample, used for more
        return tuple(shape)

    def _transpose(self, node: Node, first: Shape) -> Shape | None:
        order = node.lists.get("perm", list(range(len(first)))[::-1])
        if sorted(order) != list(range(len(first))):
            return None
        return tuple(first[axis] for axis in order)

    def _concat(self, node: Node, first: Shape) -> Shape | None:
        shapes = [self.shapes.get(name) for name in node.inputs]
        axis = node.numbers.get("axis", 0)
        if any(shape is None or len(shape) != len(first) for shape in shapes) or not -len(first) <= axis < len(first):
            return None
        joined = list(first)
        joined[axis] = sum(shape[axis] for shape in shapes if shape is not None)
        return tuple(joined)

    def _unsqueezed(self, node: Node, first: Shape) -> Shape | None:
        axes = self._numbers(node, 1, "axes")
        if axes is None:
            return None
        shape = list(first)
        for axis in sorted(a + len(first) + len(axes) if a < 0 else a for a in axes):
            shape.insert(axis, 1)
        return tuple(shape)

    def _squeezed(self, node: Node, first: Shape) -> Shape | None:
        axes = self._numbers(node, 1, "axes")
        gone = {a % max(1, len(first)) for a in axes} if axes else {i for i, size in enumerate(first) if size == 1}
        return tuple(size for i, size in enumerate(first) if i not in gone)

    def _gathered(self, node: Node, first: Shape) -> Shape | None:
        index = self.shapes.get(node.inputs[1]) if len(node.inputs) > 1 else None
        axis = node.numbers.get("axis", 0)
        if index is None or not first:
            return None
        axis %= len(first)
        return (*first[:axis], *index, *first[axis + 1 :])

    def _reduced(self, node: Node, first: Shape) -> Shape | None:
        axes = self._numbers(node, 1, "axes")
        gone = {axis % max(1, len(first)) for axis in axes} if axes else set(range(len(first)))
        if node.numbers.get("keepdims", 1):
            return tuple(1 if i in gone else size for i, size in enumerate(first))
        return tuple(size for i, size in enumerate(first) if i not in gone)

    def _resized(self, node: Node, first: Shape) -> Shape | None:
        sizes = self.values.get(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
        return tuple(sizes) if sizes and len(sizes) == len(first) else None

    def _padded(self, node: Node, first: Shape) -> Shape | None:
        pads = self._numbers(node, 1, "pads")
        if pads is None or len(pads) != 2 * len(first):
            return None
        return tuple(size + pads[i] + pads[i + len(first)] for i, size in enumerate(first))

    def _sliced(self, node: Node, first: Shape) -> Shape | None:
        starts, ends = self._numbers(node, 1, "starts"), self._numbers(node, 2, "ends")
        if starts is None or ends is None or len(starts) != len(ends):
            return None
        axes = self._numbers(node, 3, "axes") or list(range(len(starts)))
        steps = self._numbers(node, 4, "steps") or [1] * len(starts)
        shape = list(first)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
            if not -len(first) <= axis < len(first) or step == 0:
                return None
            shape[axis] = len(range(*slice(start, end, step).indices(shape[axis])))
        return tuple(shape)

    def _recurrent(self, node: Node, first: Shape) -> Shape | None:
        across = self.shapes.get(node.inputs[2]) if len(node.inputs) > 2 else None
        if across is None or len(across) != 3 or len(first) != 3:
            return None
        return (first[0], across[0], first[1], across[2])

    # --- FLOPs --------------------------------------------------------------------------------------------------

    def _flops(self, node: Node, given: Shape) -> float:
        """A multiply-add counts as two; only what multiplies with weights or other values counts."""
        shapes = [self.shapes.get(name) for name in node.inputs]
        match node.op:
            case "Conv" | "ConvInteger" | "QLinearConv":
                weight = shapes[3 if node.op == "QLinearConv" else 1]
                return 2.0 * product(given) * product(weight[1:] if weight else ())
            case "ConvTranspose":
                return 2.0 * product(shapes[0] or ()) * product((shapes[1] or ())[1:])
            case "Gemm":
                inner = (shapes[0] or (0, 0))[0 if node.numbers.get("transA") else 1]
                return 2.0 * product(given) * inner
            case "MatMul" | "MatMulInteger":
                return 2.0 * product(given) * (shapes[0] or (0,))[-1]
            case "LSTM" | "GRU" | "RNN":
                each = product(shapes[1] or ()) + product(shapes[2] or ())
                return 2.0 * each * given[0] * given[2]
        return 0.0


def _broadcast(shapes: list[Shape]) -> Shape | None:
    """numpy's rule."""
    longest = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (longest - len(shape)) + shape for shape in shapes]
    found = []
    for sizes in zip(*padded, strict=True):
        wide = {size for size in sizes if size != 1}
        if len(wide) > 1:
            return None
        found.append(wide.pop() if wide else 1)
    return tuple(found)


def _arithmetic(op: str, left: list[int], right: list[int]) -> list[int] | None:
    if len(left) != len(right):
        if len(right) == 1:
            right = right * len(left)
        elif len(left) == 1:
            left = left * len(right)
        else:
            return None
    operation: Callable[[int, int], int] = {
        "Mul": lambda a, b: a * b, "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b,
        "Div": lambda a, b: int(a / b) if b and abs(a) < 1 << 52 else 0, "Mod": lambda a, b: a % b if b else 0,
    }[op]  # fmt: skip
    found = [operation(a, b) for a, b in zip(left, right, strict=True)]
    return found if all(abs(value) < 1 << 62 for value in found) else None


_HANDLERS: dict[str, Callable[[_Walk, Node, Shape], Shape | None]] = {
    "Conv": _Walk._conv, "ConvInteger": _Walk._conv, "QLinearConv": _Walk._conv, "ConvTranspose": _Walk._transposed,
    "MaxPool": _Walk._pool, "AveragePool": _Walk._pool, "LpPool": _Walk._pool,
    "GlobalAveragePool": _Walk._global_pool, "GlobalMaxPool": _Walk._global_pool,
    "Gemm": _Walk._gemm, "MatMul": _Walk._matmul, "MatMulInteger": _Walk._matmul, "Flatten": _Walk._flat,
    "Reshape": _Walk._reshaped, "Transpose": _Walk._transpose, "Concat": _Walk._concat,
    "Unsqueeze": _Walk._unsqueezed, "Squeeze": _Walk._squeezed, "Gather": _Walk._gathered,
    "Resize": _Walk._resized, "Pad": _Walk._padded, "Slice": _Walk._sliced,
    "LSTM": _Walk._recurrent, "GRU": _Walk._recurrent, "RNN": _Walk._recurrent,
}  # fmt: skip

"""Which tensors of an ONNX graph are learnt, and what its operators amount to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from hivenode.models.identify.formats.onnx import Constant, Graph, Model, Node
from hivenode.models.identify.naming.graphs import Mix

_FLOATS = ("float", "bfloat", "complex")
_SETTINGS: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}), "Dropout": frozenset({1, 2}), "Pad": frozenset({1, 2, 3}), "Pow": frozenset({1}),
    "Resize": frozenset({1, 2, 3}), "Upsample": frozenset({1}), "Range": frozenset({0, 1, 2}),
    "OneHot": frozenset({1, 2}), "NonMaxSuppression": frozenset({2, 3, 4}), "Shrink": frozenset({1, 2}),
    "QuantizeLinear": frozenset({1, 2}), "DequantizeLinear": frozenset({1, 2}), "TopK": frozenset({1}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}), "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "ConvInteger": frozenset({2, 3}), "MatMulInteger": frozenset({2, 3}), "QGemm": frozenset({1, 2, 4, 5, 7, 8}),
    "DynamicQuantizeMatMul": frozenset({2, 3}), "MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "DynamicQuantizeLSTM": frozenset({8, 9, 10, 11}), "MatMulNBits": frozenset({2, 3, 4}),
    "QAttention": frozenset({3, 4, 6, 7}), "GatherBlockQuantized": frozenset({2, 3}), "STFT": frozenset({1, 2, 3}),
    "QLinearAdd": frozenset({1, 2, 4, 5, 6, 7}), "QLinearMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearGlobalAveragePool": frozenset({1, 2, 3, 4}), "QLinearSigmoid": frozenset({1, 2, 3, 4}),
    "QLinearLeakyRelu": frozenset({1, 2, 3, 4}), "QLinearAveragePool": frozenset({1, 2, 3, 4}),
    "QLinearSoftmax": frozenset({1, 2, 3, 4}), "ConstantOfShape": frozenset({0}), "Expand": frozenset({1}),
}  # fmt: skip
"""Operator -> inputs that are settings, statistics or scales: not learnt in the sense of a parameter."""
_WEIGHTS: dict[str, frozenset[int]] = {
    "Conv": frozenset({1, 2}), "ConvTranspose": frozenset({1, 2}), "Gemm": frozenset({0, 1, 2}),
    "MatMul": frozenset({0, 1}),
    "LSTM": frozenset({1, 2, 3}), "GRU": frozenset({1, 2, 3}), "RNN": frozenset({1, 2, 3}),
    "QLinearConv": frozenset({3, 8}), "QLinearMatMul": frozenset({0, 3}), "ConvInteger": frozenset({1}),
    "MatMulInteger": frozenset({1}), "QGemm": frozenset({3, 6}), "DynamicQuantizeMatMul": frozenset({1}),
    "MatMulIntegerToFloat": frozenset({1}), "DynamicQuantizeLSTM": frozenset({1, 2, 3}), "MatMulNBits": frozenset({1}),
    "QAttention": frozenset({1, 2}), "GatherBlockQuantized": frozenset({0}), "FusedConv": frozenset({1, 2}),
    "FusedMatMul": frozenset({0, 1}), "FusedGemm": frozenset({0, 1, 2}), "NhwcConv": frozenset({1, 2}),
    "Attention": frozenset({1, 2}),
}  # fmt: skip
_CLASSICAL = frozenset({"LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor", "TreeEnsemble",
                        "TreeEnsembleClassifier", "TreeEnsembleRegressor"})  # fmt: skip
"""Operators that keep what they learnt in their attributes."""
_ATTRIBUTE = -1
"""In the place of an input's number."""
_PASS = {
    "Identity",
    "Cast",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "DequantizeLinear",
    "Flatten",
    "QuantizeLinear",
}
"""Operators through which a constant stays a constant."""
_DENSE = {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulNBits",
          "FusedMatMul", "FusedGemm", "MatMulIntegerToFloat"}  # fmt: skip
_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv", "DeformConv"}
_KINDS = {
    "ConvTranspose": "conv_transpose", "LSTM": "recurrent", "GRU": "recurrent", "RNN": "recurrent",
    "DynamicQuantizeLSTM": "recurrent", "Attention": "attention", "QAttention": "attention",
    "MultiHeadAttention": "attention", "GroupQueryAttention": "attention", "PackedAttention": "attention",
    "DecoderMaskedMultiHeadAttention": "attention", "LinearAttention": "attention", "FlexAttention": "attention",
    "Softmax": "softmax", "LayerNormalization": "norm", "RMSNormalization": "norm", "SkipLayerNormalization": "norm",
    "SimplifiedLayerNormalization": "norm", "SkipSimplifiedLayerNormalization": "norm",
    "EmbedLayerNormalization": "embedding", "BatchNormalization": "batch_norm", "Upsample": "upsample",
    "Resize": "upsample", "MaxPool": "pool", "AveragePool": "pool", "GlobalAveragePool": "pool",
    "NonMaxSuppression": "suppression", "TreeEnsemble": "tree", "TreeEnsembleClassifier": "tree",
    "TreeEnsembleRegressor": "tree", "LinearClassifier": "linear_model", "LinearRegressor": "linear_model",
    "STFT": "spectrum", "DFT": "spectrum", "MelWeightMatrix": "spectrum", "Tokenizer": "tokens",
    "StringSplit": "tokens", "TfIdfVectorizer": "tokens",
}  # fmt: skip


@dataclass(slots=True)
class Roles:
    """How constants are used. `uses`: id of a constant -> (operator, input number) wherever it ends up."""

    constants: list[Constant] = field(default_factory=list)
    uses: dict[int, set[tuple[str, int]]] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    weights: dict[int, list[Constant]] = field(default_factory=dict)
    bits: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, model: Model) -> Roles:
        roles = cls()
        roles._scope(model.graph, {})
        for body in model.functions.values():
            roles._scope(body, {})
        return roles

    def _scope(self, top: Graph, outer: dict[str, Constant]) -> None:
        """Follow names through one graph, inner graphs seeing the names of the outer ones."""
        stack: list[tuple[Graph, dict[str, Constant]]] = [(top, outer)]
        while stack:
            graph, around = stack.pop()
            names = dict(around) if graph.initializers or around else {}
            for tensor in graph.initializers:
                self.constants.append(tensor)
                names[tensor.name] = tensor
            for node in graph.nodes:
                self._node(node, names)
            stack.extend((inner, names) for node in graph.nodes for inner in node.subgraphs)

    def _node(self, node: Node, names: dict[str, Constant]) -> None:
        self.operators[node.op] += 1
        self.constants.extend(node.constants)
        if node.op == "Constant" and node.constants and node.outputs:
            names[node.outputs[0]] = node.constants[0]
        for tensor in node.constants:
            if node.op != "Constant":
                self.uses.setdefault(id(tensor), set()).add((node.op, _ATTRIBUTE))
        if node.op == "MatMulNBits":
            self.bits.add(node.numbers.get("bits", 4))
        for number, name in enumerate(node.inputs):
            held = names.get(name)
            if held is None:
                continue
            if number == 0 and node.op in _PASS and node.outputs:
                names[node.outputs[0]] = held
            self.uses.setdefault(id(held), set()).add((node.op, number))
            self.weights.setdefault(id(node), []).append(held)

    def is_learnt(self, constant: Constant) -> bool:
        """Whether a constant is a parameter: a number found by training, not a setting of an operator."""
        uses = self.uses.get(id(constant), set())
        real = {use for use in uses if not (use[0] in _PASS and use[1] == 0)}
        if any(number == _ATTRIBUTE and op in _CLASSICAL for op, number in real):
            return True
        if any(number in _WEIGHTS.get(op, ()) for op, number in real):
            return constant.dtype not in ("int64", "bool", "string")
        if not constant.dtype.startswith(_FLOATS):
            return constant.dtype in ("int8", "uint8", "int4", "uint4") and ("DequantizeLinear", 0) in uses
        if real and all(number in _SETTINGS.get(op, ()) for op, number in real):
            return False
        return constant.initializer and constant.shape != () if constant.elements == 1 else True

    def quantization(self) -> str | None:
        """`int8`, `int4`, ... if weights are kept so; None if not."""
        if self.bits:
            return f"int{min(self.bits)}"
        elements: Counter[str] = Counter()
        for constant in self.constants:
            if constant.dtype in ("int8", "uint8", "int4", "uint4", "float8_e4m3fn", "float8_e5m2") and self.is_learnt(
                constant
            ):
                elements[constant.dtype] += constant.elements
        if not elements:
            return None
        return elements.most_common(1)[0][0]


def mix_of(model: Model, roles: Roles) -> Mix:
    """The operators of a model in the words of `naming.graphs`."""
    held = {tensor.name for tensor in model.graph.initializers}
    mix = Mix(
        inputs=[port for port in model.graph.inputs if port.name not in held],
        outputs=list(model.graph.outputs),
        names=[constant.name for constant in roles.constants if constant.initializer][:5000],
    )
    mix.names.extend(node.name for node in model.graph.nodes[:5000])
    for node in _all_nodes(model):
        kind = _kind(node, roles)
        if kind:
            mix.kinds[kind] += 1
    makers = {name: node.op for node in model.graph.nodes for name in node.outputs}
    if model.graph.outputs:
        mix.last = {
            "Softmax": "softmax",
            "Sigmoid": "sigmoid",
            "Tanh": "tanh",
            "Gemm": "linear",
            "MatMul": "linear",
        }.get(makers.get(model.graph.outputs[0].name, ""))
    return mix


def _all_nodes(model: Model) -> Iterator[Node]:
    for top in (model.graph, *model.functions.values()):
        for graph in top.walk():
            yield from graph.nodes


def _kind(node: Node, roles: Roles) -> str | None:
    held = roles.weights.get(id(node), [])
    if node.op in _CONVOLUTIONS:
        axes = max((len(tensor.shape) for tensor in held), default=4)
        return {3: "conv1d", 5: "conv3d"}.get(axes, "conv2d")
    if node.op in _DENSE:
        return "dense" if any(len(tensor.shape) >= 2 or node.op == "MatMulNBits" for tensor in held) else "product"
    if node.op == "Gather":
        learnt = bool(held) and len(held[0].shape) == 2 and held[0].dtype.startswith(_FLOATS)
        return "embedding" if learnt and held[0].elements > 64 else None
    if node.op == "Einsum":
        return "product" if not held else "dense"
    return _KINDS.get(node.op)

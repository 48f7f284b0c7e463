"""Keras behind `frameworks.model.Model`, on TensorFlow where that is installed, else on PyTorch.

Built from the same declared layers as the PyTorch models, with the same tensors in the same order and shapes, so that
the two start from the same weights, and what one has trained the other can go on with or be asked by.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow" if importlib.util.find_spec("tensorflow") else "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras as keras  # from here alone: after the environment is set
import numpy as np
import numpy.typing as npt

from hivenode.errors import InvalidInput
from hivenode.models.layers import Layer, buffers, tensors
from hivenode.spec.data import Task
from hivenode.training.frameworks.model import Floats, Gather, Inputs, Labels, Layout, Vector, initial_weights, views

EVALUATION_BATCH = 1024
Array = npt.NDArray[Any]
Tensors = Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a variable of keras lies among the declared tensors.

    Attributes:
        names: of the tensors it is the sum of; one, but for LSTM's biases.
        forth: from a tensor to the variable's shape; `back` the other way.
    """

    variable: Any
    names: tuple[str, ...]
    forth: Callable[[Array], Array]
    back: Callable[[Array], Array]


def plain(variable: Any, *names: str) -> Place:
    """A variable that has the shape of its tensor."""
    return Place(variable, names, np.asarray, np.asarray)


@dataclass(frozen=True, slots=True)
class Built:
    """A network of keras, and where its variables lie in the vectors of `Model`.

    Attributes:
        places: of what is trained, `statistics` of running statistics, `fixed` of `constants`.
        start: first values of what is trained, `buffers` of the statistics.
    """

    network: Any
    layout: Layout
    places: Sequence[Place]
    start: Vector
    statistics: Sequence[Place]
    buffers: Vector
    fixed: Sequence[Place] = ()
    constants: Mapping[str, Floats] = field(default_factory=dict)


def from_layers(layers: tuple[Layer, ...], seed: int) -> Built:
    """Raises InvalidInput: there is a layer that keras does not build here."""
    held, running = tensors(layers), buffers(layers)
    layout = Layout(
        {name: tensor.shape for name, tensor in held.items()},
        {name: tensor.shape for name, tensor in running.items()},
    )
    network, places, statistics = _build(layers)
    kept = initial_weights(running, seed) if running else np.zeros(0, np.float32)
    return Built(network, layout, places, initial_weights(held, seed), statistics, kept)


class KerasModel:
    """`Model` on the CPU.

    Attributes:
        vector: (layout.size + 1,); gradients go to all but the last element.
    """

    def __init__(self, built: Built, task: Task) -> None:
        self._built = built
        self._layout = built.layout
        self._task = task
        self._weights, self._buffers = built.start, built.buffers
        self.vector = np.zeros(self._layout.size + 1, np.float32)
        self._places, self._statistics = built.places, built.statistics
        self._slopes = views(self.vector[:-1], self._layout.parameters)
        self._step, self._forward = _compiled(built.network, task, [place.variable for place in self._places])
        held = {id(variable) for variable in built.network.weights}
        self._drawing = [variable for variable in built.network.variables if id(variable) not in held]

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def weights(self) -> Vector:
        return self._weights

    @property
    def buffers(self) -> Vector:
        return self._buffers

    @property
    def constants(self) -> Mapping[str, Floats]:
        return self._built.constants

    def backward(self, inputs: Inputs, labels: Labels, draw: int = 0, scale: float = 1.0) -> float:
        self._load()
        for number, drawing in enumerate(self._drawing):
            drawing.assign(np.array([draw % 2**32, number], np.uint32))
        loss, slopes = self._step(inputs, labels, scale)
        for place, slope in zip(self._places, slopes, strict=True):
            for name in place.names:
                self._slopes[name][...] = place.back(slope)
        if scale != 1.0:
            self.vector[:-1] *= np.float32(1.0 / scale)
        running = views(self._buffers, self._layout.buffers)
        for place in self._statistics:
            running[place.names[0]][...] = place.back(keras.ops.convert_to_numpy(place.variable.value))
        return loss

    def together(self, gather: Gather) -> bool:
        """Keras normalises batches over several workers by `tf.distribute` only."""
        return False

    def attend(self, inputs: Inputs, labels: Labels) -> None:
        raise AssertionError("Keras does nothing together")

    def evaluate(self, inputs: Inputs, labels: Labels) -> tuple[int, float]:
        correct, total = 0, 0.0
        for part, outputs in self._parts(inputs):
            expected = labels[part]
            total += float(keras.ops.convert_to_numpy(_losses(self._task, outputs, expected))) * len(expected)
            if self._task in ("classification", "language"):
                correct += int((keras.ops.convert_to_numpy(keras.ops.argmax(outputs, -1)) == expected).sum())
        return correct, total

    def predict(self, inputs: Inputs) -> Floats:
        found = []
        for _, outputs in self._parts(inputs):
            if self._task == "language":
                outputs = outputs[:, -1]
            if self._task in ("classification", "language"):
                outputs = keras.ops.softmax(outputs, axis=-1)
            array = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
            found.append(array.reshape(len(array), -1).astype(np.float32))
        return np.concatenate(found)

    def _parts(self, inputs: Inputs) -> Iterator[tuple[slice, Any]]:
        self._load()
        for start in range(0, len(inputs), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            yield part, self._forward(inputs[part])

    def _load(self) -> None:
        """Bring the variables up to the flat vectors, which whoever trains writes to."""
        for vector, shapes, places in (
            (self._weights, self._layout.parameters, self._places),
            (self._buffers, self._layout.buffers, self._statistics),
        ):
            named = views(vector, shapes)
            for place in places:
                whole = named[place.names[0]] if len(place.names) == 1 else sum(named[name] for name in place.names)
                place.variable.assign(place.forth(np.asarray(whole)))
        for place in self._built.fixed:
            place.variable.assign(self._built.constants[place.names[0]])


Step = Callable[[Inputs, Labels, float], tuple[float, list[Array]]]


def _losses(task: Task, outputs: Any, labels: Any) -> Any:
    """Mean over the samples."""
    outputs = keras.ops.cast(outputs, "float32")
    if task in ("classification", "language"):
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True))
    return keras.ops.mean(keras.ops.square(outputs - keras.ops.reshape(labels, keras.ops.shape(outputs))))


def _penalised(network: Any, loss: Any) -> Any:
    """With what its regularisers add."""
    for penalty in network.losses:
        loss = loss + keras.ops.cast(penalty, "float32")
    return loss


def _compiled(network: Any, task: Task, variables: Sequence[Any]) -> tuple[Step, Callable[[Inputs], Any]]:
    """The loss and its gradient by each variable, as the backend differentiates; and the outputs."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def graph(inputs: Any, labels: Any, scale: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = _penalised(network, _losses(task, network(inputs, training=True), labels))
                scaled = loss * scale
            zero = tf.UnconnectedGradients.ZERO
            slopes = tape.gradient(scaled, [variable.value for variable in variables], unconnected_gradients=zero)
            return loss, [tf.convert_to_tensor(slope) for slope in slopes]  # that of an embedding comes by rows

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def outputs(inputs: Any) -> Any:
            return network(inputs, training=False)

        def step(inputs: Inputs, labels: Labels, scale: float) -> tuple[float, list[Array]]:
            loss, slopes = graph(tf.constant(inputs), tf.constant(labels), tf.constant(scale, tf.float32))
            return float(loss), [slope.numpy() for slope in slopes]

        return step, lambda inputs: outputs(tf.constant(inputs))

    def eager(inputs: Inputs, labels: Labels, scale: float) -> tuple[float, list[Array]]:
        for variable in variables:
            variable.value.grad = None
        loss = _penalised(network, _losses(task, network(inputs, training=True), labels))
        (loss * scale).backward()
        return float(loss.detach()), [variable.value.grad.numpy() for variable in variables]

    return eager, lambda inputs: network(inputs, training=False)


def _build(layers: tuple[Layer, ...]) -> tuple[Any, list[Place], list[Place]]:
    """The network, and where its trained variables and its running statistics belong. Images keep keras' order of axes
    inside; they come, and are flattened, in that of the declaration."""
    entered = keras.Input(layers[0].input, dtype="int32" if layers[0].kind == "embedding" else "float32")
    x, pending = entered, list[tuple[Layer, int, Any]]()
    if len(layers[0].input) == 3:
        x = keras.layers.Permute((2, 3, 1))(x)
    for layer in layers:
        maker = _LAYERS.get(layer.kind)
        if maker is None or (layer.kind == "embedding" and layer.options["positions"]):
            raise InvalidInput(
                f"keras does not build the layer {layer.name} ({layer.kind}).",
                fix=f'Use framework = "torch", or only {", ".join(_LAYERS)} (embedding without positions).',
            )
        x, made = maker(layer, x)
        pending += [(layer, number, each) for number, each in enumerate(made)]
    network = keras.Model(entered, x)
    places, statistics = list[Place](), list[Place]()
    for layer, number, made in pending:
        for place in _PLACES[layer.kind](layer, number, made):
            (statistics if place.names[0].rpartition(".")[2].startswith("running") else places).append(place)
    return network, places, statistics


Output = tuple[Any, list[Any]]


def _flattened(layer: Layer, x: Any) -> Any:
    if len(layer.input) == 3:
        x = keras.layers.Permute((3, 1, 2))(x)
    return keras.layers.Flatten()(x)


def _function(layer: Layer, option: str = "activation") -> Any:
    name = layer.text(option)
    if name == "gelu":
        return lambda x: keras.activations.gelu(x, approximate=False)
    return None if name == "none" else name


def _dense_layer(layer: Layer, x: Any) -> Output:
    made = keras.layers.Dense(layer.whole("outputs"), activation=_function(layer))
    return made(x if len(layer.input) == 2 else _flattened(layer, x)), [made]


def _conv_layer(layer: Layer, x: Any) -> Output:
    size, stride = layer.whole("kernel"), layer.whole("stride")
    padded = keras.layers.ZeroPadding2D(size // 2)(x)  # on both sides alike, as PyTorch does it
    made = keras.layers.Conv2D(layer.whole("outputs"), size, stride, activation=_function(layer))
    return made(padded), [made]


def _lstm_layers(layer: Layer, x: Any) -> Output:
    made = [keras.layers.LSTM(layer.whole("width"), return_sequences=True) for _ in range(layer.whole("layers"))]
    for each in made:
        x = each(x)
    return x, made


def _norm_layer(layer: Layer, x: Any) -> Output:
    if len(layer.input) == 3:
        raise InvalidInput(
            f"keras does not build the layer {layer.name} (layer_norm of images).", fix='Use framework = "torch".'
        )
    made = keras.layers.LayerNormalization(epsilon=1e-5)
    return made(x), [made]


def _batch_norm_layer(layer: Layer, x: Any) -> Output:
    made = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    return made(x), [made]


def _embedding_layer(layer: Layer, x: Any) -> Output:
    made = keras.layers.Embedding(layer.whole("vocabulary"), layer.whole("width"))
    return made(x), [made]


def _steps_layer(layer: Layer, x: Any) -> Output:
    if len(layer.input) == 3:  # lines of images, each with all its channels
        x = keras.layers.Permute((1, 3, 2))(x)
    return keras.layers.Reshape(layer.output)(x), []


def _average_layer(layer: Layer, x: Any) -> Output:
    kind = keras.layers.GlobalAveragePooling2D if len(layer.input) == 3 else keras.layers.GlobalAveragePooling1D
    return kind()(x), []


_LAYERS: Mapping[str, Callable[[Layer, Any], Output]] = {
    "dense": _dense_layer,
    "conv": _conv_layer,
    "pool": lambda layer, x: (keras.layers.MaxPooling2D(layer.whole("size"))(x), []),
    "batch_norm": _batch_norm_layer,
    "layer_norm": _norm_layer,
    "activation": lambda layer, x: (keras.layers.Activation(_function(layer, "function"))(x), []),
    "dropout": lambda layer, x: (keras.layers.Dropout(float(layer.options["rate"]))(x), []),
    "average": _average_layer,
    "last": lambda layer, x: (x[:, -1], []),
    "flatten": lambda layer, x: (_flattened(layer, x), []),
    "upsample": lambda layer, x: (keras.layers.UpSampling2D(layer.whole("factor"))(x), []),
    "steps": _steps_layer,
    "embedding": _embedding_layer,
    "lstm": _lstm_layers,
}


def _turned(array: Array) -> Array:
    return array.T


def _dense_places(layer: Layer, number: int, made: Any) -> list[Place]:
    own = layer.name
    return [Place(made.kernel, (f"{own}.weight",), _turned, _turned), plain(made.bias, f"{own}.bias")]


def _conv_places(layer: Layer, number: int, made: Any) -> list[Place]:
    def forth(array: Array) -> Array:
        return array.transpose(2, 3, 1, 0)

    def back(array: Array) -> Array:
        return array.transpose(3, 2, 0, 1)

    own = layer.name
    return [Place(made.kernel, (f"{own}.weight",), forth, back), plain(made.bias, f"{own}.bias")]


def _lstm_places(layer: Layer, number: int, made: Any) -> list[Place]:
    own, cell = layer.name, made.cell
    return [
        Place(cell.kernel, (f"{own}.weight_ih_l{number}",), _turned, _turned),
        Place(cell.recurrent_kernel, (f"{own}.weight_hh_l{number}",), _turned, _turned),
        plain(cell.bias, f"{own}.bias_ih_l{number}", f"{own}.bias_hh_l{number}"),
    ]


def _norm_places(layer: Layer, number: int, made: Any) -> list[Place]:
    return [plain(made.gamma, f"{layer.name}.weight"), plain(made.beta, f"{layer.name}.bias")]


def _batch_norm_places(layer: Layer, number: int, made: Any) -> list[Place]:
    own = layer.name
    running = [(made.moving_mean, "running_mean"), (made.moving_variance, "running_var")]
    return [*_norm_places(layer, number, made), *(plain(variable, f"{own}.{name}") for variable, name in running)]


_PLACES: Mapping[str, Callable[[Layer, int, Any], list[Place]]] = {
    "dense": _dense_places,
    "conv": _conv_places,
    "lstm": _lstm_places,
    "layer_norm": _norm_places,
    "batch_norm": _batch_norm_places,
    "embedding": lambda layer, number, made: [plain(made.embeddings, f"{layer.name}.tokens.weight")],
}

"""Estimators of scikit-learn that learn batch by batch, as `frameworks.learner.Learner`."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from hivenode.data.partition import permutation, uniform
from hivenode.errors import InvalidInput
from hivenode.models.estimators import arguments, estimator
from hivenode.spec.section import Scalar
from hivenode.training.frameworks.predictors import Floats, Predictor, Tensors, nearest, predictor

_CENTRES = 9
"""Purpose of the random numbers that choose the first centres."""
_TINY = 1e-12
_DIGITS = 2**20
"""A count is kept in two numbers to this base, each of which float32 holds exactly."""

Rows = npt.NDArray[np.float32]
Targets = npt.NDArray[Any]


class EstimatorLearner(ABC):
    """What they have in common.

    Args:
        source: `sklearn:NAME`.
        features, outputs: widths of a sample and of what is predicted.
    """

    def __init__(self, source: str, params: Mapping[str, Scalar], features: int, outputs: int) -> None:
        self._source, self._params = source, dict(params)
        self._values = arguments(source, params)
        self._task = estimator(source)[1].task
        self._features, self._outputs = features, outputs
        self._weights = np.zeros(0, np.float32)

    loss_scale = None

    @property
    def weights(self) -> Floats:
        return self._weights

    @property
    def buffers(self) -> Floats:
        """There are none."""
        return np.zeros(0, np.float32)

    @abstractmethod
    def tensors(self) -> dict[str, Floats]:
        """The arrays a model file holds, by name."""

    @abstractmethod
    def learn(self, inputs: Rows, labels: Targets, learning_rate: float, draw: int) -> float: ...

    @abstractmethod
    def adopt(self, weights: Floats) -> None: ...

    def kept(self, parts: int, samples: int) -> dict[str, Floats]:
        """What a model file holds besides `tensors`, for a later job to go on. It is the same on all members.

        Args:
            parts: members whose mean the weights are.
            samples: that all members together have learnt from.
        """
        del parts, samples
        return {}

    @abstractmethod
    def go_on(self, tensors: Tensors, kept: Callable[[str], Floats], parts: int) -> None:
        """From what an earlier one has left: its `tensors`, and by name what it has `kept`. Raises InvalidInput,
        ValueError: they are not those of such an estimator."""

    def slots(self) -> Mapping[str, Floats]:
        return {}

    def scalars(self) -> dict[str, str]:
        return {}

    def restore(self, slots: Mapping[str, Floats], scalars: Mapping[str, str]) -> None:
        """There is nothing beside the weights."""
        del slots, scalars

    @property
    def predictor(self) -> Predictor:
        """By what has been learnt so far."""
        return predictor(self._source, self._params, self.tensors(), self._features, self._outputs)

    def evaluate(self, inputs: Rows, labels: Targets) -> tuple[int, float]:
        """See `Model.evaluate`; of clusters the loss is the squared distance to the nearest centre."""
        rows = flat(inputs)
        if self._task == "clustering":
            return 0, float(nearest(rows, self.tensors()["centres"])[1].sum())
        return score(self._task, self.predictor.outputs(rows), labels)


def score(task: str, outputs: npt.NDArray[np.float64], labels: Targets) -> tuple[int, float]:
    """How many classes are right, and the sum of the cross-entropies or mean squared errors."""
    if task == "regression":
        errors = (outputs - np.asarray(labels, np.float64).reshape(len(outputs), -1)) ** 2
        return 0, float(errors.mean(axis=1).sum())
    chosen = outputs[np.arange(len(labels)), labels]
    return int((outputs.argmax(axis=1) == labels).sum()), float(-np.log(np.maximum(chosen, _TINY)).sum())


def flat(inputs: Rows) -> Rows:
    """(samples, features)."""
    return inputs.reshape(len(inputs), -1)


def narrow(labels: Targets) -> Targets:
    """Values to predict without their second axis, where there is one of each."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


class PartialFit(EstimatorLearner):
    """Linear models and networks: `partial_fit` on each batch, by the library itself."""

    def __init__(self, source: str, params: Mapping[str, Scalar], features: int, outputs: int, seed: int) -> None:
        super().__init__(source, params, features, outputs)
        self._estimator = build(source, self._values, seed)
        self._network = source.startswith("sklearn:MLP")
        self._began = 1.0
        self._classes = {"classes": np.arange(outputs)} if self._task == "classification" else {}
        blank = np.zeros((1, features), np.float32)
        target = np.zeros(1, np.int64) if self._classes else np.zeros((1, outputs)) if outputs > 1 else np.zeros(1)
        self._estimator.partial_fit(blank, target, **self._classes)  # which makes its arrays
        if self._network:
            self._weights = np.concatenate([_glorot(array, seed, n) for n, array in enumerate(self._arrays())])
        else:
            self._weights = np.zeros(sum(array.size for array in self._arrays()), np.float32)
        self.adopt(self._weights)
        self._forget()

    def _arrays(self) -> list[npt.NDArray[Any]]:
        if self._network:
            pairs = zip(self._estimator.coefs_, self._estimator.intercepts_, strict=True)
            return [array for pair in pairs for array in pair]
        return [self._estimator.coef_, self._estimator.intercept_]

    def _forget(self) -> None:
        """Undo what the batch that made the arrays has left elsewhere."""
        if not self._network:
            self._estimator.t_ = 1.0
            return
        self._estimator._optimizer.t = 0
        for array in [array for arrays in self._moments().values() for array in arrays]:
            array.fill(0.0)

    def _moments(self) -> dict[str, list[npt.NDArray[Any]]]:
        """What a network's optimizer (Adam, or SGD with momentum) remembers of earlier gradients."""
        optimizer = self._estimator._optimizer if self._network else None
        return {name: getattr(optimizer, name) for name in ("ms", "vs", "velocities") if hasattr(optimizer, name)}

    def learn(self, inputs: Rows, labels: Targets, learning_rate: float, draw: int) -> float:
        rows = flat(inputs)
        self._estimator.partial_fit(
            rows, labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels, **self._classes
        )
        start = 0
        for array in self._arrays():
            self._weights[start : start + array.size] = array.ravel()
            start += array.size
        return self.evaluate(rows, labels)[1] / len(rows)

    def adopt(self, weights: Floats) -> None:
        self._weights[:] = weights
        start = 0
        for array in self._arrays():
            array[...] = weights[start : start + array.size].reshape(array.shape)
            start += array.size

    def tensors(self) -> dict[str, Floats]:
        arrays = [np.array(array, np.float32) for array in self._arrays()]
        if self._network:
            return {f"{'bias' if n % 2 else 'weight'}{n // 2}": array for n, array in enumerate(arrays)}
        coefficients, intercepts = arrays
        return {"coefficients": coefficients.reshape(-1, self._features), "intercepts": intercepts.ravel()}

    def kept(self, parts: int, samples: int) -> dict[str, Floats]:
        if self._network:
            return {}  # its optimizer begins anew, as that of other models
        seen = self._estimator.t_ if parts == 1 else round(self._began + samples / parts)
        return {"seen": np.array(divmod(seen, _DIGITS), np.float32)}

    def go_on(self, tensors: Tensors, kept: Callable[[str], Floats], parts: int) -> None:
        if self._network:
            layers = range(len(self._estimator.coefs_))
            arrays = [tensors[f"{kind}{n}"] for n in layers for kind in ("weight", "bias")]
        else:
            high, low = kept("seen").tolist()
            self._estimator.t_ = self._began = high * _DIGITS + low
            arrays = [tensors["coefficients"], tensors["intercepts"]]
        self.adopt(np.concatenate([np.ravel(array) for array in arrays]))

    def slots(self) -> Mapping[str, Floats]:
        return {
            name: np.concatenate([array.ravel() for array in arrays], dtype=np.float32)
            for name, arrays in self._moments().items()
        }

    def scalars(self) -> dict[str, str]:
        return {"seen": float(self._estimator._optimizer.t if self._network else self._estimator.t_).hex()}

    def restore(self, slots: Mapping[str, Floats], scalars: Mapping[str, str]) -> None:
        seen = float.fromhex(scalars["seen"])
        if not self._network:
            self._estimator.t_ = seen
            return
        self._estimator._optimizer.t = int(seen)
        for name, arrays in self._moments().items():
            start = 0
            for array in arrays:
                array[...] = slots[name][start : start + array.size].reshape(array.shape)
                start += array.size


class SumsLearner(EstimatorLearner):
    """Of those whose weights are sums over samples."""

    def adopt(self, weights: Floats) -> None:
        self._weights[:] = weights

    def kept(self, parts: int, samples: int) -> dict[str, Floats]:
        return {"sums": self._weights * np.float32(parts)}

    def go_on(self, tensors: Tensors, kept: Callable[[str], Floats], parts: int) -> None:
        self.adopt(kept("sums") / np.float32(parts))


class ClusterSums(SumsLearner):
    """MiniBatchKMeans (Sculley, WWW 2010): each centre is the mean of the samples that were nearest to it. The weights
    are sums and counts, so that members' weights may be averaged."""

    def __init__(self, source: str, params: Mapping[str, Scalar], rows: Rows, outputs: int, seed: int) -> None:
        super().__init__(source, params, rows.shape[1], outputs)
        count = int(self._values["n_clusters"])
        if count > len(rows):
            raise InvalidInput(
                f"n_clusters of {source} is {count}; there are {len(rows)} samples to train on.",
                fix="Give fewer clusters than samples.",
            )
        first = _spread(rows, count, seed)
        self._shape = (count, rows.shape[1])
        self._weights = np.concatenate([first.ravel(), np.ones(count, np.float32)])

    def _parts(self) -> tuple[Floats, Floats]:
        size = prod(self._shape)
        return self._weights[:size].reshape(self._shape), self._weights[size:]

    def learn(self, inputs: Rows, labels: Targets, learning_rate: float, draw: int) -> float:
        rows = flat(inputs)
        closest, distances = nearest(rows, self.tensors()["centres"])
        sums, counts = self._parts()
        np.add.at(sums, closest, rows)
        counts += np.bincount(closest, minlength=len(counts)).astype(np.float32)
        return float(distances.mean())

    def tensors(self) -> dict[str, Floats]:
        sums, counts = self._parts()
        return {"centres": sums / counts[:, None]}


class ClassSums(SumsLearner):
    """GaussianNB: counts, sums and sums of squares of each class, which add up exactly over members."""

    def __init__(self, source: str, params: Mapping[str, Scalar], features: int, outputs: int) -> None:
        super().__init__(source, params, features, outputs)
        self._smoothing = float(self._values.get("var_smoothing", 1e-9))
        self._weights = np.zeros(outputs * (1 + 2 * features), np.float32)

    def _parts(self) -> tuple[Floats, Floats, Floats]:
        k, d = self._outputs, self._features
        rest = self._weights[k:].reshape(2, k, d)
        return self._weights[:k], rest[0], rest[1]

    def learn(self, inputs: Rows, labels: Targets, learning_rate: float, draw: int) -> float:
        rows = flat(inputs)
        counts, sums, squares = self._parts()
        counts += np.bincount(labels, minlength=self._outputs).astype(np.float32)
        np.add.at(sums, labels, rows)
        np.add.at(squares, labels, rows * rows)
        return self.evaluate(rows, labels)[1] / len(rows)

    def tensors(self) -> dict[str, Floats]:
        counts, sums, squares = (part.astype(np.float64) for part in self._parts())
        known = np.maximum(counts, _TINY)[:, None]
        mean = sums / known
        total = max(float(counts.sum()), _TINY)
        spread = squares.sum(axis=0) / total - (sums.sum(axis=0) / total) ** 2
        least = max(self._smoothing * float(spread.max(initial=0.0)), float(np.finfo(np.float32).tiny))
        variance = np.maximum(squares / known - mean * mean, 0.0) + least
        return {
            "mean": mean.astype(np.float32),
            "variance": variance.astype(np.float32),
            "prior": (counts / total).astype(np.float32),
        }


def learner(source: str, params: Mapping[str, Scalar], inputs: Rows, outputs: int, seed: int) -> EstimatorLearner:
    """The learner of an estimator of kind `steps` or `sums`.

    Args:
        inputs: the training part.
    """
    rows = flat(inputs)
    name, _ = estimator(source)
    match name:
        case "MiniBatchKMeans":
            return ClusterSums(source, params, rows, outputs, seed)
        case "GaussianNB":
            return ClassSums(source, params, rows.shape[1], outputs)
        case _:
            return PartialFit(source, params, rows.shape[1], outputs, seed)


def build(source: str, values: Mapping[str, Scalar], seed: int, **more: object) -> Any:
    """The library's own object, from checked arguments."""
    name, entry = estimator(source)
    chosen: dict[str, object] = {**values, **more}
    if "hidden" in values:
        chosen["hidden_layer_sizes"] = (int(values["hidden"]),) * int(values["depth"])
        del chosen["hidden"], chosen["depth"]
    kind = getattr(importlib.import_module(f"sklearn.{entry.module}"), name)
    if "random_state" in kind().get_params():
        chosen["random_state"] = seed % 2**32
    return kind(**chosen)


def _glorot(array: npt.NDArray[Any], seed: int, number: int) -> Floats:
    """Where a network starts, the same on every machine: biases at 0, all else uniform (Glorot and Bengio, AISTATS
    2010)."""
    if array.ndim == 1:
        return np.zeros(array.size, np.float32)
    bound = np.sqrt(6.0 / sum(array.shape))
    return np.asarray((2.0 * uniform(array.size, seed, number) - 1.0) * bound, np.float32)


def _spread(rows: Rows, count: int, seed: int) -> Floats:
    """First centres, of at most 4096 samples: each with a chance in proportion to its squared distance to the nearest
    so far (k-means++, Arthur and Vassilvitskii, SODA 2007)."""
    some = rows[permutation(len(rows), seed, _CENTRES)[: max(4096, count)]].astype(np.float64)
    chances = uniform(count, seed, _CENTRES)
    places = [0]
    distance = ((some - some[0]) ** 2).sum(axis=1)
    for chance in chances[1:]:
        reached = np.cumsum(distance)
        places.append(min(int(np.searchsorted(reached, chance * reached[-1], side="right")), len(some) - 1))
        distance = np.minimum(distance, ((some - some[places[-1]]) ** 2).sum(axis=1))
    return np.asarray(some[places], np.float32)

"""A prediction assignment: one model, loaded with the first request, and any number of requests."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hivenode.errors import InvalidInput
from hivenode.net.framing import Channel
from hivenode.net.local import Predict, Predicted, WorkerLimits
from hivenode.training import modelfile
from hivenode.training.frameworks.torch_framework import TorchModel
from hivenode.worker import sandbox
from hivenode.worker.failures import failed


class Predictions:
    """A loaded model.

    Args:
        path: the model file.

    Raises:
        Corrupted: it cannot be used.
    """

    def __init__(self, path: Path, limits: WorkerLimits) -> None:
        self._card, weights = modelfile.read(path, limits.memory_bytes)
        self._model = TorchModel(self._card.layers(), weights, np.zeros_like(weights), limits.threads)

    def answer(self, request: Predict) -> Predicted:
        """Class probabilities of each sample.

        Raises:
            InvalidInput: a sample has the wrong length or a value that is not finite.
        """
        rows = self._rows(request.inputs)
        inputs = self._card.normalisation.apply(rows).reshape(len(rows), *self._card.input_shape)
        return Predicted(
            request=request.request,
            outputs=self._model.predict(inputs).tolist(),
            labels=list(self._card.labels),
        )

    def _rows(self, inputs: list[list[float]]) -> npt.NDArray[np.float64]:
        width = prod(self._card.input_shape)
        shape = "x".join(map(str, self._card.input_shape))
        for number, row in enumerate(inputs):
            if len(row) != width:
                raise InvalidInput(
                    f"Sample {number} has {len(row)} values; the model takes {width} ({shape}).",
                    fix=f"Give {width} numbers a sample, flattened row by row.",
                )
        rows = np.array(inputs, np.float64).reshape(len(inputs), width)
        if not np.isfinite(rows).all():
            raise InvalidInput("A sample holds a value that is not finite.", fix="Give finite numbers only.")
        return rows


def serve(channel: Channel, first: Predict, limits: WorkerLimits) -> None:
    """Answer until the daemon closes the channel.

    Raises:
        HiveError: the model cannot be loaded.
    """
    sandbox.keep_to([Path(first.model)])
    predictions = Predictions(Path(first.model), limits)
    request: Predict = first
    while True:
        try:
            channel.send(predictions.answer(request))
        except Exception as error:  # noqa: BLE001 - told to whoever asked; the model still serves the others
            channel.send(failed(error, limits, request.request))
        message = channel.receive()
        if not isinstance(message, Predict):
            return
        request = message

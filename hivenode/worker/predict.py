"""A prediction assignment: one model, loaded with the first request, and any number of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hivenode.data import text
from hivenode.errors import Corrupted, InvalidInput
from hivenode.net.framing import Channel
from hivenode.net.local import Predict, Predicted, WorkerLimits
from hivenode.spec.shapes import spelled
from hivenode.training import modelfile
from hivenode.training.frameworks.estimator_model import EstimatorModel, labels
from hivenode.training.frameworks.making import make, serving
from hivenode.training.frameworks.model import Model
from hivenode.worker import reach, sandbox
from hivenode.worker.failures import failed


class Predictions:
    """A loaded model.

    Args:
        first: the first request, which names the model file.

    Raises:
        Corrupted: it cannot be used.
    """

    def __init__(self, first: Predict, limits: WorkerLimits) -> None:
        path = Path(first.model)
        self._card, tensors = modelfile.read(path, limits.memory_bytes)
        card = self._card
        self._labels = list(card.info.labels)
        self._model: Model | EstimatorModel
        if card.model.kind == "sklearn":
            try:
                self._model = EstimatorModel(card.model, card.info, tensors)
            except (KeyError, ValueError) as error:
                raise Corrupted(f"{path.name} is not a usable model file: {error}.", fix="Train it again.") from error
            self._labels = list(labels(card.model, card.info))
        else:
            framework = serving(card.framework, card.model)
            model = make(framework, card.model, card.info, 0, first.resources, limits.threads).model
            modelfile.fill(path, model, tensors)
            self._model = model
        self._tokenizer = text.load(card.tokenizer) if card.tokenizer else None

    def answer(self, request: Predict) -> Predicted:
        """Outputs for each sample, by the names of the outputs; for texts to go on with, how they go on.

        Raises:
            InvalidInput: a sample has the wrong length or kind, or a value that is not finite.
        """
        info = self._card.info
        if info.task == "language":
            return self._language(request)
        if info.task == "text_to_text":
            texts = [self._answer(sample) for sample in self._sequences(request)]
            return Predicted(request=request.request, outputs=[], labels=[], texts=texts)
        if request.continue_tokens:
            raise InvalidInput("The model does not write text.", fix="Leave out --continue.")
        outputs = self._card.targets.undo(self._model.predict(self._inputs(request)))
        if info.task == "reconstruction":
            outputs = self._card.normalisation.undo(outputs)
        return Predicted(request=request.request, outputs=outputs.tolist(), labels=self._labels)

    def _language(self, request: Predict) -> Predicted:
        """Probabilities of the next token, or the likeliest continuation of each text."""
        length = self._card.info.input_shape[0]
        found, outputs = [], []
        for prompt in self._sequences(request):
            tokens = prompt.tolist()
            for _ in range(request.continue_tokens):
                window = np.array([tokens[-length:]], np.int64)
                tokens.append(int(self._model.predict(window)[0].argmax()))
            if request.continue_tokens:
                found.append(self._spelled(tokens[len(prompt) :]))
            else:
                outputs.append(self._model.predict(prompt[None, -length:])[0].tolist())
        labels = [] if request.continue_tokens else [self._spelled([t]) for t in range(self._card.info.outputs)]
        return Predicted(request=request.request, outputs=outputs, labels=labels, texts=found)

    def _answer(self, sample: npt.NDArray[np.int64]) -> str:
        """What is written upon a text: the likeliest token, one after the other, until the end."""
        info = self._card.info
        length, end = info.input_shape[0] // 2, info.vocabulary - 1
        row = np.full(2 * length, info.padding, np.int64)
        row[:length] = text.fitted(sample, length, info.padding)
        made: list[int] = []
        while len(made) < length:
            outputs = self._model.predict(row[None]).reshape(length, info.outputs)
            token = int(outputs[len(made)].argmax())
            if token == end:
                break
            made.append(token)
            if len(made) < length:
                row[length + len(made)] = token
        return self._spelled(made)

    def _spelled(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens) if self._tokenizer is not None else " ".join(map(str, tokens))

    def _inputs(self, request: Predict) -> npt.NDArray[Any]:
        info = self._card.info
        if request.texts or info.vocabulary:
            return np.stack([text.fitted(t, info.input_shape[0], info.padding) for t in self._sequences(request)])
        rows = self._rows(request.inputs)
        return self._card.normalisation.apply(rows).reshape(len(rows), *info.input_shape)

    def _sequences(self, request: Predict) -> list[npt.NDArray[np.int64]]:
        if not request.texts:
            return [self._whole(number, row) for number, row in enumerate(request.inputs)]
        if self._tokenizer is None:
            raise InvalidInput(
                "The model takes numbers, not text.", fix=f"Give {self._card.info.features} numbers a sample."
            )
        found = [self._tokenizer.encode(sample) for sample in request.texts]
        if not all(map(len, found)):
            raise InvalidInput("A text is empty.", fix="Give at least one character.")
        return found

    def _whole(self, number: int, row: list[float]) -> npt.NDArray[np.int64]:
        vocabulary = self._card.info.vocabulary
        wrong = next((value for value in row if not (0 <= value < vocabulary and value == int(value))), None)
        if not row or wrong is not None:
            raise InvalidInput(
                f"Sample {number} has {'no tokens' if not row else f'the token {wrong:g}'}.",
                fix=f"Give whole numbers from 0 to {vocabulary - 1}, or text.",
            )
        return np.array(row, np.int64)

    def _rows(self, inputs: list[list[float]]) -> npt.NDArray[np.float64]:
        width, shape = self._card.info.features, spelled(self._card.info.input_shape)
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
    sandbox.keep_to(reach.to_predict(first))
    predictions = Predictions(first, limits)
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

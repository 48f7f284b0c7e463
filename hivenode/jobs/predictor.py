"""Predictions: a worker per model, kept warm for a while, asked over its local channel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from hivenode.errors import BY_CODE, Exhausted, HiveError, Unavailable
from hivenode.jobs.host import WorkerHandle, WorkerHost
from hivenode.net.local import MAX_LOCAL_FRAME, Failed, FromWorker, Predict, Predicted, Resources, WorkerLimits

ANSWER_SECONDS = 60.0
IDLE_SECONDS = 60.0
MAX_WORKERS = 4
MAX_WAITING = 64
PORTION_VALUES = MAX_LOCAL_FRAME // 12


@dataclass(slots=True)
class _Serving:
    handle: WorkerHandle | None = None
    waiting: dict[int, asyncio.Future[Predicted]] = field(default_factory=dict)
    idle: asyncio.TimerHandle | None = None
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Predictor:
    """Answers predictions with models whose files are here.

    Args:
        limits: what one worker may use.
        lends: what this machine's owner lends to models.
    """

    def __init__(self, host: WorkerHost, limits: Callable[[], WorkerLimits], lends: Callable[[], Resources]) -> None:
        self._host = host
        self._limits = limits
        self._lends = lends
        self._serving: dict[str, _Serving] = {}
        self._next = 0

    async def predict(
        self,
        key: str,
        path: str,
        framework: str,
        inputs: list[list[float]],
        texts: list[str] | None = None,
        continue_tokens: int = 0,
    ) -> Predicted:
        """Outputs for samples, one flattened float32 sample a row, or one text.

        Args:
            key: names the model; one worker serves each key.
            framework: that which loads it.
            continue_tokens: how far to go on with each, of a model that writes text.

        Raises:
            InvalidInput: a row does not fit the model.
            Unavailable: the worker died or did not answer.
            Exhausted: too many models or requests at once.
        """
        resources = self._lends()
        if texts:
            asked = [Predict(0, path, [], texts, continue_tokens, resources)]
        else:
            asked = [Predict(0, path, rows, [], continue_tokens, resources) for rows in _portions(inputs)]
        answers = [await self._ask(key, framework, request) for request in asked]
        return Predicted(
            request=answers[-1].request,
            outputs=[row for answer in answers for row in answer.outputs],
            labels=answers[-1].labels,
            texts=[text for answer in answers for text in answer.texts],
        )

    async def _ask(self, key: str, framework: str, request: Predict) -> Predicted:
        serving = await self._worker(key, framework)
        if len(serving.waiting) >= MAX_WAITING:
            raise Exhausted(f"{MAX_WAITING} predictions are waiting already.", fix="Ask again in a moment.")
        self._next += 1
        number = self._next
        answer: asyncio.Future[Predicted] = asyncio.get_running_loop().create_future()
        serving.waiting[number] = answer
        if serving.idle is not None:
            serving.idle.cancel()
        try:
            assert serving.handle is not None
            serving.handle.send(msgspec.structs.replace(request, request=number))
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            if serving.handle is not None:
                serving.handle.kill()
            raise Unavailable(
                f"No prediction after {ANSWER_SECONDS:.0f} s.", fix="Ask again; the machine may be overloaded."
            ) from None
        finally:
            serving.waiting.pop(number, None)
            if not serving.waiting:
                serving.idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._retire, key, serving)

    async def _worker(self, key: str, framework: str) -> _Serving:
        serving = self._serving.get(key)
        if serving is None:
            if len(self._serving) >= MAX_WORKERS:
                spare = next((k for k, s in self._serving.items() if not s.waiting), None)
                if spare is None:
                    raise Exhausted(f"{MAX_WORKERS} models are being served already.", fix="Ask again in a moment.")
                self._retire(spare, self._serving[spare])
            serving = self._serving[key] = _Serving()
        async with serving.starting:
            if serving.handle is None:
                here = self._host.frameworks
                serving.handle = await self._host.start(
                    "predict",
                    _server(framework, here),
                    self._limits(),
                    lambda message: self._heard(serving, message),
                    lambda how: self._exited(key, serving, how),
                )
        return serving

    def _retire(self, key: str, serving: _Serving) -> None:
        if self._serving.get(key) is serving:
            del self._serving[key]
        if serving.handle is not None:
            serving.handle.kill()

    def _heard(self, serving: _Serving, message: FromWorker) -> None:
        if isinstance(message, Predicted):
            answer = serving.waiting.get(message.request)
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif isinstance(message, Failed):
            concerned = [message.request] if message.request is not None else list(serving.waiting)
            for number in concerned:
                answer = serving.waiting.get(number)
                if answer is not None and not answer.done():
                    answer.set_exception(BY_CODE.get(message.code, HiveError)(message.message, fix=message.fix))

    def _exited(self, key: str, serving: _Serving, how: str) -> None:
        serving.handle = None
        if serving.idle is not None:
            serving.idle.cancel()
        if self._serving.get(key) is serving:
            del self._serving[key]
        for answer in serving.waiting.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"The prediction worker ended: {how}.", fix="Ask again."))


def _portions(inputs: list[list[float]]) -> list[list[list[float]]]:
    """Rows in pieces that fit one message to a worker, 9 bytes a value."""
    portions: list[list[list[float]]] = [[]]
    values = 0
    for row in inputs:
        if portions[-1] and values + len(row) > PORTION_VALUES:
            portions.append([])
            values = 0
        portions[-1].append(row)
        values += len(row)
    return portions


def _server(framework: str, here: tuple[str, ...]) -> str:
    """Which framework's server starts the worker. What scikit-learn has trained takes none to be asked: estimators are
    arrays."""
    return "torch" if framework == "sklearn" and "torch" in here else framework

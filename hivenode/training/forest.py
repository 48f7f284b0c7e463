"""Runs that are not made of steps: forests and other ensembles, which are grown on all members and put together, and
estimators that one node fits in one piece.

What is grown is handed round now and then, so that all members have it: then it is divided again what is missing, and
the lowest rank keeps a checkpoint. Each unit is the same wherever and whenever it is grown, so who grows on from a
checkpoint, and how many they are, changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from hivenode.data.dataset import Dataset, Samples
from hivenode.errors import Corrupted, InvalidInput
from hivenode.net.local import FromWorker, Log, Peer, WorkerProgress
from hivenode.spec.job import JobSpec
from hivenode.training.checkpoints import State
from hivenode.training.frameworks import composed_predictors as composed
from hivenode.training.frameworks import sklearn_composing as composing
from hivenode.training.frameworks import sklearn_fitting as fitting
from hivenode.training.frameworks.model import views
from hivenode.training.frameworks.predictors import Floats, nearest
from hivenode.training.frameworks.sklearn_learners import Rows, Targets, flat, narrow, score
from hivenode.training.loop import CHECKPOINT_SECONDS, Result
from hivenode.training.strategies.collective import Collective
from hivenode.training.strategies.group import Group

SCORED = 256
"""Training samples on which the loss is measured: to ask a forest about all of them takes as long as growing it."""
GROW_SECONDS = 0.5
"""Trees are grown in portions of about this time: the library's own preparations cost little beside it, and an order
to stop is heard soon."""
_LENGTHS = 1024
"""Lengths are told in multiples of this, so that float32 says them exactly."""
_WORDS = 1 << 31
"""That are handed round at once, at most: arrays of 4 GiB."""


class _Again(Exception):
    """Members were lost between two exchanges that belong together."""


@dataclass(slots=True)
class Fitting:
    """One member's run; used as `loop.Training` is.

    Args:
        report: takes messages for the daemon.
        threads: for joblib, within this node.
        divided: it is grown by units, on all members.
        save: called with the units that there are, whenever these are to be kept, on the lowest rank only.
    """

    spec: JobSpec
    group: Group
    data: Dataset
    collective: Collective
    report: Callable[[FromWorker], None]
    threads: int
    divided: bool
    save: Callable[[State], None]
    earlier: Mapping[str, Floats] = field(default_factory=dict)
    """Arrays of the forest that it grows on top of."""
    tensors: dict[str, Floats] = field(default_factory=dict)
    _known: dict[int, Floats] = field(init=False, default_factory=dict)
    """Units that all members have, each as `fitting.pack` gives it."""
    _own: dict[int, fitting.Grown] = field(init=False, default_factory=dict)
    """Those that the others have not been given yet."""
    _made: int = field(init=False, default=0)
    """Units grown by this member."""

    @property
    def keeps(self) -> bool:
        """Whether there are checkpoints: of what is fitted in one piece there is nothing to keep before the end, and
        what was grown from one node's private samples is not gone on with from another's."""
        return self.divided and not self.data.private

    @property
    def step(self) -> int:
        """Units that a checkpoint would hold."""
        return len({*self._known, *self._own}) if self.keeps else 0

    @property
    def leads(self) -> bool:
        """Whether this is the lowest rank of the view."""
        return self.group.leads

    def state(self) -> State:
        """The units that there are, each as `fitting.pack` gives it."""
        nothing = np.zeros(0, np.float32)
        units = sorted((_packed(self._own) | self._known).items())
        return State(self.step, nothing, nothing, {f"unit{number}": packed for number, packed in units}, {})

    def resume(self, state: State) -> None:
        """Grow only what is missing there. Raises Corrupted: it holds something else than units."""
        try:
            for vector in state.slots.values():
                (number,) = fitting.unpack(vector)
                self._known[number] = vector
        except ValueError as error:
            raise Corrupted(
                f"The checkpoint of step {state.step} is incomplete: {error}.", fix="Use another copy of it."
            ) from error

    def begin(self, peers: tuple[Peer, ...]) -> None:
        """Meet the other members. Raises as `run` does."""
        try:
            self.collective.connect(peers)
        except Exception:
            self.group.heed()
            raise

    def join(self, peers: tuple[Peer, ...]) -> None:
        """What is being grown is divided already."""
        raise InvalidInput(
            f"A job that fits {self.spec.model.source} cannot be joined while it runs.", fix="Nothing to do."
        )

    def run(self) -> Result:
        """Fit, and put together what the members have grown.

        Raises:
            Cancelled: by order.
            HiveError: this member cannot go on.
        """
        self.group.look_around(self.step)
        began = time.monotonic()
        spec, data = self.spec, self.data
        rows, labels = _all(data.train)
        given = spec.model, rows, labels, data.info.outputs, spec.training.seed, self.threads
        self.tensors = (
            self._grown(composing.growing(*given, self.earlier), began) if self.divided else composing.fit(*given)
        )
        seconds = max(time.monotonic() - began, 1e-9)
        loss = self._judge(rows[:SCORED], labels[:SCORED])[1]
        found = self._judge(*_all(data.test))
        self.group.finish()
        assert loss is not None
        steps = max(len(self._known), 1)
        self._progress(steps, steps, loss, len(rows) / seconds * self.group.fraction)
        return Result(steps, loss, *found, 1.0, len(rows) / seconds, None)

    def _judge(self, rows: Rows, labels: Targets) -> tuple[float | None, float | None]:
        """Accuracy, and the mean loss; None without samples. Each member looks at a part of them."""
        if not len(rows):
            return None, None
        info = self.data.info
        found = composed.predictor(self.spec.model, self.tensors, rows.shape[1], info.outputs)
        vector = np.zeros(2, np.float32)

        def look() -> float:
            part = self.group.part(len(rows))
            some, expected = rows[part.start : part.stop], labels[part.start : part.stop]
            if "centres" in self.tensors:
                vector[:] = 0, nearest(some, self.tensors["centres"])[1].sum()
            else:
                vector[:] = score(info.task, found.outputs(some), expected) if len(part) else (0, 0.0)
            vector[:] /= max(len(part), 1)
            return float(len(part))

        self.group.agree(vector, look, self.step)
        accuracy = round(float(vector[0]) * len(rows)) / len(rows) if info.task == "classification" else None
        return accuracy, float(vector[1])

    # --- what is grown on all members ---------------------------------------------------------------------------

    def _grown(self, growing: fitting.Growing, began: float) -> dict[str, Floats]:
        total = growing.units
        if unknown := self._known.keys() - set(range(total)):
            raise Corrupted(
                f"The checkpoint has unit {min(unknown)}, and there are {total}.", fix="Use another copy of it."
            )
        if self._known and self.leads:
            self._log(f"{len(self._known)} of {total} units come from a checkpoint; the others are grown.")
        started = time.monotonic()
        while len(self._known) < total:
            try:
                found = self._gather(partial(self._grow, growing, started, began))
            except _Again:
                self.group.look_around(self.step)
                continue
            if unknown := found.keys() - set(range(total)):
                raise _odd(f"one has grown unit {min(unknown)}, and there are {total}")
            self._known |= _packed(found)  # less than was grown where somebody was late: who will tell the next time
            self._own = {unit: made for unit, made in self._own.items() if unit not in self._known}
            if self.keeps and self.leads and len(self._known) < total:
                self.save(self.state())
            started = time.monotonic()
        self._log(f"{self._made} of {total} units were grown here.", grown=self._made)
        return self._alike(growing.together([fitting.unpack(self._known[unit])[unit] for unit in range(total)]))

    def _grow(self, growing: fitting.Growing, started: float, began: float) -> dict[int, fitting.Grown]:
        """Of what is missing, this member's units for the members there are; those of lost ones are grown by the
        others. It ends when a checkpoint is due, or all are there.

        Args:
            started: when the last units were handed round.
            began: when the run did.
        """
        total = growing.units
        missing = [unit for unit in range(total) if unit not in self._known]
        left = [missing[at] for at in self.group.part(len(missing)) if missing[at] not in self._own]
        due = growing.due(self.spec.training.checkpoint_every_steps) * self.group.fraction if self.keeps else total
        width = 1
        while left and not (self._own and len(self._own) >= due and time.monotonic() - started >= CHECKPOINT_SECONDS):
            self.group.heed()
            units = _run(left, width)
            before = time.monotonic()
            self._own.update(growing.grow(units))
            now = time.monotonic()
            width = max(1, int(GROW_SECONDS * len(units) / max(now - before, 1e-9)))
            left = left[len(units) :]
            self._made += len(units)
            speed = len(self.data.train) * self._made / total / max(now - began, 1e-9)
            self._progress(len(self._known) + len(self._own), total, 0.0, speed)
        return self._own

    def _alike(self, found: dict[str, Floats]) -> dict[str, Floats]:
        """What was fitted to the members' answers was so on every node by itself, whose rounding may differ: the mean
        of that is the same on all."""
        last = [name for name in found if name.startswith(composed.FINAL)]
        if not last:
            return found
        vector = np.zeros(sum(found[name].size for name in last), np.float32)

        def tell() -> float:
            vector[:] = np.concatenate([found[name].ravel() for name in last])
            return 1.0

        self.group.agree(vector, tell, self.step)
        places = views(vector, {name: found[name].shape for name in last})
        return found | {name: place.copy() for name, place in places.items()}

    def _gather(self, grow: Callable[[], Mapping[int, fitting.Grown]]) -> dict[int, fitting.Grown]:
        """The units of all who were in time: each member's bytes in a place of their own in one vector that is zero
        elsewhere, whose mean times the number of contributors is all of them. So it is as safe as any exchange: all
        have it, or none.

        16 bits travel in each float32, for which a mean over any number of members is exact enough.

        Raises:
            Corrupted: it is nothing that members give.
        """
        group, place = self.group, self.group.planned.index(self.group.me)
        planned = len(group.planned)
        lengths = np.zeros(2 * planned, np.float32)
        words = np.zeros(0, np.uint16)

        def tell() -> float:
            nonlocal words
            words = fitting.pack(grow()).view(np.uint16)
            lengths.fill(0.0)
            lengths[place], lengths[planned + place] = 1.0, -(-len(words) // _LENGTHS)
            return 1.0

        in_time = group.agree(lengths, tell, self.step).late is None
        blocks = _restored(lengths, planned, _WORDS // _LENGTHS).astype(np.int64)
        ends = np.cumsum(blocks) * _LENGTHS
        if ends[-1] > _WORDS:
            raise _odd(f"they have grown {int(ends[-1]) >> 29} GiB of arrays since the last exchange")
        if in_time and blocks[place] * _LENGTHS < len(words):
            raise _odd("there is less room for what was grown here than that takes")
        start = planned + int(ends[place]) - int(blocks[place]) * _LENGTHS
        vector = np.zeros(planned + int(ends[-1]), np.float32)

        def give() -> float:
            vector[place] = 1.0
            if in_time:
                vector[start : start + len(words)] = words
            return 1.0

        def void() -> None:
            raise _Again

        group.agree(vector, give, self.step, void=void)
        whole = _restored(vector, planned, 0xFFFF).astype(np.uint16)
        found: dict[int, fitting.Grown] = {}
        for end, blocked in zip(ends.tolist(), blocks.tolist(), strict=True):
            own = whole[end - blocked * _LENGTHS : end].view(np.float32)
            if own.size and own[0] > 0:
                try:
                    found |= fitting.unpack(own)
                except ValueError as error:
                    raise _odd(str(error)) from error
        return found

    def _log(self, event: str, **fields: int) -> None:
        self.report(Log(level="info", event=event, fields={"step": self.step, **fields}))

    def _progress(self, step: int, steps: int, loss: float, speed: float) -> None:
        self.report(
            WorkerProgress(
                step=step,
                steps=steps,
                epoch=1,
                epochs=1,
                loss=loss,
                accuracy=None,
                samples_per_second=speed,
                step_seconds=0.0,
                members=self.group.members,
            )
        )


def _all(part: Samples) -> tuple[Rows, Targets]:
    inputs, labels = part.take(np.arange(len(part)))
    return flat(inputs), narrow(labels)


def _packed(units: Mapping[int, fitting.Grown]) -> dict[int, Floats]:
    return {number: fitting.pack({number: unit}) for number, unit in units.items()}


def _run(units: list[int], most: int) -> range:
    """The first of these that follow on each other."""
    end = next((n for n in range(1, min(most, len(units))) if units[n] != units[0] + n), min(most, len(units)))
    return range(units[0], units[0] + end)


def _restored(mean: Floats, planned: int, most: int) -> Floats:
    """What members put behind their `planned` marks of presence, each by itself, from the mean of all of it.

    Raises:
        Corrupted: these are not numbers from 0 to `most`.
    """
    with np.errstate(all="ignore"):
        found = np.asarray(np.rint(mean[planned:] * np.rint(1.0 / mean[:planned].max())), np.float32)
    if not (found.min(initial=0.0) >= 0.0 and found.max(initial=0.0) <= most):  # no NaN either
        raise _odd(f"numbers that are not between 0 and {most}")
    return found


def _odd(what: str) -> Corrupted:
    return Corrupted(f"What the members have grown makes no sense: {what}.", fix="Run the same version on all nodes.")

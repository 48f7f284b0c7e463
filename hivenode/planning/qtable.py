"""The shared Q-table: what the cost model gets wrong, learned from runs, as a fold over the hive's events.

Shape (4, 3, 4, 3, 5): complexity, data set, nodes and latency buckets by the five strategies. A cell keeps the
residual ln(measured / predicted), not a reward: the prediction already knows the job and the machines, the table
corrects it. Runs are one-step episodes, so there is nothing to bootstrap from one job to the next (gamma = 0).

The correction of a cell is a sum of four effects: what all runs have in common, the job's row, the strategy, and the
cell itself. They are estimated together by ridge regression (the best linear unbiased prediction of a model with
random effects; Henderson, Biometrics 31, 1975): each is drawn to zero by its own prior, n / (n + k0) of what is left
for it. What is common or of the row cancels when strategies are compared, so a machine that is slower than it
measured does not by itself push the choice to strategies that were never tried; and what only one strategy has shown
is put down to that strategy in part, so a strategy that is worse than predicted does not hide behind the rest.

Newer runs count more (discount d per run in the same cell, so that at most 1 / (1 - d) runs count: a learning rate
with a floor of 1 - d), and no author counts for more than all others together, beyond a floor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from hivenode.planning.workload import SHAPE, State
from hivenode.spec.events import Body, ExperienceRecorded
from hivenode.spec.values import Strategy

ACTIONS: tuple[Strategy, ...] = tuple(Strategy)
LEAST, MOST = -3.0, 6.0
"""Residuals are clipped to these: from 20 times faster to 400 times slower than predicted."""

_Cell = tuple[int, int, int, int, int]
_Run = tuple[str, str, int]
"""Author, job, attempt."""


@dataclass(frozen=True, slots=True)
class Learning:
    """How the table learns."""

    common_prior: float = 3.0
    """k0, runs' worth of belief that an effect is zero: of what all runs have in common."""
    state_prior: float = 3.0
    """Of a row's effect."""
    action_prior: float = 0.5
    """Of a strategy's effect."""
    cell_prior: float = 0.5
    """Of a cell's own effect."""
    sweeps: int = 16
    """Rounds of the regression (Gauss-Seidel); a fixed number, so that equal runs give equal bytes."""
    discount: float = 0.92
    """Weight of a run after one more in the same cell."""
    author_floor: float = 16.0
    """Runs' worth that one author may always count for in a cell; beyond that, no more than all others."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What experience says of one strategy in one row."""

    residual: float = 0.0
    """Natural log of measured over predicted."""
    visits: int = 0
    """Runs seen in this very cell."""


@dataclass(frozen=True, slots=True)
class Table:
    """The table at one moment. Equal sets of events give equal tables, byte for byte in `to_json`."""

    common: float = 0.0
    states: Mapping[State, float] = field(default_factory=dict)
    actions: Mapping[int, float] = field(default_factory=dict)
    cells: Mapping[_Cell, float] = field(default_factory=dict)
    visits: Mapping[_Cell, int] = field(default_factory=dict)
    runs: int = 0

    def correction(self, state: State, action: Strategy) -> Correction:
        index = ACTIONS.index(action)
        cell = (*state, index)
        residual = self.common + self.states.get(state, 0.0) + self.actions.get(index, 0.0) + self.cells.get(cell, 0.0)
        return Correction(residual, self.visits.get(cell, 0))

    def q(self, state: State, action: Strategy, predicted_seconds: float, reference_seconds: float) -> float:
        """-ln(expected / reference): 0 is as fast as the fastest node's bare arithmetic, higher is better."""
        expected = math.log(predicted_seconds) + self.correction(state, action).residual
        return -(expected - math.log(reference_seconds))

    def to_json(self) -> str:
        """For people: every cell that has been visited, with its correction."""
        rows = [
            {
                "state": list(cell[:4]),
                "action": ACTIONS[cell[4]].value,
                "visits": self.visits[cell],
                "residual": self.correction((cell[0], cell[1], cell[2], cell[3]), ACTIONS[cell[4]]).residual,
            }
            for cell in sorted(self.visits)
        ]
        return json.dumps({"shape": [*SHAPE, len(ACTIONS)], "runs": self.runs, "common": self.common, "cells": rows})


@dataclass(slots=True)
class _Sums:
    """Discounted weight and sum of residuals of one cell, by author."""

    weight: dict[str, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    visits: int = 0

    def add(self, author: str, residual: float, discount: float) -> None:
        for each in self.weight:
            self.weight[each] *= discount
            self.total[each] *= discount
        self.weight[author] = self.weight.get(author, 0.0) + 1.0
        self.total[author] = self.total.get(author, 0.0) + residual
        self.visits += 1

    def capped(self, floor: float) -> tuple[float, float]:
        """Weight and mean with every author's weight cut to what all others have, or to the floor."""
        whole = math.fsum(self.weight.values())
        weights = {a: min(w, max(floor, whole - w)) for a, w in self.weight.items()}
        allowed = math.fsum(weights.values())
        means = math.fsum(weights[a] * self.total[a] / self.weight[a] for a in weights if self.weight[a] > 0)
        return allowed, means / allowed if allowed > 0 else 0.0


class _SumsState(msgspec.Struct, frozen=True, array_like=True, tag="sums"):
    cell: _Cell
    visits: int
    authors: tuple[tuple[str, float, float], ...]


class _RunsState(msgspec.Struct, frozen=True, array_like=True, tag="runs"):
    runs: tuple[tuple[str, str, int, int], ...]


_PIECE = 256
_encode = msgspec.msgpack.Encoder().encode
_state: msgspec.msgpack.Decoder[_SumsState | _RunsState] = msgspec.msgpack.Decoder(_SumsState | _RunsState)


@dataclass(frozen=True, slots=True)
class _Mark:
    base: dict[_Cell, _Sums]
    known: dict[_Run, int]
    told: int
    runs: dict[_Run, tuple[int, ExperienceRecorded]]


class Experience:
    """Folds `ExperienceRecorded` events into a table.

    The result depends on the set of events alone: they are folded by clock, author, job and attempt however they
    arrive, and a run (author, job, attempt) counts once, as first told. What was sealed is there as sums, before all
    others.
    """

    topic = "experience"
    kinds: tuple[type[Body], ...] = (ExperienceRecorded,)
    commuting: tuple[type[Body], ...] = ()

    def __init__(self, learning: Learning | None = None) -> None:
        self._learning = learning or Learning()
        self._sums: dict[_Cell, _Sums] = {}
        self._last: tuple[int, str, str, int] | None = None
        self._table: Table | None = None
        self.reset()

    def reset(self) -> None:
        self.back(_Mark({}, {}, 0, {}))

    def apply(self, author: str, hlc: int, body: Body) -> None:
        """Take one event in. Nonsense (a state outside the table, times that are not positive) is passed over."""
        if not isinstance(body, ExperienceRecorded) or not _sane(body):
            return
        key = (author, body.job, body.attempt)
        if key in self._known:
            return
        held = self._runs.get(key)
        if held is not None and _told(held) <= _told((hlc, body)):
            return
        self._runs[key] = (hlc, body)
        self._table = None
        place = (hlc, *key)
        if held is not None or (self._last is not None and place < self._last):
            self._stale = True  # it belongs before some already folded
        elif not self._stale:
            self._fold(author, body)
            self._last = place

    def mark(self) -> object:
        return _Mark(self._base, self._known, self._told_before, dict(self._runs))

    def back(self, mark: object) -> None:
        assert isinstance(mark, _Mark)
        self._base, self._known, self._told_before = mark.base, mark.known, mark.told
        self._runs: dict[_Run, tuple[int, ExperienceRecorded]] = dict(mark.runs)
        self._sums, self._last, self._table = {}, None, None
        self._stale = True

    def fresh(self) -> Experience:
        return Experience(self._learning)

    def dump(self, forget: int) -> Iterator[bytes]:
        """The sums, and the runs told since `forget`, so that none of them counts again."""
        self._settle()
        for cell in sorted(self._sums):
            sums = self._sums[cell]
            authors = tuple((a, sums.weight[a], sums.total[a]) for a in sorted(sums.weight))
            yield _encode(_SumsState(cell, sums.visits, authors))
        known = {**self._known, **{run: hlc for run, (hlc, _) in self._runs.items()}}
        runs = [(run, hlc) for run, hlc in sorted(known.items()) if hlc >= forget]
        for at in range(0, len(runs), _PIECE):
            yield _encode(_RunsState(tuple((*run, hlc) for run, hlc in runs[at : at + _PIECE])))

    def load(self, piece: bytes) -> None:
        state = _state.decode(piece)
        if isinstance(state, _SumsState):
            weight = {author: weight for author, weight, _ in state.authors}
            total = {author: total for author, _, total in state.authors}
            self._base = {**self._base, state.cell: _Sums(weight, total, state.visits)}
            self._told_before += state.visits
        else:
            self._known = {**self._known, **{(author, job, n): hlc for author, job, n, hlc in state.runs}}
        self._stale, self._table = True, None

    def table(self) -> Table:
        """The table as it stands."""
        self._settle()
        if self._table is None:
            self._table = _table(self._sums, self._learning, self._told_before + len(self._runs))
        return self._table

    def _settle(self) -> None:
        """Fold again, from the base, what came out of order."""
        if not self._stale:
            return
        self._sums = {
            cell: _Sums(dict(sums.weight), dict(sums.total), sums.visits) for cell, sums in self._base.items()
        }
        ordered = sorted(self._runs.items(), key=lambda item: (item[1][0], *item[0]))
        for (author, _, _), (_, body) in ordered:
            self._fold(author, body)
        self._last = (ordered[-1][1][0], *ordered[-1][0]) if ordered else None
        self._stale = False

    def _fold(self, author: str, body: ExperienceRecorded) -> None:
        cell = (*body.state, body.action)
        residual = math.log(body.measured_seconds / body.predicted_seconds)
        residual = min(max(residual, LEAST), MOST)
        self._sums.setdefault(cell, _Sums()).add(author, residual, self._learning.discount)


def _table(sums: Mapping[_Cell, _Sums], learning: Learning, runs: int) -> Table:
    ordered = sorted(sums)
    data = [sums[cell].capped(learning.author_floor) for cell in ordered]
    everything: dict[object, list[int]] = {0: list(range(len(ordered)))}
    by_state: dict[object, list[int]] = {}
    by_action: dict[object, list[int]] = {}
    by_cell: dict[object, list[int]] = {}
    for place, cell in enumerate(ordered):
        by_state.setdefault(cell[:4], []).append(place)
        by_action.setdefault(cell[4], []).append(place)
        by_cell.setdefault(cell, []).append(place)
    levels = (
        (everything, learning.common_prior),
        (by_state, learning.state_prior),
        (by_action, learning.action_prior),
        (by_cell, learning.cell_prior),
    )
    effects: list[dict[object, float]] = [dict.fromkeys(groups, 0.0) for groups, _ in levels]
    left = [mean for _, mean in data]
    for _ in range(learning.sweeps if data else 0):
        for (groups, prior), effect in zip(levels, effects, strict=True):
            for key, places in groups.items():
                before = effect[key]
                weight = math.fsum(data[place][0] for place in places)
                toward = math.fsum(data[place][0] * (left[place] + before) for place in places)
                effect[key] = toward / (weight + prior)
                for place in places:
                    left[place] += before - effect[key]
    return Table(
        common=effects[0][0],
        states={(c[0], c[1], c[2], c[3]): effects[1][c[:4]] for c in ordered},
        actions={c[4]: effects[2][c[4]] for c in ordered},
        cells={c: effects[3][c] for c in ordered},
        visits={c: sums[c].visits for c in ordered},
        runs=runs,
    )


def _sane(body: ExperienceRecorded) -> bool:
    times = (body.predicted_seconds, body.measured_seconds)
    return (
        all(0 <= value < size for value, size in zip(body.state, SHAPE, strict=True))
        and 0 <= body.action < len(ACTIONS)
        and all(math.isfinite(seconds) and 1e-9 < seconds < 1e12 for seconds in times)
    )


def _told(run: tuple[int, ExperienceRecorded]) -> tuple[int, State, int, float, float, float]:
    hlc, body = run
    return hlc, body.state, body.action, body.predicted_seconds, body.measured_seconds, body.reference_seconds

"""Runs of scikit-learn estimators: what each kind of them trains by, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import sklearn.cluster
import sklearn.ensemble
import sklearn.linear_model
import sklearn.model_selection
import sklearn.neural_network
import sklearn.pipeline  # noqa: F401 - loaded once, before workers are forked

from hivenode.data.dataset import Dataset
from hivenode.models.compositions import entry_of, fits
from hivenode.net.local import FromWorker
from hivenode.spec.job import JobSpec
from hivenode.training.checkpoints import State
from hivenode.training.earlier import Earlier
from hivenode.training.forest import Fitting
from hivenode.training.frameworks.estimator_model import KEPT, EstimatorModel
from hivenode.training.frameworks.model import Floats, Layout
from hivenode.training.frameworks.sklearn_learners import learner
from hivenode.training.loop import Training
from hivenode.training.runs import Prepared
from hivenode.training.strategies.collective import Collective
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.making import local_way
from hivenode.training.strategies.way import Course


def estimating(
    spec: JobSpec,
    group: Group,
    data: Dataset,
    collective: Collective,
    report: Callable[[FromWorker], None],
    save: Callable[[State], None],
    saved: Callable[[Layout], State | None],
    threads: int,
    earlier: Callable[[Dataset], Earlier | None],
) -> Prepared:
    """The run of a job's estimator.

    Args:
        saved: reads the checkpoint to go on from, if there is one.
        earlier: the model to go on with, if there is one.

    Raises:
        InvalidInput: it does not fit the data.
    """
    model, info = spec.model, data.info
    entry = entry_of(model)
    fits(model, info)
    if entry.task == "clustering":  # whatever else the data could be for
        data = replace(data, info=msgspec.structs.replace(info, task="clustering"))
    before = earlier(data)
    if before is not None:
        data = before.scaled(data)
    if entry.kind in ("trees", "members", "whole"):
        kept = before.tensors if before is not None else {}
        fitting = Fitting(spec, group, data, collective, report, threads, entry.kind != "whole", save, earlier=kept)
        units = saved(Layout({})) if fitting.keeps else None
        if units is not None:
            fitting.resume(units)
        return Prepared(fitting, Layout({}), lambda: EstimatorModel(model, info, fitting.tensors))
    inputs, _ = data.train.take(np.arange(len(data.train)))
    learns = learner(model.source, model.params, inputs, info.outputs, spec.training.seed)
    parts = len(group.planned)  # of sums each member has its own, and what is left is their mean
    if before is not None:
        learns.go_on(before.tensors, before.kept, parts)
    layout = Layout({"weights": (len(learns.weights),)})
    state = saved(layout)
    if state is not None:
        learns.adopt(state.weights)
    course = Course(data, spec.training, group)
    training = Training(
        spec=spec.training,
        group=group,
        way=local_way(spec.training, group, course, learns, report, plain=True, equal=entry.kind == "sums"),
        model=learns,
        course=course,
        data=data,
        collective=collective,
        report=report,
        save=save,
    )
    if state is not None:
        training.resume(state)

    def tensors() -> dict[str, Floats]:
        kept = learns.kept(parts, training.step * spec.training.batch_size)
        return learns.tensors() | {KEPT + name: array for name, array in kept.items()}

    return Prepared(training, layout, lambda: EstimatorModel(model, info, tensors()))

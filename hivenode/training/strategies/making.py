"""From a job's `[training]` section to the way its members share their steps."""

from __future__ import annotations

from collections.abc import Callable

from hivenode.net.local import FromWorker
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Precision
from hivenode.training.frameworks.learner import GradientLearner, Learner
from hivenode.training.frameworks.model import Model, Vector
from hivenode.training.loss_scale import loss_scale
from hivenode.training.optimizers import Optimizer, Outer
from hivenode.training.strategies.every_step import EveryStep
from hivenode.training.strategies.fragments import Fragment, fragments_of, size_of
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.local_steps import LocalSteps
from hivenode.training.strategies.way import Course, Way
from hivenode.training.strategies.wire import Wire

EVERY_STEP = ("fp32", "fp16", "int8")
LOCAL = ("fp32", "fp16", "int8", "int4")
"""What `auto` may choose from: what local steps exchange bears more loss (arXiv 2501.18512)."""


def way_of(
    spec: TrainingSpec,
    group: Group,
    course: Course,
    model: Model,
    vector: Vector,
    report: Callable[[FromWorker], None],
    precision: Precision = "fp32",
) -> Way:
    """The way of a model with a gradient.

    Args:
        vector: (parameters + 1,) float32, the beginning of which `model` writes its gradient to.
        precision: that it computes in.
    """
    size = len(model.weights)
    optimizer, scale = Optimizer(spec, size), loss_scale(precision)
    if spec.sync == "local":
        learner = GradientLearner(spec, model, optimizer, vector[:size], scale)
        return local_way(spec, group, course, learner, report, fragments_of(model.layout.parameters, spec.fragments))
    wire = Wire(group, spec.codec, (size,), EVERY_STEP, report)
    together = len(group.planned) > 1 and spec.normalises_together(private=course.private)
    attends = together and model.together(group.gather)
    return EveryStep(spec, group, wire, course, model, optimizer, vector, scale, attends=attends)


def local_way(
    spec: TrainingSpec,
    group: Group,
    course: Course,
    learner: Learner,
    report: Callable[[FromWorker], None],
    fragments: tuple[Fragment, ...] | None = None,
    *,
    plain: bool = False,
    equal: bool = False,
) -> Way:
    """The way of whatever trains itself.

    Args:
        fragments: of its weights; None: all at once.
        plain: the outer step is the mean of the members' weights, whatever the job says.
        equal: as in `LocalSteps`.
    """
    size = len(learner.weights)
    outer = Outer(1.0, 0.0, size) if plain else Outer(spec.outer_learning_rate, spec.outer_momentum, size)
    fragments = fragments or ((slice(0, size),),)
    wire = Wire(group, spec.codec, [size_of(fragment) for fragment in fragments], LOCAL, report)
    return LocalSteps(spec, group, wire, course, learner, outer, fragments, equal=equal)

"""From an attempt that is to average by torch.distributed to what carries it out."""

from __future__ import annotations

from collections.abc import Callable

from hivenode.data.info import DataInfo
from hivenode.net.local import FromWorker, Resources
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Precision
from hivenode.training.distributed.crew import Births, Crew
from hivenode.training.distributed.letters import Birth
from hivenode.training.distributed.memory import Shared, account_for, places
from hivenode.training.distributed.plaintext import InPlaintext
from hivenode.training.frameworks.model import Model
from hivenode.training.frameworks.torch_framework import TorchModel
from hivenode.training.loss_scale import loss_scale
from hivenode.training.optimizers import Optimizer
from hivenode.training.strategies.by_torch import ByTorch
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Course
from hivenode.training.strategies.wire import Wire


def torch_way(
    job: JobSpec,
    info: DataInfo,
    model: Model,
    group: Group,
    course: Course,
    together: InPlaintext,
    births: Births,
    resources: Resources,
    threads: int,
    precision: Precision,
    report: Callable[[FromWorker], None],
) -> ByTorch:
    """The way of a torch model. Its numbers move to memory that is shared with children.

    Args:
        resources: what the model is made from.
        threads: of a child.
        precision: that a child computes gradients in, but for the loss.
    """
    assert isinstance(model, TorchModel)
    spec, layout = job.training, model.layout
    where = places(layout, info, spec.batch_size)
    shared = Shared(births.memory, where, layout)
    shared.weights[:], shared.buffers[:] = model.weights, model.buffers
    model.bind(shared.weights, shared.buffers, shared.gradient)
    account_for(where[3])
    birth = Birth(
        model=job.model.model_dump_json().encode(),
        info=info,
        seed=spec.seed,
        resources=resources,
        threads=threads,
        precision=precision,
        places=where,
        codec=spec.codec,
        host=together.seat.host,
        namespace="",
        rank=0,
        size=1,
    )
    crew = Crew(group, together, together.board, births, birth, report)
    wire = Wire(group, "fp32", (layout.size,), (), report)
    return ByTorch(spec, group, wire, course, shared, Optimizer(spec, layout.size), crew, loss_scale(precision))

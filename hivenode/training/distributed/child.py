"""The process that computes gradients and averages them with the others', by DistributedDataParallel over gloo.

gloo cannot be stopped: a collective whose partner is gone returns when it likes. This process can be killed at any
moment instead. It keeps nothing: weights, gradient and batch lie in memory shared with the worker, which alone changes
the weights.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

import torch
import torch._dynamo  # DistributedDataParallel needs it, and its import takes seconds
from torch import distributed, nn
from torch.distributed import PrefixStore, ProcessGroupGloo
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from hivenode.spec.model import ModelSpec
from hivenode.training.distributed.letters import Birth, Done, Formed, Held, Pipe, Reply, Step, ToChild, Trouble
from hivenode.training.distributed.memory import Shared, account_for
from hivenode.training.distributed.store import WorkerStore
from hivenode.training.frameworks.model import views
from hivenode.training.frameworks.torch_building import make
from hivenode.training.frameworks.torch_framework import TorchModel

PATIENCE = timedelta(hours=1)
"""Of gloo, and of a member that waits for the others' keys. Who is gone is found out elsewhere, and sooner."""
BACKEND = "hive"


HOOKS = {
    "fp16": lambda state, bucket: default_hooks.fp16_compress_hook(state, bucket),
    # Under its own name torch takes it for GPUs only, though gloo adds such numbers up as well.
    "bf16": lambda state, bucket: default_hooks.bf16_compress_hook(state, bucket),
}


def main(control: int, wishes: int, memory: int) -> None:
    """Until the worker is gone or something fails.

    Args:
        control, wishes: descriptors of connections to the worker, for orders and for the store.
        memory: descriptor of what is shared.
    """
    pipe: Pipe[ToChild] = Pipe(socket.socket(fileno=control), ToChild)  # type: ignore[arg-type]
    birth = pipe.receive()
    if not isinstance(birth, Birth):
        return
    own = True
    try:
        work = _Work(birth, memory)
        own = False
        work.meet(Pipe(socket.socket(fileno=wishes), Reply))
        pipe.send(Formed())
        while isinstance(step := pipe.receive(), Step):
            own = True
            loss, seconds = work.forward(step)
            own = False
            seconds += work.backward(loss, step)
            pipe.send(Held())
            pipe.send(Done(work.together(float(loss.detach()) * step.part), seconds))
    except Exception as error:  # noqa: BLE001 - told to the worker, which decides
        text = f"{type(error).__name__}: {error}"
        pipe.send(Trouble(text[:2000], own or isinstance(error, MemoryError) or "allocate memory" in text.lower()))


class _Whole(nn.Module):  # type: ignore[misc]  # torch has no types here
    """A module whose call is the model's, whatever that calls."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.module, self._run = model.module, model.forward

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._run(inputs)


class _Work:
    def __init__(self, birth: Birth, memory: int) -> None:
        account_for(birth.places[3])
        declared = ModelSpec.model_validate_json(birth.model)
        self._birth = birth
        model = make(declared, birth.info, birth.seed, birth.resources, birth.threads, birth.precision).model
        assert isinstance(model, TorchModel)
        self._model = model
        self._shared = shared = Shared(memory, birth.places, model.layout)
        os.close(memory)
        model.bind(shared.weights, shared.buffers, shared.gradient)
        parameters = dict(model.module.named_parameters())
        self._trains = [
            (parameters[name], torch.from_numpy(place))
            for name, place in views(shared.gradient, model.layout.parameters).items()
        ]
        # What others wrote may leave parameters out now and then; what is declared here does not.
        self._uncertain = declared.kind not in ("zoo", "layers")

    def meet(self, wishes: Pipe[Reply]) -> None:
        """Form the group. Returns when all are there."""
        birth = self._birth

        def gloo(store: distributed.Store, rank: int, size: int, timeout: timedelta) -> ProcessGroupGloo:
            options = ProcessGroupGloo._Options()
            options._timeout = timeout
            options._devices = [ProcessGroupGloo.create_device(hostname=birth.host)]  # it listens nowhere else
            options._threads = 2
            return ProcessGroupGloo(store, rank, size, options)

        distributed.Backend.register_backend(BACKEND, gloo, devices=["cpu"])
        store = PrefixStore(birth.namespace, WorkerStore(wishes, PATIENCE))
        distributed.init_process_group(
            f"cpu:{BACKEND}", store=store, rank=birth.rank, world_size=birth.size, timeout=PATIENCE
        )
        self._trained = DistributedDataParallel(
            _Whole(self._model),
            forward_sync_buffers=False,  # statistics are averaged when the loop asks for it
            init_sync=False,  # all have the same weights
            gradient_as_bucket_view=True,
            find_unused_parameters=self._uncertain,
        )
        if birth.codec in HOOKS:
            self._trained.register_comm_hook(None, HOOKS[birth.codec])

    def forward(self, step: Step) -> tuple[torch.Tensor, float]:
        """Mean loss of this member's samples, and the seconds it took."""
        began = time.monotonic()
        inputs, labels = self._shared.batch((step.inputs, step.labels))
        for parameter, _ in self._trains:
            parameter.grad = None  # so that the first to come is taken and not added to zeros
        loss = self._model.loss_of(inputs, labels, step.draw, self._trained)
        return loss, time.monotonic() - began

    def backward(self, loss: torch.Tensor, step: Step) -> float:
        """Leave the mean of the gradients over the members, who count alike: hence the scale."""
        began = time.monotonic()
        (loss * step.scale).backward()
        for parameter, place in self._trains:
            if parameter.grad is None:
                place.zero_()
            else:
                place.copy_(parameter.grad)
        return time.monotonic() - began

    def together(self, part: float) -> float:
        """The sum of the members' parts of the loss. Nobody has it before all have their gradients."""
        total = torch.tensor([part], dtype=torch.float64)
        distributed.all_reduce(total)
        return float(total)

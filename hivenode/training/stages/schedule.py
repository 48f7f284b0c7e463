"""The order in which a stage works on the small batches of a step."""

from __future__ import annotations

from enum import Enum

from hivenode.spec.split import split


class Pass(Enum):
    forward = "forward"
    backward = "backward"


Work = tuple[Pass, int]


def one_forward_one_backward(stage: int, stages: int, count: int) -> tuple[Work, ...]:
    """The 1F1B schedule (Narayanan et al., "PipeDream: generalized pipeline parallelism", SOSP 2019; with a flush at
    the step's end as in Megatron-LM, arXiv 2104.04473): a stage at most `stages - stage` small batches ahead of its
    backward passes, so it never keeps the activations of more.

    Args:
        stage: place in the line, 0 first.
        stages: length of the line.
        count: small batches of the step.
    """
    ahead = min(count, stages - stage - 1)
    order: list[Work] = [(Pass.forward, number) for number in range(ahead)]
    for number in range(count - ahead):
        order += [(Pass.forward, ahead + number), (Pass.backward, number)]
    order += [(Pass.backward, number) for number in range(count - ahead, count)]
    return tuple(order)


def small_batches(samples: int, size: int) -> tuple[range, ...]:
    """A batch of `samples` in as few parts of at most `size` as there can be, as even as can be: no more than two
    sizes, since the model is traced once for each."""
    parts = -(-samples // size)
    return split(samples, [1.0] * parts) if parts else ()

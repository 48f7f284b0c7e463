"""Batch normalisation over several members' samples is that of all the samples at one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import nn

from hivenode.training.frameworks.torch_statistics import Statistics, together

SHAPES = {"images": (5, 4, 4), "values": (5,)}


def around(members: int) -> list[Callable[[np.ndarray, int], np.ndarray]]:
    """What gathers over so many threads."""
    barrier, given = Barrier(members, timeout=20), [np.zeros(0, np.float32)] * members

    def of(member: int) -> Callable[[np.ndarray, int], np.ndarray]:
        def gather(own: np.ndarray, place: int) -> np.ndarray:
            assert place > 0
            given[member] = own
            barrier.wait()
            found = np.stack(given)
            barrier.wait()
            return found

        return gather

    return [of(member) for member in range(members)]


def module(kind: str) -> nn.Sequential:
    torch.manual_seed(3)
    if kind == "values":
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=None), nn.Tanh(), nn.Linear(6, 2))
    return nn.Sequential(
        nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4, affine=False),
        nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def trained(own: nn.Sequential, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Samples' mean loss, backwards. The gradient with respect to the samples."""
    x = x.clone().requires_grad_()
    (own(x) - wanted).square().mean().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("parts", [(7, 5), (8, 3, 1), (12, 0)])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_members_normalise_what_they_have_as_one_batch(kind: str, parts: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    x = torch.from_numpy(generator.normal(3.0, 2.0, (12, *SHAPES[kind])).astype(np.float32))
    wanted = torch.from_numpy(generator.normal(size=(12, 2)).astype(np.float32))
    whole = module(kind)
    slope = trained(whole, x, wanted)
    members = [copy.deepcopy(module(kind)) for _ in parts]
    starts = np.cumsum([0, *parts])

    def run(place: int, statistics: Statistics) -> torch.Tensor:
        torch.set_num_threads(1)
        part = slice(starts[place], starts[place + 1])
        statistics.counted = parts[place] > 0
        if not statistics.counted:
            return trained(members[place], torch.zeros_like(x[:1]), wanted[:1])[:0]
        return trained(members[place], x[part], wanted[part])

    made = [together(member, gather) for member, gather in zip(members, around(len(parts)), strict=True)]
    with ThreadPoolExecutor(len(parts)) as threads:
        slopes = list(threads.map(run, range(len(parts)), [each for each in made if each is not None]))
    shares = [part / 12 for part in parts]
    weighted = [own * share for own, share in zip(slopes, shares, strict=True)]
    assert torch.allclose(torch.cat(weighted), slope, atol=1e-6)
    for name, parameter in whole.named_parameters():
        grads = [dict(member.named_parameters())[name].grad for member in members]
        mean = sum(grad * share for grad, share in zip(grads, shares, strict=True) if share)
        assert torch.allclose(mean, parameter.grad, atol=1e-6), name
    for name, buffer in whole.named_buffers():
        for member in members:
            assert torch.allclose(dict(member.named_buffers())[name], buffer, atol=1e-5), name


def test_numbers_that_are_not_finite_are_sent_to_nobody_and_told_to_all() -> None:
    members = [copy.deepcopy(module("values")) for _ in range(2)]
    sent: list[np.ndarray] = []

    def watched(gather: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[np.ndarray, int], np.ndarray]:
        def run(own: np.ndarray, place: int) -> np.ndarray:
            sent.append(own)
            return gather(own, place)

        return run

    for member, gather in zip(members, around(2), strict=True):
        together(member, watched(gather))
    x = [torch.ones(3, 5), torch.full((3, 5), float("inf"))]
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda member, own: member(own), members, x))
    assert all(torch.isnan(each).all() for each in made)
    assert all(np.isfinite(own).all() for own in sent)


def test_a_model_that_is_asked_goes_by_what_it_remembers() -> None:
    own = module("values")
    assert together(own, lambda own, place: pytest.fail("nobody is asked")) is not None
    assert own.eval()(torch.zeros(2, 5)).shape == (2, 2)
    assert together(nn.Linear(2, 2), lambda own, place: own) is None

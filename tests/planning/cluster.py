"""Machines and jobs for the planner's tests."""

from __future__ import annotations

from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.workload import Layer, Workload

GIB = 2**30


def node(
    number: int,
    gigaflops: float = 100.0,
    *,
    memory_gib: float = 8.0,
    bandwidth: float = 1e8,
    frameworks: tuple[str, ...] = ("torch",),
    running: int = 0,
    paused: str = "",
    offers: tuple[str, ...] = (),
    versions: dict[str, str] | None = None,
    bf16: bool = False,
    fp16: bool = False,
) -> NodeProfile:
    return NodeProfile(
        node=f"{number:02d}".ljust(32, "a"),
        flops=gigaflops * 1e9,
        memory_bytes=int(memory_gib * GIB),
        cores=4,
        bandwidth=bandwidth,
        frameworks=frameworks,
        running=running,
        paused=paused,
        name=f"node{number}",
        offers=offers,
        versions=versions or {},
        bf16=bf16,
        fp16=fp16,
    )


def cluster(*nodes: NodeProfile, round_trip: float = 0.001) -> ClusterView:
    """All pairs as near."""
    return ClusterView(nodes, {(a.node, b.node): round_trip for i, a in enumerate(nodes) for b in nodes[i + 1 :]})


def workload(
    *,
    parameters: int = 1_000_000,
    flops: float = 1e9,
    batch: int = 64,
    samples: int = 6400,
    epochs: int = 1,
    optimizer: str = "sgd",
    layers: int = 10,
    activation: int = 10_000,
) -> Workload:
    """`layers` equal layers. `flops` per sample, forward and backward."""
    each = Layer(parameters // layers, flops / layers, activation)
    return Workload(
        parameters=parameters,
        flops_per_sample=flops,
        activation_bytes_per_sample=activation * layers,
        samples=samples,
        batch_size=batch,
        epochs=epochs,
        optimizer=optimizer,
        sample_bytes=100,
        layers=(each,) * layers,
    )

"""What the nodes of a data-parallel job average by: the exchange, or torch.distributed where plaintext is trusted."""

from __future__ import annotations

from collections.abc import Sequence

from hivenode.planning.profile import NodeProfile
from hivenode.planning.workload import Workload
from hivenode.spec.networks import within
from hivenode.spec.values import Engine, Strategy


def distrust(nodes: Sequence[NodeProfile]) -> str:
    """Why these nodes may not speak in plaintext with each other; "" if they may: all trust the addresses of all."""
    for node in nodes:
        if not node.trusted:
            return f"{node.label} trusts no subnet (training.trusted_subnets)"
        for other in nodes:
            if not within(other.address, node.trusted):
                whose = "its own address" if other is node else f"the address of {other.label}"
                return f"{node.label} does not trust {whose}, {other.address or 'which it does not say'}"
    return ""


def trusting(nodes: Sequence[NodeProfile]) -> list[NodeProfile]:
    """The most nodes found that may speak in plaintext with each other, in the order given."""
    best: list[NodeProfile] = []
    for first in nodes:
        found = [first]
        for node in nodes:
            if node is not first and not distrust([*found, node]):
                found.append(node)
        if not distrust(found) and len(found) > len(best):
            best = found
    return sorted(best, key=list(nodes).index)


def barred(workload: Workload, nodes: Sequence[NodeProfile]) -> str:
    """Why torch.distributed cannot average this job among these nodes; "" if it can."""
    return workload.not_by_torch or distrust(nodes)


def unused(workload: Workload, strategy: Strategy) -> str:
    """What is said where a job asks for torch.distributed and another strategy than data-parallel was chosen."""
    if workload.engine != Engine.torch or strategy is Strategy.data_parallel:
        return ""
    why = "one node has nobody to average with" if strategy is Strategy.single_node else f"{strategy} does without it"
    return f'The job asks for torch.distributed (training.engine = "torch"), but it is not used: {why}.'


def reason(workload: Workload, nodes: Sequence[NodeProfile], engine: Engine, ours: str, theirs: str) -> str:
    """Why nodes that were chosen average by what they do, in a sentence.

    Args:
        ours, theirs: what the exchange adds to a step, and what torch.distributed adds, for people.
    """
    asked = ", as the job asks" if workload.engine == engine else ""
    if engine is Engine.torch:
        return (
            f"They average by torch.distributed (gloo, unencrypted, on subnets that all {len(nodes)} trust){asked}: "
            f"begun while gradients are still computed, it adds about {theirs} to a step, the exchange {ours}."
        )
    if asked:
        return f"They average by the exchange, encrypted{asked}."
    if why := barred(workload, nodes):
        return f"They average by the exchange, encrypted; torch.distributed cannot: {why}."
    return f"They average by the exchange, encrypted: torch.distributed would be no faster ({theirs} a step)."

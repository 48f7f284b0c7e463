"""What the nodes of a data-parallel plan average by, and what is said of it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hivenode.errors import InvalidInput
from hivenode.planning.engines import distrust, trusting
from hivenode.planning.planner import plan
from hivenode.planning.profile import NodeProfile
from hivenode.planning.qtable import Experience
from hivenode.planning.workload import Workload
from hivenode.spec.job import JobSpec, PlacementSpec
from hivenode.spec.values import Engine, Plan, Strategy
from tests.planning.cluster import cluster, node, workload

BUILT = frozenset({Strategy.single_node, Strategy.data_parallel})
HOME = ("192.168.1.0/24",)


def at(number: int, trusted: tuple[str, ...] = HOME, address: str = "") -> NodeProfile:
    return replace(node(number), trusted=trusted, address=address or f"192.168.1.{number}")


def planned(job: Workload, *nodes: NodeProfile, strategy: str = "data_parallel") -> Plan:
    placement = PlacementSpec(strategy=strategy)
    return plan(job, placement, cluster(*nodes), Experience(), rng=random.Random(0), epsilon=0.0, runnable=BUILT)


def big(**more: object) -> Workload:
    return replace(workload(flops=5e9), **more)  # type: ignore[arg-type]


def test_where_all_trust_all_torch_averages_and_the_plan_says_why() -> None:
    made = planned(big(), at(1), at(2))
    assert made.engine is Engine.torch
    assert "torch.distributed (gloo, unencrypted" in made.engine_reason
    exchanged = planned(big(engine="exchange"), at(1), at(2))
    assert exchanged.engine is Engine.exchange
    assert "as the job asks" in exchanged.engine_reason
    assert made.predicted_seconds < exchanged.predicted_seconds


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ((node(1), node(2)), "node1 trusts no subnet (training.trusted_subnets)"),
        ((at(1), at(2, trusted=())), "node2 trusts no subnet"),
        ((at(1), at(2, address="10.0.0.2")), "node1 does not trust the address of node2, 10.0.0.2"),
        ((at(1), at(2, trusted=("10.0.0.0/8",))), "node2 does not trust the address of node1, 192.168.1.1"),
        ((at(1, trusted=("192.168.1.2/32",)), at(2)), "node1 does not trust its own address, 192.168.1.1"),
        ((at(1), at(2, address="birch.local")), "node1 does not trust the address of node2, birch.local"),
        ((at(1, trusted=(*HOME, "fd00::/8"), address="fd00::1"), at(2)), "node2 does not trust the address of node1"),
    ],
)
def test_elsewhere_the_exchange_averages_and_the_plan_says_why(nodes: tuple[NodeProfile, ...], why: str) -> None:
    made = planned(big(), *nodes)
    assert made.engine is Engine.exchange
    assert why in made.engine_reason
    with pytest.raises(InvalidInput, match="is refused, since its traffic is not encrypted") as refused:
        planned(big(engine="torch"), *nodes)
    assert why in refused.value.sentence
    assert "training.trusted_subnets" in refused.value.fix


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({"sync": "local"}, 'sync is "local"'),
        ({"sync": "accumulate"}, 'sync is "accumulate"'),
        ({"codec": "int8"}, 'codec is "int8"'),
        ({"codec": "auto"}, 'codec is "auto"'),
    ],
)
def test_what_torch_cannot_do_the_exchange_does(training: dict[str, str], why: str) -> None:
    spec = JobSpec.model_validate({"name": "x", "training": training})
    made = planned(big(not_by_torch=spec.training.not_by_torch), at(1), at(2))
    assert made.engine is Engine.exchange
    assert why in made.engine_reason
    with pytest.raises(ValueError, match='engine = "torch" cannot do this'):
        JobSpec.model_validate({"name": "x", "training": {**training, "engine": "torch"}})


@pytest.mark.parametrize(
    "given",
    [
        {"framework": "keras"},
        {"placement": {"strategy": "pipeline_parallel"}},
    ],
)
def test_a_job_that_asks_for_torch_where_it_has_no_place_is_told(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r'training.engine = "torch" is for'):
        JobSpec.model_validate({"name": "x", "training": {"engine": "torch"}, **given})


def test_a_job_that_asks_for_torch_leaves_out_who_is_not_trusted() -> None:
    nodes = (at(1), at(2, trusted=()), at(3))
    assert [each.name for each in trusting(nodes)] == ["node1", "node3"]
    made = planned(big(engine="torch"), *nodes)
    assert {share.node for share in made.shares} == {nodes[0].node, nodes[2].node}
    assert made.engine is Engine.torch
    assert "as the job asks" in made.engine_reason


def test_one_node_averages_with_nobody() -> None:
    made = planned(big(engine="torch"), at(1), strategy="auto")
    assert made.strategy is Strategy.single_node
    assert made.engine is Engine.exchange
    assert "it is not used: one node has nobody to average with" in made.engine_reason
    assert not planned(big(), at(1), strategy="auto").engine_reason
    assert distrust([at(1)]) == ""

"""What a plan means for a job, node by node."""

from __future__ import annotations

import math

import msgspec

from hivenode.data import sources
from hivenode.jobs.proposals import FITTED
from hivenode.models import compositions
from hivenode.planning.breakdown import Divided, coordination, fractions, subtasks
from hivenode.spec.breakdown import Breakdown
from hivenode.spec.job import JobSpec
from hivenode.spec.split import held_out
from hivenode.spec.values import Plan


def break_down(plan: Plan, spec: JobSpec) -> Breakdown:
    """Raises InvalidInput for a declaration that this version does not know."""
    plan = _scaled(plan)
    divided = _divided(plan, spec)
    samples, batch = None, spec.training.batch_size
    if spec.data.kind != "private":
        samples = (whole := sources.information(spec.data).samples) - held_out(whole, spec.data.test_fraction)
        batch = samples if divided in ("members", "trees") else min(batch, samples)
    return Breakdown(
        **msgspec.structs.asdict(plan),
        subtasks=subtasks(plan, samples=samples, batch_size=batch, divided=divided),
        coordination=coordination(plan, divided, spec.training),
    )


def _scaled(plan: Plan) -> Plan:
    """With shares that sum to 1 also where nodes have come to those that were planned."""
    if math.isclose(math.fsum(share.weight for share in plan.shares), 1.0):
        return plan
    weights = fractions([share.weight for share in plan.shares])
    shares = (msgspec.structs.replace(s, weight=weight) for s, weight in zip(plan.shares, weights, strict=True))
    return msgspec.structs.replace(plan, shares=tuple(shares))


def _divided(plan: Plan, spec: JobSpec) -> Divided:
    kind = compositions.entry_of(spec.model).kind if spec.framework == "sklearn" else ""
    if kind in FITTED:
        return "members" if kind == "members" else "trees"
    return "layers" if plan.staged else "samples"

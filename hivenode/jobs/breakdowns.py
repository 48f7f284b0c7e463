"""What a plan means for a job, node by node."""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from hivenode.data import sources
from hivenode.jobs.proposals import FITTED
from hivenode.models import compositions
from hivenode.planning.breakdown import Divided, coordination, fractions, subtasks
from hivenode.spec.breakdown import Breakdown
from hivenode.spec.job import JobSpec
from hivenode.spec.split import held_out
from hivenode.spec.values import Plan

FITTED_BY = frozenset({"seed", "engine", "checkpoint_every_steps"})
"""What of `TrainingSpec` counts for an estimator that does not learn by steps."""
OWN_RULES = frozenset({
    "optimizer", "learning_rate", "momentum", "weight_decay", "schedule", "warmup_steps", "final_learning_rate",
    "clip_norm", "outer_learning_rate", "outer_momentum", "mixing", "precision",
})  # fmt: skip
"""What does not for one that does."""


def break_down(plan: Plan, spec: JobSpec) -> Breakdown:
    """Raises InvalidInput for a declaration that this version does not know."""
    plan = _scaled(plan)
    divided = _divided(plan, spec)
    samples, batch = None, spec.training.batch_size
    if spec.data.kind != "private":
        samples = (whole := sources.information(spec.data).samples) - held_out(whole, spec.data.test_fraction)
        batch = min(batch, samples) if divided in ("samples", "layers") else samples
    return Breakdown(
        **msgspec.structs.asdict(plan),
        subtasks=subtasks(plan, samples=samples, batch_size=batch, divided=divided),
        coordination=coordination(plan, divided, spec.training),
    )


def unused(spec: JobSpec, given: Collection[str]) -> str:
    """A sentence on what of a job's section training its estimator takes no notice of; "" if there is nothing.

    Args:
        given: names of the fields that a person has set.
    """
    if spec.framework != "sklearn":
        return ""
    kind = compositions.entry_of(spec.model).kind
    if kind in FITTED:
        idle = set(given) - (FITTED_BY - {"checkpoint_every_steps"} if kind == "whole" else FITTED_BY)
    else:
        idle = set(given) & OWN_RULES
    if not idle:
        return ""
    return f"{spec.model.name} takes no notice of training.{', training.'.join(sorted(idle))}; it goes by model.params."


def _scaled(plan: Plan) -> Plan:
    """With shares that sum to 1 also where nodes have come to those that were planned."""
    if math.isclose(math.fsum(share.weight for share in plan.shares), 1.0):
        return plan
    weights = fractions([share.weight for share in plan.shares])
    shares = (msgspec.structs.replace(s, weight=weight) for s, weight in zip(plan.shares, weights, strict=True))
    return msgspec.structs.replace(plan, shares=tuple(shares))


def _divided(plan: Plan, spec: JobSpec) -> Divided:
    kind = compositions.entry_of(spec.model).kind if spec.framework == "sklearn" else ""
    if kind == "whole" or (kind in FITTED and spec.data.kind == "private"):
        return "nothing"
    if kind in FITTED:
        return "members" if kind == "members" else "trees"
    return "layers" if plan.staged else "samples"

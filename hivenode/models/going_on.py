"""Which estimators of the catalogue a job may go on with, and what its data have to be for that. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.card import ModelCard
from hivenode.models.compositions import composed, entry_of
from hivenode.models.estimators import arguments
from hivenode.spec.model import ModelSpec
from hivenode.spec.section import Scalar

TREES = "n_estimators"


def going_on(reference: str, found: ModelSpec, params: Mapping[str, Scalar]) -> ModelSpec:
    """What a job trains that goes on with an estimator of the catalogue.

    Args:
        reference: its name there.
        params: that the job gives: of a forest how many trees it is to have in all; of others none.

    Raises:
        InvalidInput: it cannot be gone on with, or not so.
    """
    kind, name = entry_of(found).kind, found.name
    if kind == "trees":
        kept = int(arguments(found.source, found.params)[TREES])
        wanted = params.get(TREES, kept)
        if set(params) - {TREES} or isinstance(wanted, bool) or not isinstance(wanted, int) or wanted <= kept:
            raise InvalidInput(
                f"{reference} is a {name} of {kept} trees, which can be given more, and nothing else.",
                fix=f"Give how many it is to have in all, such as params = {{ {TREES} = {2 * kept} }}.",
            )
        return found.model_copy(update={"params": {**found.params, TREES: wanted}})
    if kind not in ("steps", "sums"):
        what = "is made of others that are" if composed(found) else "is"
        raise InvalidInput(
            f"{reference} is {found.source}, which {what} fitted in one piece, to all the data there are, and not gone "
            "on with.",
            fix=f"Name {found.source} itself: it is fitted anew. Those that learn by batches, and forests, go on.",
        )
    if params:
        raise InvalidInput(
            f"{reference} goes on with the params it was made with, and the job gives {', '.join(params)[:200]}.",
            fix=f"Leave model.params out, or name {found.source} itself: it is fitted anew.",
        )
    return found


def fits(card: ModelCard, model: ModelSpec, info: DataInfo) -> None:
    """Raises InvalidInput: what an estimator has learnt is of another kind than the job's data, or than its model."""
    known = card.info
    if card.model.source != model.source:
        raise InvalidInput(
            f"The weights given are of {card.model.source[:64]}, and the job trains {model.source}.",
            fix="Give those of the same estimator.",
        )
    if known.features != info.features:
        raise InvalidInput(
            f"The {model.name} to go on with knows samples of {known.features} values, and {info.source} has "
            f"{info.features}.",
            fix="Give data with the same columns.",
        )
    task = entry_of(model).task
    named = task == "classification" and bool(info.labels)  # of shared data a daemon knows their number alone
    if task == "clustering" or (known.outputs == info.outputs and not (named and known.labels != info.labels)):
        return
    if not named:
        what = "classes" if task == "classification" else "values to predict"
        raise InvalidInput(
            f"The {model.name} to go on with knows {known.outputs} {what}, and {info.source[:64]} has {info.outputs}.",
            fix="Give data with as many.",
        )
    new, gone = [n for n in info.labels if n not in known.labels], [n for n in known.labels if n not in info.labels]
    differ = [f"also has {', '.join(new[:5])}"] if new else []
    differ += [f"lacks {', '.join(gone[:5])}"] if gone else []
    raise InvalidInput(
        f"The {model.name} to go on with knows {known.outputs} classes, and {info.source} "
        f"{' and '.join(differ) or 'has them in another order'}.",
        fix="Give data of the same classes, with a sample of each.",
    )

"""What an estimator of the catalogue has come to, for a job that goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hivenode.data.dataset import Dataset
from hivenode.errors import InvalidInput, Unavailable
from hivenode.models.card import ModelCard
from hivenode.models.compositions import entry_of
from hivenode.models.going_on import fits
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.training import modelfile
from hivenode.training.frameworks.estimator_model import KEPT
from hivenode.training.frameworks.model import Floats
from hivenode.training.pooling import Common, scaled


@dataclass(frozen=True)
class Earlier:
    """Attributes:
    tensors: all arrays of its file.
    """

    card: ModelCard
    tensors: Mapping[str, Floats]

    def kept(self, name: str) -> Floats:
        """Raises InvalidInput: its file has been written without."""
        found = self.tensors.get(KEPT + name)
        if found is None:
            raise InvalidInput(
                f"The {self.card.model.name} to go on with was kept without what it takes to go on.",
                fix=f"Name {self.card.model.source} itself: it is fitted anew.",
            )
        return found

    def scaled(self, data: Dataset) -> Dataset:
        """Data on the scale by which it has learnt."""
        inputs, targets = self.card.normalisation, self.card.targets
        if (inputs, targets) == (data.normalisation, data.targets):
            return data
        if entry_of(self.card.model).task == "clustering":
            targets = data.targets
        return scaled(data, Common(inputs, targets, 1), data.info.samples)


def earlier(model: ModelSpec, data: Dataset, resources: Resources, limit_bytes: int) -> Earlier | None:
    """None where the job begins anew.

    Raises:
        Unavailable: the file is not here.
        Corrupted: it is no model.
        InvalidInput: it does not fit the data.
    """
    if not model.weights:
        return None
    path = resources.blobs.get(model.weights.removeprefix("blob:").partition("/")[0])
    if path is None:
        raise Unavailable(f"The model {model.weights[:24]} is not here.", fix="Start a node that holds it.")
    card, tensors = modelfile.read(Path(path), limit_bytes)
    fits(card, model, data.info)
    return Earlier(card, tensors)

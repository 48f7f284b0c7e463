"""What is known of a data set without its values: all that a model has to fit, and a planner needs."""

from __future__ import annotations

from math import prod
from typing import Annotated

import msgspec

from hivenode.spec.data import Task

MAX_CLASSES = 100_000
MAX_LABEL = 200

Label = Annotated[str, msgspec.Meta(max_length=MAX_LABEL)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**40)]


class DataInfo(msgspec.Struct, frozen=True):
    """One data set.

    Attributes:
        samples: in both parts, training and held out.
        input_shape: of one sample: (channels, height, width) for images, (length,) for text, (values,) for tables. For
            text_to_text, twice the length: the text given, then what is written, begun by padding and one token late.
        outputs: width of what a model puts out: classes, values to predict, or the vocabulary.
        labels: names of the outputs, in their order; empty where there are none (language, reconstruction).
        vocabulary: inputs are whole numbers below this; 0: they are float32.
        padding: the token that fills samples shorter than the others. For text_to_text, the last of the vocabulary
            ends what is written.
    """

    source: Annotated[str, msgspec.Meta(max_length=4096)]
    samples: Size
    input_shape: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=4)]
    outputs: Size
    labels: Annotated[tuple[Label, ...], msgspec.Meta(max_length=MAX_CLASSES)]
    task: Task
    vocabulary: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    padding: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0

    @property
    def features(self) -> int:
        """Values in one flattened sample."""
        return prod(self.input_shape)

    @property
    def sample_bytes(self) -> int:
        """One sample as a worker holds it: float32, or 8 bytes a token."""
        return (8 if self.vocabulary else 4) * self.features

"""Where a configuration comes from: JSON, or the files that Keras saves, read without Keras."""

from __future__ import annotations

from pathlib import Path

from hivenode.errors import Corrupted, InvalidInput
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.readers.keras import configuration, detects
from hivenode.models.identify.source import Source
from hivenode.models.keras_configs.allowed import examined
from hivenode.spec.model import ModelSpec

MAX_BYTES = 2 << 20
"""Of a .json. What is taken from it is shorter, and bounded by what a job may say."""
_HEAD = 4096


def embedded(model: ModelSpec) -> ModelSpec:
    """`keras:PATH` as `keras:config`, and all other models as they are.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it has no configuration, or not one that is taken.
        Corrupted, Exhausted: it is no sound file of its kind.
    """
    if model.kind != "keras" or model.source == "keras:config":
        return model
    config = examined(read(Path(model.name)))
    return ModelSpec.model_validate(model.model_copy(update={"source": "keras:config", "config": config}).model_dump())


def read(path: Path) -> Json:
    """The configuration in a `.json`, `.keras` or `.h5`. Raises as `embedded`."""
    with Source(path) as source:
        if detects(source.head(_HEAD), source):
            config = configuration(source)
            if config is None:
                raise InvalidInput(f"{path} has weights and no configuration.", fix="Save the model: model.save(...).")
            return config
        if source.size > MAX_BYTES:
            raise InvalidInput(f"{path} has {source.size} bytes; no configuration has.", fix="Give model.to_json().")
        raw = source.read(0, source.size)
    try:
        return jsons.table(raw, path.name)
    except Corrupted as error:
        raise InvalidInput(error.sentence, fix="Give what model.to_json() writes, a .keras or an .h5.") from None

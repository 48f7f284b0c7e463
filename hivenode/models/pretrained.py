"""A directory that `save_pretrained` of transformers has written: its configuration and the heads of its weights.

It is the owner's own, but made elsewhere: names in it lead to files in it, nothing is run, and no tensor is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivenode.errors import Corrupted, InvalidInput, NotFound
from hivenode.models.hub import no_code
from hivenode.models.identify.folder import Folder
from hivenode.models.identify.readers.safetensors import header
from hivenode.models.identify.readers.weight_files import PICKLED, shards
from hivenode.models.identify.report import Tensor, count
from hivenode.models.identify.source import Source

CONFIG = "config.json"
SINGLE = "model.safetensors"
ADAPTERS = "adapter_config.json"
INDEX = "model.safetensors.index.json"
UNTOLD = frozenset(
    ("id2label", "label2id", "architectures", "_name_or_path", "transformers_version", "task_specific_params",
     "dtype", "torch_dtype")
)  # fmt: skip
"""Fields that say nothing of a model's size."""
FLOATS = frozenset(("float64", "float32", "float16", "bfloat16"))
FINGERPRINT_BYTES = 1 << 20
"""Of the head and the end of a file."""
PIECES, PIECE_BYTES = 64, 64 << 10
"""Evenly spaced over each file: of a small one, all of it."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Attributes:
    path: the directory.
    config: what config.json says.
    files: names of its safetensors, ascending.
    tensors: what lies where in them, by name.
    """

    path: Path
    config: Mapping[str, Any]
    files: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @property
    def parameters(self) -> int:
        """Numbers that are trained, as far as the names of tensors tell."""
        kept = (tensor for tensor in self.tensors.values() if tensor.dtype in FLOATS and tensor.trainable is not False)
        return sum(count(tensor.shape) for tensor in kept)

    def told(self) -> bytes:
        """The configuration as JSON for nodes that have no such directory, without names of labels and the like."""
        return json.dumps({key: value for key, value in self.config.items() if key not in UNTOLD}).encode()

    def fingerprint(self) -> str:
        """Of the configuration, and of sizes, heads, ends and pieces of the weights: enough to tell one version from
        another.

        Raises:
            NotFound: a file has gone meanwhile.
        """
        found = hashlib.sha256()
        for name in (CONFIG, *self.files):
            with Source(self.path / name, name=name) as source:
                found.update(f"{name} {source.size} ".encode() + source.read(0, min(source.size, FINGERPRINT_BYTES)))
                end = max(0, source.size - FINGERPRINT_BYTES)
                found.update(source.read(end, source.size - end))
                for start in range(0, source.size, max(PIECE_BYTES, -(-source.size // PIECES))):
                    found.update(source.some(start, PIECE_BYTES))
        return found.hexdigest()


def look(path: Path) -> Pretrained:
    """Raises:
    NotFound: the directory, its configuration, its weights or one of their shards is not there.
    InvalidInput: it may not be looked at; it holds code, pickles alone, adapters or quantised numbers.
    Corrupted: a file is damaged, or leads out of the directory.
    """
    try:
        there = path.is_dir()
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}.", fix="Correct the path, or let this user enter what it is in."
        ) from error
    if not there:
        raise NotFound(
            f"There is no directory {path}.", fix="Put the model there, or correct models.directories of that node."
        )
    folder = Folder(path)
    if CONFIG not in folder:
        raise NotFound(f"{path} has no {CONFIG}.", fix="Write the model there with save_pretrained of transformers.")
    config = folder.json(CONFIG)
    no_code(config, f"{path}/{CONFIG}")
    if config.get("quantization_config"):
        raise InvalidInput(
            f"{path} holds quantised numbers ({CONFIG}: quantization_config), which are not trained.",
            fix="Give the model that it was made from.",
        )
    if ADAPTERS in folder:
        raise InvalidInput(
            f"{path} holds adapters of another model ({ADAPTERS}).",
            fix="Merge them into it with merge_and_unload of peft, and save the whole.",
        )
    if SINGLE in folder:
        files: Mapping[str, tuple[str, ...]] = {SINGLE: ()}
    elif INDEX in folder:
        files = shards(folder, INDEX)
    else:
        raise _without(folder)
    tensors: dict[str, Tensor] = {}
    for file in sorted(files):
        with Source(folder.within(file), name=f"{path}/{file}") as source:
            held = {tensor.name: tensor for tensor in header(source, file=file)[0]}
        if lost := [name for name in files[file] if name not in held]:
            raise Corrupted(
                f"{file} in {path} lacks {lost[0][:100]}, which {INDEX} says is in it.",
                fix="Fetch the shard and the index again.",
            )
        if twice := sorted(held.keys() & tensors.keys()):
            raise Corrupted(
                f"{file} and {tensors[twice[0]].file} in {path} both have {twice[0][:100]}.",
                fix="Fetch the shards and the index again.",
            )
        tensors |= held
    return Pretrained(path, config, tuple(sorted(files)), tensors)


def _without(folder: Folder) -> NotFound | InvalidInput:
    pickles = sorted(name for name in folder.names if name.endswith(PICKLED) and "training_args" not in name)
    if pickles:
        return InvalidInput(
            f"{folder.path} has its weights as {pickles[0]}, a pickle, and pickles are never loaded.",
            fix=f"Turn them into plain weights on your own machine: hivenode convert {folder.path} DIR; then name DIR "
            "in models.directories.",
        )
    return NotFound(f"{folder.path} has no {SINGLE} and no {INDEX}.", fix="Fetch it, or the index and its shards.")

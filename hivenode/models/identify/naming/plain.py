"""State dicts no other table knows: what the shapes alone say, as a guess where they do."""

from __future__ import annotations

import re
from itertools import pairwise

from hivenode.models.identify.naming.state_dicts import Guess, Names, Rule, Shape
from hivenode.models.identify.report import FREE, Confidence, Port

_LATER = re.compile(r"emb|pos|token", re.IGNORECASE)


def _stack(names: Names) -> list[tuple[str, Shape]]:
    return [(name, shape) for name, shape in names.matrices() if name.endswith("weight")]


def _attends(name: str) -> bool:
    """By ends and an order of parts, not by a pattern: what a pattern leaves open, it tries."""
    if not name.endswith("weight"):
        return False
    before = name.removesuffix("weight")
    after = before.partition("attention")[2]
    return (
        before.endswith(("self_attn.in_proj_", "attn.qkv."))
        or "query" in after
        or "q_proj" in after
        or "q_proj" in before.partition("attn")[2]
    )


def transformer(names: Names) -> Guess | None:
    """Something with attention in it."""
    mark = next((name for name in names.shapes if _attends(name)), None)
    if mark is None:
        return None
    reads = any(_LATER.search(name) and len(shape) == 2 for name, shape in names.matrices())
    return Guess(mark, "nlp" if reads else None, None, "transformer", None, how=Confidence.guessed)


def convolutional(names: Names) -> Guess | None:
    """Filters over two axes: pictures, if the first takes 1, 3 or 4 channels."""
    stack = _stack(names)
    filters = [shape for _, shape in stack if len(shape) == 4]
    if not filters:
        waves = [shape for _, shape in stack if len(shape) == 3]
        if not waves:
            return None
        return Guess(f"filters over one axis {list(waves[0])}", None, None, "cnn", None, how=Confidence.guessed)
    dense = [shape for _, shape in stack if len(shape) == 2]
    pictures = filters[0][1] in (1, 3, 4)
    heads = _heads(stack)
    if pictures and len(heads) > 1:
        boxes = heads[0] == 2 and 4 in heads
        return Guess(
            f"filters {list(filters[0])} before heads of {', '.join(map(str, heads))} numbers",
            "computer_vision", "object_detection" if boxes else None, "cnn", None, how=Confidence.guessed,
            inputs=(Port("input", "float32", (FREE, filters[0][1], FREE, FREE)),),
        )  # fmt: skip
    return Guess(
        f"filters {list(filters[0])}" + (f" before a matrix {list(dense[-1])}" if dense else ""),
        "computer_vision" if pictures else None,
        "image_classification" if pictures and dense else None,
        "cnn",
        None,
        how=Confidence.guessed,
        inputs=(Port("input", "float32", (FREE, filters[0][1], FREE, FREE)),) if pictures else (),
        outputs=(Port("output", "float32", (FREE, dense[-1][0])),) if dense else (),
    )


def _heads(stack: list[tuple[str, Shape]]) -> list[int]:
    """Outputs of the last layers that all read the same: a score and a box from the same features, say."""
    heads: list[int] = []
    for _, shape in reversed(stack):
        if shape[1:] != stack[-1][1][1:] or shape[0] == shape[1]:
            break
        heads.append(shape[0])
    return heads[::-1]


def dense(names: Names) -> Guess | None:
    """Matrices one after the other, and nothing else: a network over rows of numbers, or a linear model."""
    stack = [(name, shape) for name, shape in _stack(names) if len(shape) == 2]
    if not stack or any(len(shape) > 2 for _, shape in names.matrices()):
        return None
    chained = all(before[0] == after[1] for (_, before), (_, after) in pairwise(stack))
    if not chained:
        return Guess(f"{len(stack)} matrices", None, None, "neural_network", None, how=Confidence.guessed)
    first, last = stack[0][1], stack[-1][1]
    return Guess(
        f"{len(stack)} matrices in a chain, {first[1]} in, {last[0]} out",
        "tabular",
        "regression" if last[0] == 1 else "classification",
        "linear" if len(stack) == 1 else "neural_network",
        None,
        how=Confidence.guessed,
        layers=len(stack),
        inputs=(Port("input", "float32", (FREE, first[1])),),
        outputs=(Port("output", "float32", (FREE, last[0])),),
    )


RULES: tuple[Rule, ...] = (transformer, convolutional, dense)

"""XGBoost's own formats: JSON and UBJSON, and the binary one that versions up to 3.0 wrote. None can hold code.

https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hivenode.errors import Corrupted
from hivenode.models.identify.formats import jsons, ubjson
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.report import FREE, Confidence, Port, Report, Tensor
from hivenode.models.identify.source import Source

UBJ = re.compile(rb"\{[iUIlL][\x00-\xff]{1,8}?(learner|version|Config|Model)[\[{]")
JSON = re.compile(rb'\s*\{\s*"(learner|version)"\s*:\s*[\[{]')
JSON_PROOF = (b'"gradient_booster"', b'"learner_model_param"', b'"feature_names"', b'"attributes"')
WHOLE_JSON = 24 << 20
"""Longer ones are told by their ends: weights as text lie between."""
END = 64 << 10
MOST_TREES = 1_000_000
_LEARNER = struct.Struct("<f I i i i I I I i")
_LEARNER_SIZE, _GBTREE_SIZE, _TREE_SIZE = 136, 160, 148
_TREE = struct.Struct("<6i")
_NODE, _STAT = 20, 16


@dataclass
class _Model:
    """What all formats say."""

    booster: str = ""
    objective: str = ""
    features: int | None = None
    classes: int = 0
    targets: int = 1
    version: str = ""
    kind: str = ""
    """`classifier`, `regressor` or `ranker`, if scikit-learn's interface was used."""
    names: list[str] = field(default_factory=list)
    trees: int | None = None
    nodes: int | None = None
    weights: Tensor | None = None
    evidence: str = ""
    rounds: int | None = None


def detects(head: bytes, source: Source) -> bool:
    if head.startswith(b"binf"):
        return source.size > _LEARNER_SIZE + 4
    if UBJ.match(head):
        return True
    return JSON.match(head) is not None and any(mark in head for mark in JSON_PROOF)


def read(source: Source) -> Report:
    report = Report(safe=True)
    head = source.head(64)
    if head.startswith(b"binf"):
        model, form = _binary(source), "xgboost_binary"
    elif UBJ.match(head):
        model, form = _document(ubjson.parse(Window(source, source.size, source.name), source.name)), "xgboost_ubj"
    else:
        model, form = _json(source), "xgboost_json"
    report.know(Confidence.read, "its first keys" if form != "xgboost_binary" else "binf", format=form)
    report.know(Confidence.read, form, framework="xgboost")
    _fill(report, model)
    return report


def describe_buffer(report: Report, source: Source) -> None:
    """Add what the buffer in a pickled Booster says; the format and what is known already stay.

    Raises:
        Corrupted: it is damaged.
    """
    head = source.head(64)
    if head.startswith(b"binf"):
        _fill(report, _binary(source))
    elif UBJ.match(head):
        _fill(report, _document(ubjson.parse(Window(source, source.size, source.name), source.name)))
    elif head[:1] == b"{":
        _fill(report, _document(jsons.table(source.read(0, source.size), source.name)))


def _fill(report: Report, model: _Model) -> None:
    """Put it into the report; a pickled estimator has said its class already."""
    linear = model.booster == "gblinear"
    report.know(
        Confidence.read, f"booster {model.booster}", architecture="linear" if linear else "tree_based", family="tabular"
    )
    task, name = _task(model)
    if "task" not in report.confidence or report.task is None:
        report.know(Confidence.inferred, f"objective {model.objective}", task=task)
    if report.model in (None, "Booster", "XGBModel"):
        how = "scikit_learn: " + model.kind if model.kind else f"objective {model.objective}"
        report.know(
            Confidence.inferred if model.kind else Confidence.read, how, model=name if model.kind else "Booster"
        )
    if model.features:
        report.know(Confidence.read, "num_feature", inputs=[Port("features", "float32", (FREE, model.features))])
    if task == "classification" and model.classes > 1:
        shape: tuple[int, ...] = (FREE, model.classes)
    else:
        shape = (FREE,) if model.targets <= 1 else (FREE, model.targets)
    report.know(
        Confidence.inferred, f"objective {model.objective}",
        outputs=[Port("probabilities" if task == "classification" else "prediction", "float32", shape)],
    )  # fmt: skip
    for key, value in (
        ("objective", model.objective), ("booster", model.booster), ("xgboost_version", model.version),
        ("trees", model.trees), ("nodes", model.nodes), ("boosting_rounds", model.rounds),
    ):  # fmt: skip
        if value not in (None, ""):
            report.hyperparameters[key] = value
    if model.classes > 1:
        report.hyperparameters["classes"] = model.classes
    if model.weights is not None:
        report.hold([model.weights], "weights")
    elif model.nodes is not None:
        report.know(
            Confidence.read, f"the nodes of its {model.trees} trees: a threshold or a value each",
            parameters=model.nodes,
        )  # fmt: skip


def _task(model: _Model) -> tuple[str | None, str]:
    """The task by the objective, and the class of scikit-learn's interface."""
    objective = model.objective
    by_kind = {
        "classifier": ("classification", "XGBClassifier"), "regressor": ("regression", "XGBRegressor"),
        "ranker": ("ranking", "XGBRanker"),
    }  # fmt: skip
    if model.kind in by_kind:
        return by_kind[model.kind]
    if objective.startswith(("binary:", "multi:")):
        return "classification", "XGBClassifier"
    if objective.startswith("rank:"):
        return "ranking", "XGBRanker"
    if objective.startswith("survival:"):
        return "survival_analysis", "Booster"
    if objective.startswith(("reg:", "count:")):
        return "regression", "XGBRegressor"
    return None, "Booster"


def _number(value: Any) -> int:
    """The whole number in a text, as XGBoost writes its parameters; 0 if there is none."""
    text = str(value)
    return int(text) if len(text) < 18 and text.isdecimal() else 0


def _document(document: Any) -> _Model:
    """From the tree of JSON or UBJSON."""
    whole = document.get("Model", document) if isinstance(document, dict) else {}
    learner = jsons.inner(whole, "learner")
    booster = jsons.inner(learner, "gradient_booster")
    model = _Model(booster=jsons.text(booster, "name") or "")
    if not model.booster:
        raise Corrupted("The XGBoost model lacks its booster.", fix="Fetch the file again, or save it again.")
    inner = jsons.inner(booster, "model") or jsons.inner(jsons.inner(booster, "gbtree"), "model")
    _parameters(model, learner)
    version = whole.get("version")
    if isinstance(version, list):
        model.version = ".".join(str(part) for part in version[:3])
    trees = inner.get("trees")
    if isinstance(trees, list):
        stated = _number(jsons.inner(inner, "gbtree_model_param").get("num_trees"))
        if stated != len(trees):
            raise Corrupted(
                f"The XGBoost model states {stated} trees and holds {len(trees)}.", fix="Fetch the file again."
            )
        model.trees = len(trees)
        model.nodes = sum(_nodes(jsons.inner(tree, "tree_param")) for tree in trees)
        rounds = inner.get("iteration_indptr")
        if isinstance(rounds, list) and rounds:
            model.rounds = len(rounds) - 1
    held = inner.get("weights")
    if isinstance(held, ubjson.Typed):
        model.weights = Tensor("weights", held.dtype, (held.count,), "", held.offset, held.nbytes)
    elif isinstance(held, list):
        model.weights = Tensor("weights", "float32", (len(held),))
    return model


def _nodes(tree: dict[str, Any]) -> int:
    """Learnt numbers of a tree: one a node, or one a split and a vector a leaf."""
    nodes = _number(tree.get("num_nodes")) - _number(tree.get("num_deleted"))
    vector = _number(tree.get("size_leaf_vector"))
    if vector > 1:
        leaves = (nodes + 1) // 2
        return nodes - leaves + leaves * vector
    return max(0, nodes)


def _parameters(model: _Model, learner: dict[str, Any]) -> None:
    """What stands beside the booster."""
    stated = jsons.inner(learner, "learner_model_param")
    model.features = _number(stated.get("num_feature")) or None
    model.classes = _number(stated.get("num_class"))
    model.targets = max(1, _number(stated.get("num_target")))
    model.objective = jsons.text(jsons.inner(learner, "objective"), "name") or ""
    model.names = jsons.texts(learner, "feature_names")
    own = jsons.text(jsons.inner(learner, "attributes"), "scikit_learn")
    if own and len(own) < 10_000:
        told = re.search(r'"_estimator_type"\s*:\s*"(\w{1,20})"', own)
        model.kind = told[1] if told else ""


class _TreeParameters(msgspec.Struct, frozen=True):
    num_nodes: str = "0"
    num_deleted: str = "0"
    size_leaf_vector: str = "0"


class _Tree(msgspec.Struct):
    tree_param: _TreeParameters = _TreeParameters()


class _Trees(msgspec.Struct):
    gbtree_model_param: dict[str, str] = {}
    trees: list[_Tree] | None = None
    weights: list[float] | None = None
    iteration_indptr: list[int] = []


class _Inner(msgspec.Struct):
    model: _Trees | None = None


class _Booster(msgspec.Struct):
    name: str
    model: _Trees | None = None
    gbtree: _Inner | None = None


class _Learner(msgspec.Struct):
    gradient_booster: _Booster
    learner_model_param: dict[str, str] = {}
    objective: dict[str, Any] = {}
    attributes: dict[str, str] = {}
    feature_names: list[str] = []


class _Whole(msgspec.Struct):
    learner: _Learner
    version: list[int] = []


def _json(source: Source) -> _Model:
    """From JSON: what is asked for is taken, the rest is passed over."""
    if source.size > WHOLE_JSON:
        return _long_json(source)
    try:
        whole = msgspec.json.decode(source.read(0, source.size), type=_Whole)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupted(
            f"{source.name} is no sound XGBoost model: {str(error)[:120]}.", fix="Fetch it again, or save it again."
        ) from None
    plain: dict[str, Any] = msgspec.to_builtins(whole)
    return _document(plain)


def _long_json(source: Source) -> _Model:
    """From both ends of a long JSON, whose keys are sorted: sizes first, then the trees, then the objective."""
    head, tail = source.head(END), source.tail(END)
    at = tail.rfind(b'"learner_model_param"')
    end = tail.rfind(b"}", 0, tail.rfind(b'"version"'))
    booster = re.findall(rb'"name"\s*:\s*"(gbtree|dart|gblinear)"', tail[:at])
    if at < 0 or end < at or not booster:
        raise Corrupted(
            f"{source.name} does not end as XGBoost's JSON does; it is cut short.", fix="Fetch the file again."
        )
    learner = jsons.table(b"{" + tail[at : end + 1], source.name)
    model = _Model(booster=booster[-1].decode())
    _parameters(model, learner)
    trees = re.search(rb'"num_trees"\s*:\s*"(\d{1,9})"', head)
    model.trees = int(trees[1]) if trees else None
    version = re.search(rb'"version"\s*:\s*\[(\d+),(\d+),(\d+)\]', tail)
    model.version = b".".join(version.groups()).decode() if version else ""
    told = re.search(rb'_estimator_type\\":\s*\\"(\w{1,20})', head)
    model.kind = told[1].decode() if told else ""
    return model


def _binary(source: Source) -> _Model:
    """From the binary format: fixed structures, then trees of 20 and 16 bytes a node.

    dmlc's `LearnerModelParamLegacy`, `GBTreeModelParam` and `TreeParam`, as in src/learner.cc and src/tree of 1.7.
    """
    window = Window(source, source.size, source.name)
    at = 4
    _, features, classes, attributes, metrics, major, minor, targets, _ = _LEARNER.unpack(
        window.read(at, _LEARNER.size)
    )
    at += _LEARNER_SIZE
    texts = []
    for _ in range(2):
        length = window.number(at, 8)
        if length > 256:
            raise window.broken(f"a name of {length} bytes")
        texts.append(window.read(at + 8, length).decode("ascii", "replace"))
        at += 8 + length
    model = _Model(texts[1], texts[0], features or None, max(0, classes), max(1, targets))
    model.version = f"{major}.{minor}"
    if model.booster == "gblinear":
        at += 4 * 34
        count = window.number(at, 8)
        if at + 8 + 4 * count > source.size:
            raise window.broken(f"{count} weights in {source.size} bytes")
        model.weights = Tensor("weights", "float32", (count,), "", at + 8, 4 * count)
        _binary_end(window, at + 8 + 4 * count, attributes, metrics)
        return model
    if model.booster not in ("gbtree", "dart"):
        raise window.broken(f"a booster called {model.booster[:40]}")
    trees = window.number(at, 4)
    at += _GBTREE_SIZE
    if trees > MOST_TREES or trees * _TREE_SIZE > source.size:
        raise window.broken(f"{trees} trees in {source.size} bytes")
    model.trees, model.nodes = trees, 0
    for _ in range(trees):
        _, nodes, deleted, _, _, vector = _TREE.unpack(window.read(at, _TREE.size))
        if nodes < 0 or not 0 <= deleted <= nodes or at + nodes * (_NODE + _STAT) > source.size:
            raise window.broken(f"a tree of {nodes} nodes at byte {at}")
        at += _TREE_SIZE + nodes * (_NODE + _STAT)
        if vector:
            at += 8 + 4 * window.number(at, 8)
        model.nodes += nodes - deleted
    at += 4 * trees
    if model.booster == "dart" and trees:
        at += 8 + 4 * window.number(at, 8)
    _binary_end(window, at, attributes, metrics)
    return model


def _binary_end(window: Window, at: int, attributes: int, metrics: int) -> None:
    """That what follows the trees or weights is there: pairs of texts, and the names of metrics.

    Raises:
        Corrupted: the file ends before.
    """
    for present, texts in ((attributes, 2), (metrics, 1)):
        if not present:
            continue
        entries = window.number(at, 8)
        if entries * texts * 8 > window.size:
            raise window.broken(f"{entries} attributes in {window.size} bytes")
        at += 8
        for _ in range(entries * texts):
            at += 8 + window.number(at, 8)
    if at > window.size:
        raise window.broken(f"it ends {at - window.size} bytes early")

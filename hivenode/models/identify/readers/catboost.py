"""CatBoost's own formats: CBM1, a length and a flat buffer, and JSON. They hold no code.

https://github.com/catboost/catboost/blob/master/catboost/libs/model/flatbuffers/model.fbs
"""

from __future__ import annotations

import re
from typing import Any

from hivenode.errors import Corrupted
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.flatbuffers import Buffer, Table
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.report import FREE, Confidence, Port, Report
from hivenode.models.identify.source import Source

MAGIC = b"CBM1"
HEADER = 8
TREES, INFO = 1, 2
"""Fields of `TModelCore`."""
DIMENSION, SPLITS, SIZES, CATEGORIES, FLOATS, LEAVES, STEPS = 0, 1, 2, 4, 5, 8, 10
"""Fields of `TModelTrees`."""
JSON = re.compile(rb'\s*\{\s*"(features_info|model_info|oblivious_trees|ctr_data)"\s*:')
_REGRESSION = ("RMSE", "MAE", "Quantile", "MAPE", "Poisson", "Tweedie", "Huber", "Expectile", "LogCosh", "Lq", "Rmse",
               "MultiQuantile", "MultiRMSE", "LogLinQuantile", "RMSEWithUncertainty")  # fmt: skip
_CLASSES = ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll", "MultiLogloss", "MultiCrossEntropy", "Focal")
_RANKS = ("YetiRank", "PairLogit", "QueryRMSE", "QuerySoftMax", "StochasticRank", "LambdaMart", "QueryCrossEntropy")


def detects(head: bytes, source: Source) -> bool:
    return head.startswith(MAGIC) or (
        JSON.match(head) is not None and (b'"float_features"' in head or b'"catboost_version_info"' in head)
    )


def read(source: Source) -> Report:
    report = Report(safe=True)
    if source.head(4) == MAGIC:
        report.know(Confidence.read, "CBM1", format="catboost_cbm", framework="catboost")
        describe_model(report, source)
    else:
        report.know(Confidence.read, "its first keys", format="catboost_json", framework="catboost")
        _json(report, jsons.table(source.read(0, source.size), source.name))
    return report


def describe_model(report: Report, source: Source) -> None:
    """Add what a model in CBM1 says; the class of a pickled estimator stays.

    Raises:
        Corrupted: damaged, or cut short.
    """
    header = source.read(0, HEADER)
    size = int.from_bytes(header[4:], "little")
    if header[:4] != MAGIC or HEADER + size > source.size:
        raise Corrupted(f"{source.name} is cut short: its core takes {size} bytes.", fix="Fetch the file again.")
    window = Window(source.part(HEADER, size), size, source.name)
    core = Buffer(window).root()
    trees = core.table(TREES)
    if trees is None:
        raise window.broken("it has no trees")
    parameters: dict[str, Any] = {}
    for pair in core.tables(INFO):
        key = pair.text(0)
        if key in ("params", "class_params"):
            parameters[key] = jsons.parse(_long_text(pair, window), f"{key} in {source.name}")
    dimension = trees.number(DIMENSION, 4, default=0)
    floats, categories = trees.vector(FLOATS, 4)[1], trees.vector(CATEGORIES, 4)[1]
    _fill(
        report,
        parameters.get("params"),
        parameters.get("class_params"),
        dimension,
        floats + categories,
        trees.vector(SIZES, 4)[1],
        trees.vector(SPLITS, 4)[1],
        trees.vector(LEAVES, 8)[1],
    )
    if trees.vector(STEPS, 4)[1]:
        report.hyperparameters["symmetric"] = False


def _long_text(pair: Table, window: Window) -> bytes:
    at, length = pair.vector(1, 1)
    return window.read(at, length)


def _json(report: Report, model: dict[str, Any]) -> None:
    info = jsons.inner(model, "model_info")
    features = jsons.inner(model, "features_info")
    held = model.get("oblivious_trees") or model.get("trees")
    trees = [tree for tree in held if isinstance(tree, dict)] if isinstance(held, list) else []
    splits = sum(len(tree["splits"]) for tree in trees if isinstance(tree.get("splits"), list))
    leaves = sum(len(tree["leaf_values"]) for tree in trees if isinstance(tree.get("leaf_values"), list))
    weights = sum(len(tree["leaf_weights"]) for tree in trees if isinstance(tree.get("leaf_weights"), list))
    wide = sum(len(part) for part in features.values() if isinstance(part, list))
    dimension = leaves // weights if weights and leaves % weights == 0 else 1
    _fill(report, info.get("params"), info.get("class_params"), dimension, wide, len(trees), splits, leaves)


def _fill(
    report: Report, params: Any, classes: Any, dimension: int, features: int, trees: int, splits: int, leaves: int
) -> None:
    loss = jsons.text(jsons.inner(params, "loss_function"), "type") or ""
    task = None
    if loss.startswith(_CLASSES):
        task, name = "classification", "CatBoostClassifier"
    elif loss.startswith(_RANKS):
        task, name = "ranking", "CatBoostRanker"
    elif loss.startswith(_REGRESSION):
        task, name = "regression", "CatBoostRegressor"
    else:
        name = "CatBoost"
    report.know(Confidence.read, "its trees", architecture="tree_based", family="tabular")
    if report.task is None:
        report.know(Confidence.inferred, f"loss function {loss}", task=task)
    if report.model is None or report.model == "CatBoost":
        report.know(Confidence.inferred, f"loss function {loss}", model=name)
    if features:
        report.know(Confidence.read, "its features", inputs=[Port("features", "float32", (FREE, features))])
    shape = (FREE,) if dimension <= 1 else (FREE, dimension)
    kind = "probabilities" if task == "classification" else "prediction"
    report.know(Confidence.inferred, f"loss function {loss}", outputs=[Port(kind, "float64", shape)])
    report.hyperparameters |= {"trees": trees, "splits": splits, "leaf_values": leaves}
    if loss:
        report.hyperparameters["loss_function"] = loss
    named = classes.get("class_names") if isinstance(classes, dict) else None
    if isinstance(named, list):
        report.hyperparameters["classes"] = len(named)
    report.know(Confidence.read, f"splits and leaf values of its {trees} trees", parameters=splits + leaves)

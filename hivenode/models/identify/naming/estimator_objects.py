"""From the state of an estimator, as pickles and skops keep it, to what it is."""

from __future__ import annotations

from collections.abc import Iterator

from hivenode.models.identify.formats.numpy_pickles import SCALAR, Array, array
from hivenode.models.identify.formats.pickles import Call, Global, Value, attributes, walk
from hivenode.models.identify.naming.estimators import (
    CLASSIFY,
    CLUSTER,
    DERIVED,
    ESTIMATORS,
    INNER,
    LEARNT,
    NEIGHBOURS,
    ODD,
    PREPARE,
    REDUCE,
    REGRESS,
    TEXT,
)
from hivenode.models.identify.report import FREE, Confidence, Port, Report, Tensor

DEEPEST = 16
MOST_TENSORS = 20_000
TREE = "sklearn.tree._tree.Tree"
PREDICTOR = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
ENSEMBLES = "estimators_"
FRAMEWORKS = {"sklearn": "scikit-learn"}


def path_of(value: Value) -> str:
    """The class of an instance, also where protocols 0 and 1 rebuild it through copyreg; "" for other nodes."""
    if not isinstance(value, Call):
        return ""
    if value.path in {"copyreg._reconstructor", "copy_reg._reconstructor"} and value.args:
        return value.args[0].path if isinstance(value.args[0], Global) else ""
    return value.path


def short(value: Value) -> str:
    """The name of an instance's class."""
    return path_of(value).rpartition(".")[2]


def is_estimator(value: Value) -> bool:
    return path_of(value) in ESTIMATORS


def steps_of(value: Value) -> list[Value]:
    """The estimators of a pipeline, in order; empty for anything else."""
    if short(value) != "Pipeline":
        return []
    steps = attributes(value).get("steps")
    if not isinstance(steps, (list, tuple)):
        return []
    return [step[1] for step in steps if isinstance(step, (list, tuple)) and len(step) == 2 and is_estimator(step[1])]


def chain_of(value: Value) -> list[Value]:
    """An estimator and what it wraps, from the outside in: the last is the one that does the work."""
    chain = [value]
    while len(chain) < DEEPEST:
        outer = chain[-1]
        steps = steps_of(outer)
        inner: Value = steps[-1] if steps else None
        if not steps and ESTIMATORS[path_of(outer)].architecture is None:
            own = attributes(outer)
            inner = next((own[key] for key in INNER if is_estimator(own.get(key))), None)
        if inner is None or any(inner is known for known in chain):
            break
        chain.append(inner)
    return chain


def describe(report: Report, value: Value, name: str) -> Value:
    """Say what an estimator is.

    Args:
        value: an instance of one of `ESTIMATORS`.
        name: of the file, for errors.

    Returns:
        The one that does the work: the last step of a pipeline, the best of a search.
    """
    chain = chain_of(value)
    worker = chain[-1]
    path = path_of(worker)
    kind = ESTIMATORS[path]
    package = path.partition(".")[0]
    report.know(Confidence.read, f"the class {path}", model=short(worker), framework=FRAMEWORKS.get(package, package))
    task = next((known for known in (ESTIMATORS[path_of(part)].task for part in chain) if known), None)
    if task == PREPARE:
        task = kind.task or task
    report.know(Confidence.inferred, f"the class {path}", family="tabular", task=task, architecture=kind.architecture)
    if len(chain) > 1:
        report.hyperparameters["wrapped_by"] = " > ".join(short(part) for part in chain[:-1])
    _pipeline(report, chain)
    _settings(report, value, worker)
    _ports(report, chain, task, name)
    _sizes(report, value, worker, name)
    return worker


def _pipeline(report: Report, chain: list[Value]) -> None:
    """The steps of a pipeline; one that begins with words makes it a model of text."""
    for part in chain:
        steps = steps_of(part)
        if steps:
            report.hyperparameters["steps"] = " > ".join(short(step) for step in steps)
    first = next((short(steps[0]) for part in chain if (steps := steps_of(part))), short(chain[-1]))
    if first in TEXT:
        evidence = f"it begins with {first}"
        task = f"text_{report.task}" if report.task in (CLASSIFY, REGRESS, CLUSTER) else report.task
        report.know(Confidence.inferred, evidence, family="nlp", task=task, inputs=[Port("text", "str", (FREE,))])


def _settings(report: Report, outer: Value, worker: Value) -> None:
    version = attributes(outer).get("_sklearn_version")
    if isinstance(version, str) and len(version) < 40:
        report.hyperparameters["sklearn_version"] = version
    for key, held in attributes(worker).items():
        if isinstance(key, str) and not key.endswith("_") and not key.startswith("_") and len(key) < 60:
            if isinstance(held, str) and len(held) > 100:
                continue
            if isinstance(held, (bool, int, float, str)):
                report.hyperparameters[key] = held


def _ports(report: Report, chain: list[Value], task: str | None, name: str) -> None:
    parts = [part for outer in chain for part in (outer, *steps_of(outer)[:1])]
    wide = next((n for part in parts if (n := _features(part, name))), None)
    if wide is not None and not report.inputs:
        report.know(Confidence.read, "n_features_in_", inputs=[Port("X", None, (FREE, wide))])
    if not report.inputs:
        guess = next((n for part in parts if (n := _width(part, name))), None)
        if guess is not None and len(parts) == 1:
            report.know(Confidence.inferred, "the shape of what it learnt", inputs=[Port("X", None, (FREE, guess))])
    labels = next((found for part in chain if (found := array(attributes(part).get("classes_"), name))), None)
    if task == CLASSIFY:
        kind = labels.dtype if labels else None
        report.know(Confidence.inferred, "classifiers predict labels", outputs=[Port("label", kind, (FREE,))])
        if labels is not None and len(labels.shape) == 1:
            report.hyperparameters["classes"] = labels.shape[0]
    elif task == REGRESS:
        several = next((n for part in chain if isinstance(n := attributes(part).get("n_outputs_"), int)), 1)
        shape = (FREE,) if several == 1 else (FREE, several)
        report.know(Confidence.inferred, "regressors predict numbers", outputs=[Port("prediction", "float64", shape)])
    elif task in (CLUSTER, ODD):
        port = Port("cluster" if task == CLUSTER else "inlier", "int64", (FREE,))
        report.know(Confidence.inferred, f"the task is {task}", outputs=[port])
    elif task in (REDUCE, NEIGHBOURS):
        kept = _width_out(chain[-1], name)
        if kept is not None:
            report.know(
                Confidence.inferred, "the shape of components_", outputs=[Port("components", None, (FREE, kept))]
            )


def _features(value: Value, name: str) -> int | None:
    own = attributes(value)
    for key in ("n_features_in_", "n_features_", "_n_features"):
        held = own.get(key)
        if type(held) is int and held > 0:
            return held
    return None


def _width(value: Value, name: str) -> int | None:
    """The number of features by the shape of what was learnt."""
    own = attributes(value)
    for key in ("coef_", "cluster_centers_", "components_", "support_vectors_", "theta_", "_fit_X"):
        found = array(own.get(key), name)
        if found is not None and found.shape:
            return found.shape[-1]
    return None


def _width_out(value: Value, name: str) -> int | None:
    found = array(attributes(value).get("components_"), name)
    return found.shape[0] if found is not None and len(found.shape) == 2 else None


def _sizes(report: Report, value: Value, worker: Value, name: str) -> None:
    """What was learnt: the nodes of trees, or the numbers in the arrays."""
    trees = nodes = 0
    learnt: list[Tensor] = []
    numbers = 0
    for node in walk(value):
        if not isinstance(node, Call):
            continue
        path = path_of(node)
        if path == TREE:
            held = attributes(node).get("node_count")
            trees += 1
            nodes += held if type(held) is int and 0 <= held < 1 << 40 else 0
        elif path == PREDICTOR:
            found = array(attributes(node).get("nodes"), name)
            trees += 1
            nodes += found.shape[0] if found is not None and found.shape else 0
        elif path in ESTIMATORS:
            for tensor, scalar in _learnt(node, name):
                numbers += scalar
                if tensor is not None and len(learnt) < MOST_TENSORS:
                    learnt.append(tensor)
    if path_of(worker).startswith("sklearn."):
        report.hyperparameters["fitted"] = bool(trees or learnt or numbers) or _features(worker, name) is not None
    if trees:
        report.hyperparameters["trees"] = trees
        report.hyperparameters["nodes"] = nodes
        report.know(Confidence.read, f"node_count of its {trees} trees: a threshold or a value each", parameters=nodes)
    elif learnt or numbers:
        report.hold(learnt, "the arrays it learnt")
        if report.parameters is not None and numbers:
            report.know(Confidence.read, "the arrays and numbers it learnt", parameters=report.parameters + numbers)
    stack = attributes(worker).get("coefs_")
    if isinstance(stack, list):
        report.know(Confidence.read, "coefs_", layers=len(stack))


def _learnt(node: Call, name: str) -> Iterator[tuple[Tensor | None, int]]:
    """Arrays, and how many single numbers, under the attributes of an estimator that hold what it learnt."""
    kind = short(node)
    for key, held in attributes(node).items():
        if key not in LEARNT or DERIVED.get(kind) == key:
            continue
        for place, part in enumerate(held) if isinstance(held, (list, tuple)) else ((None, held),):
            if type(part) is float or (isinstance(part, Call) and part.path in SCALAR):
                yield None, 1
                continue
            found = array(part, name)
            if found is not None and not found.items and found.dtype != "object":
                label = f"{kind}.{key}" if place is None else f"{kind}.{key}.{place}"
                yield tensor_of(label, found), 0


def tensor_of(label: str, found: Array) -> Tensor:
    """An array as an entry of the listing."""
    stride = None
    if found.fortran and len(found.shape) > 1:
        steps, step = [], 1
        for size in found.shape:
            steps.append(step)
            step *= max(1, size)
        stride = tuple(steps)
    size = found.itemsize
    for extent in found.shape:
        size *= extent
    return Tensor(label, found.dtype, found.shape, "", found.offset, size, stride)

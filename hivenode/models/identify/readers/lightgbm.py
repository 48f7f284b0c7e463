"""LightGBM's text format: a header, trees whose sizes the header lists, and the settings it was trained with.

https://github.com/lightgbm-org/LightGBM, src/boosting/gbdt_model_text.cpp. It is data only.
"""

from __future__ import annotations

import re

from hivenode.errors import Corrupted
from hivenode.models.identify.report import FREE, Confidence, Port, Report
from hivenode.models.identify.source import Readable, Source

LONGEST_HEADER = 16 << 20
"""Names, ranges and sizes: some fifty bytes for each feature and ten for each tree."""
CHUNK = 64 << 10
ENDED = {"v3", "v4"}
"""Versions that say where the trees and the settings end."""
_CATEGORIES = b"\npandas_categorical:"
_LEAVES = re.compile(rb"Tree=(\d+)\nnum_leaves=(\d{1,9})\n")
TASKS = {
    "binary": "classification", "multiclass": "classification", "multiclassova": "classification",
    "cross_entropy": "classification", "cross_entropy_lambda": "classification", "lambdarank": "ranking",
    "rank_xendcg": "ranking", "regression": "regression", "regression_l1": "regression", "huber": "regression",
    "fair": "regression", "poisson": "regression", "quantile": "regression", "mape": "regression",
    "gamma": "regression", "tweedie": "regression",
}  # fmt: skip
MODELS = {"classification": "LGBMClassifier", "regression": "LGBMRegressor", "ranking": "LGBMRanker"}


def detects(head: bytes, source: Source) -> bool:
    return head.startswith((b"tree\nversion=", b"tree\r\nversion=")) and b"num_class=" in head


def read(source: Source) -> Report:
    report = Report(safe=True)
    report.know(Confidence.read, "its first lines", format="lightgbm_text", framework="lightgbm", model="Booster")
    describe_text(report, source, source.size, source.name)
    return report


def describe_text(report: Report, data: Readable, size: int, name: str, start: int = 0) -> None:
    """Add what a model's text says, from `start` on; the class of a pickled estimator stays.

    Raises:
        Corrupted: cut short, or its sizes lie.
    """
    header, length = _header(data, start, size, name)
    objective = header.get("objective", "").partition(" ")[0]
    task = TASKS.get(objective)
    report.know(Confidence.read, "its first lines", architecture="tree_based", family="tabular")
    if report.task is None:
        report.know(Confidence.inferred, f"objective {objective}", task=task)
    features = _whole(header.get("max_feature_idx", "")) + 1
    classes = _whole(header.get("num_class", ""))
    if features > 0:
        report.know(Confidence.read, "max_feature_idx", inputs=[Port("features", "float64", (FREE, features))])
    shape = (FREE, classes) if classes > 1 else (FREE,)
    kind = "probabilities" if task == "classification" else "prediction"
    report.know(Confidence.inferred, f"objective {objective}", outputs=[Port(kind, "float64", shape)])
    sizes = [_whole(part) for part in header.get("tree_sizes", "").split()]
    leaves, at = _leaves(data, start + length, start + size, sizes, name)
    rest = data.some(at, min(start + size - at, LONGEST_HEADER))
    if header.get("version", "") in ENDED:
        _check_end(rest, name)
    report.hyperparameters |= {
        "trees": len(sizes), "leaves": leaves, "objective": objective, "version": header.get("version", ""),
    }  # fmt: skip
    if classes > 1:
        report.hyperparameters["classes"] = classes
    boosting = re.search(rb"\[boosting: (\w{1,20})\]", rest)
    if boosting:
        report.hyperparameters["boosting"] = boosting[1].decode()
    splits = max(0, leaves - len(sizes))
    report.know(
        Confidence.read, f"num_leaves of its {len(sizes)} trees: a threshold a split, a value a leaf",
        parameters=leaves + splits,
    )  # fmt: skip


def _header(data: Readable, start: int, size: int, name: str) -> tuple[dict[str, str], int]:
    """The lines before the first tree, and how many bytes they take."""
    raw = b""
    while b"\n\n" not in raw[-CHUNK - 1 :] and b"\r\n\r\n" not in raw[-CHUNK - 3 :]:
        part = data.some(start + len(raw), min(CHUNK, size - len(raw)))
        if not part or len(raw) > LONGEST_HEADER:
            raise Corrupted(f"{name} ends before its first tree.", fix="Fetch the file again.")
        raw += part
    end = raw.find(b"\n\n")
    if end < 0:
        raise Corrupted(
            f"{name} has the line ends of Windows, which LightGBM cannot read.", fix="Convert them: dos2unix."
        )
    lines = raw[:end].decode("utf-8", "replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line), end + 2


def _check_end(rest: bytes, name: str) -> None:
    """That everything after the trees is there: their end, the settings, and what Python adds for categories.

    Raises:
        Corrupted: it is cut short.
    """
    _, settings, after = rest.partition(b"\nend of parameters\n")
    whole = rest.startswith(b"end of trees\n") and bool(settings)
    if whole and after.strip():
        whole = after.startswith(_CATEGORIES) and after.endswith(b"\n")
    if not whole:
        raise Corrupted(f"{name} is cut short: it ends within what follows its trees.", fix="Fetch the file again.")


def _leaves(data: Readable, at: int, end: int, sizes: list[int], name: str) -> tuple[int, int]:
    """Leaves of all trees, by the first two lines of each; and where the last one ends."""
    total = 0
    if sum(sizes) > end - at or min(sizes, default=1) <= 0:
        raise Corrupted(f"{name} is cut short: its trees take {sum(sizes)} bytes.", fix="Fetch the file again.")
    buffer, base = b"", at
    for number, size in enumerate(sizes):
        here = at - base
        if here + 64 > len(buffer):
            buffer, base, here = data.some(at, CHUNK if size < CHUNK // 4 else 64), at, 0
        found = _LEAVES.match(buffer, here)
        if found is None or int(found[1]) != number:
            raise Corrupted(f"{name} has no tree {number} at byte {at}.", fix="Fetch it again, or save it again.")
        total += int(found[2])
        at += size
    return total, at


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 12 else 0

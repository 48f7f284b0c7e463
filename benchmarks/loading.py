"""What loading without unpickling costs, beside the loaders it takes the place of.

    python benchmarks/loading.py [--json]

The large files are sparse and in the cache. Each figure is the median of some runs in wall-clock time, imports left
out; both sides of a ratio take turns. "read" touches every number once. Needs torch, safetensors, scikit-learn and
joblib; xgboost where installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from safetensors import safe_open
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

sys.path.insert(0, str(Path(__file__).parent))
from identify import safetensors_file, torch_file

from hivenode.models.loading import load, stream

GB = 1_000_000_000
RUNS = 7


class Row(NamedTuple):
    """Medians in seconds."""

    what: str
    peer: str
    ours: float
    theirs: float


def compared(what: str, peer: str, ours: Callable[[], object], theirs: Callable[[], object], runs: int = RUNS) -> Row:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 1):
        for call, taken in zip((ours, theirs), times, strict=True):
            began = time.perf_counter()
            call()
            if turn:  # the first warms up
                taken.append(time.perf_counter() - began)
    return Row(what, peer, statistics.median(times[0]), statistics.median(times[1]))


def safely(path: Path) -> object:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict


def tensors(folder: Path) -> list[Row]:
    plain, pickled, small = folder / "m.safetensors", folder / "m.pt", folder / "small.safetensors"
    safetensors_file(plain, 10 * GB, 300)
    torch_file(pickled, 10 * GB, 300)
    safetensors_file(small, GB, 30)

    def mapped(path: Path) -> object:
        return {name: weight.torch() for name, weight in load(path, budget=100 * GB).weights.items()}

    return [
        compared("10 GB safetensors, mapped", "safetensors", lambda: mapped(plain), lambda: safely(plain)),
        compared(
            "10 GB torch zip, mapped", "torch.load(mmap)",
            lambda: mapped(pickled), lambda: torch.load(pickled, mmap=True, weights_only=True),
        ),
        compared(
            "1 GB safetensors, read", "safetensors",
            lambda: sum(int(weight.numpy().view(np.uint16)[:, ::2048].sum()) for weight in stream(small)),
            lambda: sum(int(part.numpy().view(np.uint16)[:, ::2048].sum()) for part in safely(small).values()),  # type: ignore[attr-defined]
            runs=3,
        ),
    ]  # fmt: skip


def estimators(folder: Path) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5_000, 20))
    labels = (rows[:, 0] + rows[:, 1] > 0).astype(int)
    found = []
    for what, model in (
        ("forest of 100 trees", RandomForestClassifier(100, random_state=0)),
        ("100 boosted histograms", HistGradientBoostingClassifier(max_iter=100)),
    ):
        path = folder / "m.joblib"
        joblib.dump(model.fit(rows, labels), path)
        assert np.array_equal(load(path).model.predict_proba(rows), model.predict_proba(rows))
        found.append(compared(what, "joblib.load", lambda path=path: load(path), lambda path=path: joblib.load(path)))
    try:
        import xgboost
    except ImportError:
        return found
    matrix = xgboost.DMatrix(rows, labels)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 6}, matrix, 100)
    path = folder / "m.ubj"
    booster.save_model(path)
    trees = load(path).model
    found.append(
        compared("100 trees, loaded", "xgboost", lambda: load(path), lambda: xgboost.Booster(model_file=path)),
    )
    found.append(
        compared("5,000 rows predicted", "xgboost", lambda: trees.predict(rows), lambda: booster.predict(matrix))
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        rows = [*tensors(Path(name)), *estimators(Path(name))]
    if arguments.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return
    print(f"{'':28}{'hivenode':>12}{'peer':>12}{'peer / hivenode':>18}")
    for row in rows:
        ratio = row.theirs / row.ours
        print(f"{row.what:28}{row.ours * 1e3:9.2f} ms{row.theirs * 1e3:9.2f} ms{ratio:12.2f} x   {row.peer}")


if __name__ == "__main__":
    main()

"""Writes `predictions.json`: what XGBoost and LightGBM themselves predict with the samples in `tabular/`.

Needs both, neither of which has to be there for the tests:

    python tests/models/samples/make_predictions.py
"""

from __future__ import annotations

import json
from pathlib import Path

import lightgbm
import numpy as np
import xgboost

HERE = Path(__file__).parent
RNG = np.random.default_rng(11)
ROWS = RNG.normal(size=(24, 4)).round(3)
ROWS[RNG.random(ROWS.shape) < 0.1] = np.nan
ROWS[RNG.random(ROWS.shape) < 0.1] = 0


def main() -> None:
    found = {}
    for path in sorted((HERE / "tabular").glob("xgb_*")):
        if path.suffix in {".json", ".ubj"}:
            rows = np.nan_to_num(ROWS) if "linear" in path.name else ROWS
            found[path.name] = xgboost.Booster(model_file=path).predict(xgboost.DMatrix(rows)).tolist()
    for path in sorted((HERE / "tabular").glob("lightgbm_*.txt")):
        found[path.name] = lightgbm.Booster(model_file=path).predict(ROWS).tolist()
    rows = [[None if np.isnan(value) else value for value in row] for row in ROWS.tolist()]
    (HERE / "predictions.json").write_text(json.dumps({"rows": rows, "predictions": found}) + "\n")


if __name__ == "__main__":
    main()

"""Makes the samples in `tabular/`: tiny models over tables, each saved by its own framework's own call.

Writes `tabular.json` beside them: what is expected of each file, sizes by the framework's own word. Needs
xgboost, lightgbm, catboost, skops, scikit-learn, joblib, lz4, torch and pytorch-tabnet, none of
which has to be there for the tests but scikit-learn, joblib and torch:

    python tests/models/samples/make_tabular.py [OUT]

With `XGBOOST_LEGACY=1` and xgboost 1.7 as what `import xgboost` finds, it makes only the files of the binary
format that later versions no longer write.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import joblib
import numpy as np

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tabular"
EXPECTED: dict[str, dict[str, object]] = {}
RNG = np.random.default_rng(5)
X = RNG.normal(size=(120, 4)).astype(np.float32)
YC = (X[:, 0] + X[:, 1] > 0).astype(int)
Y3 = np.digitize(X[:, 0], [-0.5, 0.5])
YR = (X @ np.array([1.0, -2.0, 0.5, 0.0])).astype(np.float32)


def expect(
    file: str, form: str, framework: str, task: str | None, architecture: str | None, model: str, **more: object
) -> Path:
    """Note what a file is; returns where to save it."""
    EXPECTED[file] = {
        "format": form, "framework": framework, "family": "tabular", "task": task, "architecture": architecture,
        "model": model, "safe": True, **more,
    }  # fmt: skip
    return OUT / file


def xgboost() -> None:
    import xgboost as xgb

    def nodes(booster: xgb.Booster) -> int:
        return sum(len(tree.splitlines()) for tree in booster.get_dump())

    if os.environ.get("XGBOOST_LEGACY"):
        for name, settings, architecture, task, target in (
            ("xgb_legacy.bin", {"objective": "reg:squarederror"}, "tree_based", "regression", YR),
            ("xgb_legacy_dart.bin", {"objective": "multi:softprob", "num_class": 3, "booster": "dart"}, "tree_based",
             "classification", Y3),
            ("xgb_legacy_linear.bin", {"objective": "reg:squarederror", "booster": "gblinear"}, "linear", "regression",
             YR),
        ):  # fmt: skip
            booster = xgb.train({"max_depth": 2, **settings}, xgb.DMatrix(X, target), 3)
            size = 5 if architecture == "linear" else nodes(booster)
            booster.save_model(
                expect(name, "xgboost_binary", "xgboost", task, architecture, "Booster", parameters=size)
            )
        return
    tree = ("xgboost", "classification", "tree_based", "XGBClassifier")
    classifier = xgb.XGBClassifier(n_estimators=5, max_depth=2).fit(X, YC)
    size = nodes(classifier.get_booster())
    classifier.save_model(expect("xgb_classifier.json", "xgboost_json", *tree, parameters=size))
    classifier.save_model(expect("xgb_classifier.ubj", "xgboost_ubj", *tree, parameters=size))
    pickle.dump(classifier, expect("xgb_classifier.pkl", "pickle", *tree, parameters=size).open("wb"))
    joblib.dump(classifier, expect("xgb_classifier.joblib.z", "joblib", *tree, parameters=size), compress=3)
    several = xgb.XGBClassifier(n_estimators=3, max_depth=2).fit(X, Y3)
    several.save_model(expect("xgb_multiclass.ubj", "xgboost_ubj", *tree, parameters=nodes(several.get_booster())))
    tree = ("xgboost", "regression", "tree_based", "XGBRegressor")
    regressor = xgb.XGBRegressor(n_estimators=4, max_depth=2).fit(X, YR)
    size = nodes(regressor.get_booster())
    regressor.save_model(expect("xgb_regressor.json", "xgboost_json", *tree, parameters=size))
    booster = expect("xgb_booster.pkl", "pickle", *tree[:3], "Booster", parameters=size)
    pickle.dump(regressor.get_booster(), booster.open("wb"))
    linear = xgb.XGBRegressor(booster="gblinear", n_estimators=4).fit(X, YR)
    linear.save_model(
        expect("xgb_linear.json", "xgboost_json", "xgboost", "regression", "linear", "XGBRegressor", parameters=5)
    )
    dart = xgb.XGBRegressor(booster="dart", n_estimators=3, max_depth=2).fit(X, YR)
    dart.save_model(expect("xgb_dart.ubj", "xgboost_ubj", *tree, parameters=nodes(dart.get_booster())))
    ranker = xgb.XGBRanker(n_estimators=3, max_depth=2).fit(X, YC, qid=np.repeat(np.arange(12), 10))
    size = nodes(ranker.get_booster())
    ranker.save_model(
        expect("xgb_ranker.json", "xgboost_json", "xgboost", "ranking", "tree_based", "XGBRanker", parameters=size)
    )


def lightgbm() -> None:
    import lightgbm as lgb

    def nodes(booster: lgb.Booster) -> int:
        return len(booster.trees_to_dataframe())

    quiet = {"verbosity": -1, "num_leaves": 4, "n_estimators": 4}
    classifier = lgb.LGBMClassifier(**quiet).fit(X, YC)
    size = nodes(classifier.booster_)
    tree = ("lightgbm", "classification", "tree_based")
    classifier.booster_.save_model(expect("lightgbm_binary.txt", "lightgbm_text", *tree, "Booster", parameters=size))
    pickle.dump(
        classifier, expect("lightgbm_classifier.pkl", "pickle", *tree, "LGBMClassifier", parameters=size).open("wb")
    )
    pickle.dump(
        classifier.booster_, expect("lightgbm_booster.pkl", "pickle", *tree, "Booster", parameters=size).open("wb")
    )
    packed = expect("lightgbm_classifier.joblib.z", "joblib", *tree, "LGBMClassifier", parameters=size)
    joblib.dump(classifier, packed, compress=("zlib", 3))
    several = lgb.LGBMClassifier(**quiet).fit(X, Y3).booster_
    several.save_model(expect("lightgbm_multiclass.txt", "lightgbm_text", *tree, "Booster", parameters=nodes(several)))
    regressor = lgb.LGBMRegressor(**quiet).fit(X, YR).booster_
    tree = ("lightgbm", "regression", "tree_based")
    regressor.save_model(
        expect("lightgbm_regression.txt", "lightgbm_text", *tree, "Booster", parameters=nodes(regressor))
    )


def catboost() -> None:
    import catboost

    def size(model: catboost.CatBoost) -> int:
        splits = sum(len(model._get_tree_splits(tree, None)) for tree in range(model.tree_count_))
        return splits + len(model.get_leaf_values())

    quiet = {"iterations": 4, "depth": 2, "verbose": False, "allow_writing_files": False}
    tree = ("catboost", "classification", "tree_based", "CatBoostClassifier")
    model = catboost.CatBoostClassifier(**quiet).fit(X, YC)
    model.save_model(str(expect("catboost_classifier.cbm", "catboost_cbm", *tree, parameters=size(model))))
    as_json = expect("catboost_classifier.json", "catboost_json", *tree, parameters=size(model))
    model.save_model(str(as_json), format="json")
    pickle.dump(model, expect("catboost_classifier.pkl", "pickle", *tree, parameters=size(model)).open("wb"))
    several = catboost.CatBoostClassifier(loss_function="MultiClass", **quiet).fit(X, Y3)
    several.save_model(str(expect("catboost_multiclass.cbm", "catboost_cbm", *tree, parameters=size(several))))
    model = catboost.CatBoostRegressor(**quiet).fit(X, YR)
    tree = ("catboost", "regression", "tree_based", "CatBoostRegressor")
    model.save_model(str(expect("catboost_regressor.cbm", "catboost_cbm", *tree, parameters=size(model))))


def sklearn() -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.cluster import DBSCAN, KMeans
    from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
    from sklearn.decomposition import PCA
    from sklearn.ensemble import (
        GradientBoostingRegressor,
        HistGradientBoostingClassifier,
        IsolationForest,
        RandomForestClassifier,
        RandomForestRegressor,
        StackingRegressor,
        VotingClassifier,
    )
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    def nodes(trees: object) -> int:
        return sum(tree.tree_.node_count for tree in np.ravel(trees))

    forest = RandomForestClassifier(n_estimators=3, max_depth=2, random_state=0).fit(X, YC)
    ensemble = ("scikit-learn", "classification", "ensemble", "RandomForestClassifier")
    size = nodes(forest.estimators_)
    for protocol in (0, 1, 2, 4, 5):
        file = expect(f"forest_p{protocol}.pkl", "pickle", *ensemble, parameters=size)
        pickle.dump(forest, file.open("wb"), protocol=protocol)
    joblib.dump(forest, expect("forest.joblib", "joblib", *ensemble, parameters=size))
    for compress in ("zlib", "gzip", "bz2", "lzma", "xz", "lz4"):
        file = expect(f"forest_{compress}.joblib", "joblib", *ensemble, parameters=size)
        joblib.dump(forest, file, compress=(compress, 3))
    labels = np.array(["no", "yes"], dtype=object)[YC]
    forest = RandomForestClassifier(n_estimators=2, max_depth=2, random_state=0).fit(X, labels)
    size = nodes(forest.estimators_)
    joblib.dump(forest, expect("forest_object_labels.joblib", "joblib", *ensemble, parameters=size))

    gbm = GradientBoostingRegressor(n_estimators=3, max_depth=2, random_state=0).fit(X, YR)
    hist = HistGradientBoostingClassifier(max_iter=2, max_leaf_nodes=4, random_state=0).fit(X, YC)
    hist_nodes = sum(len(tree.nodes) for trees in hist._predictors for tree in trees)
    tree = DecisionTreeClassifier(max_depth=2, random_state=0).fit(X, Y3)
    regressors = RandomForestRegressor(n_estimators=3, max_depth=2, random_state=0).fit(X, YR)
    odd = IsolationForest(n_estimators=2, max_samples=8, random_state=0).fit(X)
    mlp = MLPClassifier(hidden_layer_sizes=(8,), max_iter=5, random_state=0).fit(X, Y3)
    neural = MLPRegressor(hidden_layer_sizes=(8, 4), max_iter=5, random_state=0).fit(X, YR)
    svc = SVC().fit(X[:20], YC[:20])
    text = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        ["good film", "bad film", "good", "bad"], [1, 0, 1, 0]
    )
    columns = make_pipeline(
        ColumnTransformer([("a", StandardScaler(), [0, 1]), ("b", OneHotEncoder(), [2])]), LogisticRegression()
    ).fit(np.c_[X[:, :2], Y3], YC)

    def layers(network: MLPClassifier | MLPRegressor) -> int:
        return sum(part.size for part in (*network.coefs_, *network.intercepts_))

    for name, estimator, task, architecture, model, count in (
        ("forest_regressor", regressors, "regression", "ensemble", None, nodes(regressors.estimators_)),
        ("gradient_boosting", gbm, "regression", "tree_based", None, nodes(gbm.estimators_)),
        ("hist_boosting", hist, "classification", "tree_based", None, hist_nodes),
        ("tree", tree, "classification", "tree_based", None, tree.tree_.node_count),
        ("isolation_forest", odd, "anomaly_detection", "ensemble", None, nodes(odd.estimators_)),
        ("linear_regression", LinearRegression().fit(X, YR), "regression", "linear", None, 4 + 1),
        ("logistic_multiclass", LogisticRegression().fit(X, Y3), "classification", "linear", None, 3 * 4 + 3),
        ("mlp_classifier", mlp, "classification", "neural_network", None, layers(mlp)),
        ("mlp_regressor", neural, "regression", "neural_network", None, layers(neural)),
        ("svc", svc, "classification", "svm", None, svc.support_vectors_.size + svc.dual_coef_.size + 1),
        ("knn", KNeighborsClassifier().fit(X[:30], YC[:30]), "classification", "nearest_neighbors", None, 30 * 4),
        ("naive_bayes", GaussianNB().fit(X, Y3), "classification", "naive_bayes", None, 2 * 3 * 4 + 3),
        ("gaussian_process", GaussianProcessRegressor().fit(X[:20], YR[:20]), "regression", "gaussian_process", None,
         20 * 4 + 20),
        ("kmeans", KMeans(3, n_init=1, random_state=0).fit(X), "clustering", "clustering", None, 3 * 4),
        ("dbscan", DBSCAN().fit(X[:30]), "clustering", "clustering", None, None),
        ("pca", PCA(2).fit(X), "dimensionality_reduction", "linear", None, 2 * 4 + 4),
        ("pipeline", make_pipeline(StandardScaler(), Ridge()).fit(X, YR), "regression", "linear", "Ridge",
         4 + 1 + 2 * 4),
        ("columns", columns, "classification", "linear", "LogisticRegression", 2 * 2 + 5 + 1),
        ("grid_search", GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=2).fit(X, YR), "regression", "linear",
         "Ridge", 5),
        ("voting", VotingClassifier([("a", GaussianNB()), ("b", LogisticRegression())]).fit(X, YC), "classification",
         "ensemble", None, 2 * 2 * 4 + 2 + 4 + 1),
        ("stacking", StackingRegressor([("a", Ridge())], LinearRegression(), cv=2).fit(X, YR), "regression", "ensemble",
         None, 4 + 1 + 1 + 1),
        ("calibrated", CalibratedClassifierCV(GaussianNB(), cv=2).fit(X, YC), "classification", "naive_bayes",
         "GaussianNB", None),
        ("target", TransformedTargetRegressor(Ridge(), transformer=StandardScaler()).fit(X, YR), "regression", "linear",
         "Ridge", 4 + 1 + 2),
    ):  # fmt: skip
        more = {} if count is None else {"parameters": int(count)}
        known = model or type(estimator).__name__
        joblib.dump(estimator, expect(f"{name}.joblib", "joblib", "scikit-learn", task, architecture, known, **more))
    words = expect(
        "text_pipeline.joblib", "joblib", "scikit-learn", "text_classification", "linear", "LogisticRegression"
    )
    EXPECTED[words.name] |= {"family": "nlp", "parameters": 3 + 3 + 1}
    joblib.dump(text, words)
    network = ("scikit-learn", "regression", "neural_network", "MLPRegressor")
    pickle.dump(neural, expect("mlp_regressor.pkl", "pickle", *network, parameters=layers(neural)).open("wb"))
    line = ("scikit-learn", "regression", "linear", "LinearRegression")
    bundle = {"scaler": StandardScaler().fit(X), "model": LinearRegression().fit(X, YR), "version": 3}
    pickle.dump(bundle, expect("bundle.pkl", "pickle", *line, parameters=5).open("wb"))


def skops() -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from skops.io import dump

    small = {"compression": zipfile.ZIP_DEFLATED}
    forest = RandomForestClassifier(n_estimators=2, max_depth=2, random_state=0).fit(X, YC)
    size = sum(tree.tree_.node_count for tree in forest.estimators_)
    made = ("scikit-learn", "classification", "ensemble", "RandomForestClassifier")
    dump(forest, expect("forest.skops", "skops", *made, parameters=size), **small)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y3)
    made = ("scikit-learn", "classification", "linear", "LogisticRegression")
    dump(pipeline, expect("pipeline.skops", "skops", *made, parameters=2 * 4 + 3 * 4 + 3), **small)
    foreign = make_pipeline(FunctionTransformer(os.path.join), StandardScaler())
    file = expect("foreign.skops", "skops", "scikit-learn", "preprocessing", None, "StandardScaler")
    EXPECTED[file.name] |= {"safe": False, "findings": ["posixpath.join"]}
    dump(foreign, file, **small)


def tabnet() -> None:
    from pytorch_tabnet.tab_model import TabNetClassifier, TabNetRegressor

    small = {"n_d": 2, "n_a": 2, "n_steps": 1, "n_independent": 1, "n_shared": 1, "verbose": 0, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        for name, model, target in (
            ("tabnet_classifier", TabNetClassifier(**small), Y3),
            ("tabnet_regressor", TabNetRegressor(**small), YR[:, None]),
        ):
            model.fit(X, target, max_epochs=1, batch_size=64, virtual_batch_size=64)
            made = model.save_model(f"{folder}/{name}")
            size = sum(part.numel() for part in model.network.parameters())
            task = (
                name.removeprefix("tabnet_").replace("classifier", "classification").replace("regressor", "regression")
            )
            file = expect(
                f"{name}.zip", "tabnet", "pytorch-tabnet", task, "neural_network", type(model).__name__, parameters=size
            )
            shutil.copy(made, file)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    notes = OUT.with_suffix(".json")
    if notes.exists():
        EXPECTED.update(json.loads(notes.read_text()))
    for make in (
        (xgboost,) if os.environ.get("XGBOOST_LEGACY") else (xgboost, lightgbm, catboost, sklearn, skops, tabnet)
    ):
        make()
    notes.write_text(json.dumps(dict(sorted(EXPECTED.items())), indent=1) + "\n")

"""The classes whose instances are rebuilt, where they are defined, and what of their state is left out.

An allow-list, never a block-list. A class is here because predicting with it is numpy's and Python's own bounds-checked
work, or because `checks.py` looks through every array its compiled code trusts.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ESTIMATORS: tuple[tuple[str, str], ...] = (
    ("calibration", "CalibratedClassifierCV _CalibratedClassifier _SigmoidCalibration _TemperatureScaling"),
    ("cluster._dbscan", "DBSCAN"),
    ("cluster._kmeans", "KMeans MiniBatchKMeans"),
    ("compose._column_transformer", "ColumnTransformer"),
    ("compose._target", "TransformedTargetRegressor"),
    ("cross_decomposition._pls", "CCA PLSCanonical PLSRegression"),
    ("decomposition._factor_analysis", "FactorAnalysis"),
    ("decomposition._fastica", "FastICA"),
    ("decomposition._incremental_pca", "IncrementalPCA"),
    ("decomposition._pca", "PCA"),
    ("decomposition._truncated_svd", "TruncatedSVD"),
    ("discriminant_analysis", "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis"),
    ("dummy", "DummyClassifier DummyRegressor"),
    ("ensemble._bagging", "BaggingClassifier BaggingRegressor"),
    ("ensemble._forest", "ExtraTreesClassifier ExtraTreesRegressor RandomForestClassifier RandomForestRegressor"),
    ("ensemble._gb", "GradientBoostingClassifier GradientBoostingRegressor"),
    ("ensemble._hist_gradient_boosting.binning", "_BinMapper"),
    ("ensemble._hist_gradient_boosting.gradient_boosting",
     "HistGradientBoostingClassifier HistGradientBoostingRegressor"),
    ("ensemble._hist_gradient_boosting.predictor", "TreePredictor"),
    ("ensemble._iforest", "IsolationForest"),
    ("ensemble._stacking", "StackingClassifier StackingRegressor"),
    ("ensemble._voting", "VotingClassifier VotingRegressor"),
    ("ensemble._weight_boosting", "AdaBoostClassifier AdaBoostRegressor"),
    ("feature_extraction.text", "CountVectorizer HashingVectorizer TfidfTransformer TfidfVectorizer"),
    ("feature_selection._from_model", "SelectFromModel"),
    ("feature_selection._rfe", "RFE RFECV"),
    ("feature_selection._univariate_selection",
     "GenericUnivariateSelect SelectFdr SelectFpr SelectFwe SelectKBest SelectPercentile"),
    ("feature_selection._variance_threshold", "VarianceThreshold"),
    ("frozen._frozen", "FrozenEstimator"),
    ("gaussian_process._gpc", "GaussianProcessClassifier _BinaryGaussianProcessClassifierLaplace"),
    ("gaussian_process._gpr", "GaussianProcessRegressor"),
    ("gaussian_process.kernels",
     "CompoundKernel ConstantKernel DotProduct ExpSineSquared Exponentiation Matern Product RBF RationalQuadratic Sum "
     "WhiteKernel"),
    ("impute._base", "MissingIndicator SimpleImputer"),
    ("isotonic", "IsotonicRegression"),
    ("kernel_ridge", "KernelRidge"),
    ("linear_model._base", "LinearRegression"),
    ("linear_model._bayes", "ARDRegression BayesianRidge"),
    ("linear_model._coordinate_descent",
     "ElasticNet ElasticNetCV Lasso LassoCV MultiTaskElasticNet MultiTaskElasticNetCV MultiTaskLasso MultiTaskLassoCV"),
    ("linear_model._glm.glm", "GammaRegressor PoissonRegressor TweedieRegressor"),
    ("linear_model._huber", "HuberRegressor"),
    ("linear_model._least_angle", "Lars LarsCV LassoLars LassoLarsCV LassoLarsIC"),
    ("linear_model._logistic", "LogisticRegression LogisticRegressionCV"),
    ("linear_model._omp", "OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV"),
    ("linear_model._passive_aggressive", "PassiveAggressiveClassifier PassiveAggressiveRegressor"),
    ("linear_model._perceptron", "Perceptron"),
    ("linear_model._quantile", "QuantileRegressor"),
    ("linear_model._ridge", "Ridge RidgeCV RidgeClassifier RidgeClassifierCV"),
    ("linear_model._stochastic_gradient", "SGDClassifier SGDRegressor"),
    ("linear_model._theil_sen", "TheilSenRegressor"),
    ("mixture._bayesian_mixture", "BayesianGaussianMixture"),
    ("mixture._gaussian_mixture", "GaussianMixture"),
    ("model_selection._search", "GridSearchCV RandomizedSearchCV"),
    ("multiclass", "OneVsOneClassifier OneVsRestClassifier _ConstantPredictor"),
    ("multioutput", "ClassifierChain MultiOutputClassifier MultiOutputRegressor RegressorChain"),
    ("naive_bayes", "BernoulliNB CategoricalNB ComplementNB GaussianNB MultinomialNB"),
    ("neighbors._classification", "KNeighborsClassifier"),
    ("neighbors._nearest_centroid", "NearestCentroid"),
    ("neighbors._regression", "KNeighborsRegressor"),
    ("neighbors._unsupervised", "NearestNeighbors"),
    ("neural_network._multilayer_perceptron", "MLPClassifier MLPRegressor"),
    ("pipeline", "FeatureUnion Pipeline"),
    ("preprocessing._data",
     "Binarizer MaxAbsScaler MinMaxScaler Normalizer PowerTransformer QuantileTransformer RobustScaler StandardScaler"),
    ("preprocessing._discretization", "KBinsDiscretizer"),
    ("preprocessing._encoders", "OneHotEncoder OrdinalEncoder"),
    ("preprocessing._function_transformer", "FunctionTransformer"),
    ("preprocessing._label", "LabelBinarizer LabelEncoder MultiLabelBinarizer"),
    ("preprocessing._polynomial", "PolynomialFeatures"),
    ("preprocessing._target_encoder", "TargetEncoder"),
    ("svm._classes", "LinearSVC LinearSVR NuSVC NuSVR OneClassSVM SVC SVR"),
    ("tree._classes", "DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier ExtraTreeRegressor"),
)  # fmt: skip
"""Module below `sklearn`, classes."""
MODULES: dict[str, str] = {name: f"sklearn.{module}" for module, names in _ESTIMATORS for name in names.split()}
"""Of each class rebuilt from its attributes."""
LOSSES = frozenset({
    "HalfSquaredError", "AbsoluteError", "PinballLoss", "HuberLoss", "HalfPoissonLoss", "HalfGammaLoss",
    "HalfTweedieLoss", "HalfTweedieLossIdentity", "HalfBinomialLoss", "HalfMultinomialLoss", "ExponentialLoss",
})  # fmt: skip
"""Made anew: of a loss, predicting needs the link, which follows from its class."""
MOST_CLASSES = 100_000
LEFT_OUT = frozenset({
    "random_state", "random_state_", "_random_state", "_rng", "rng", "_srng", "_feature_subsample_rng",
    "_loss_function_", "loss_function_", "_optimizer", "scorer_", "_scorer", "scoring", "score_func", "cv",
    "_checked_cv_orig", "cv_results_", "cv_values_", "multimetric_", "_metadata_request", "_expanded_class_weight",
    "_stop_words_id", "_tree",
})  # fmt: skip
"""Attributes that predicting does not need: kept where they are plain values, else left out."""
NUMPY_FUNCTIONS = frozenset({
    "mean", "median", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "square", "abs", "absolute", "sin",
    "cos", "tanh", "nan_to_num",
})  # fmt: skip
"""Functions of numpy that a FunctionTransformer may hold: each computes numbers from numbers, whatever it is given."""


def found(path: str) -> type[Any] | None:
    """The class an instance of `path` is rebuilt as: by its own name, from where the installed version has it."""
    if not path.startswith("sklearn."):
        return None
    name = path.rpartition(".")[2]
    module = MODULES.get(name)
    kind = getattr(import_module(module), name, None) if module else None
    return kind if isinstance(kind, type) else None


def loss(name: str, classes: int | None) -> Any:
    """A new loss object of scikit-learn."""
    losses = import_module("sklearn._loss.loss")
    if name == "HalfMultinomialLoss":
        return losses.HalfMultinomialLoss(n_classes=classes)
    return getattr(losses, name)()

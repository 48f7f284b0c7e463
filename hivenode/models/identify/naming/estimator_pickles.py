"""What pickles of estimators may mention besides the estimators themselves."""

from __future__ import annotations

from hivenode.models.identify.formats.allowed import NUMPY, PLAIN
from hivenode.models.identify.naming.estimators import ESTIMATORS

_LOSSES = (
    "HalfSquaredError", "AbsoluteError", "PinballLoss", "HuberLoss", "HalfPoissonLoss", "HalfGammaLoss",
    "HalfTweedieLoss",
    "HalfTweedieLossIdentity", "HalfBinomialLoss", "HalfMultinomialLoss", "ExponentialLoss",
)  # fmt: skip
_DISTANCES = (
    "EuclideanDistance", "SEuclideanDistance", "ManhattanDistance", "ChebyshevDistance", "MinkowskiDistance",
    "WMinkowskiDistance",
    "MahalanobisDistance", "HammingDistance", "CanberraDistance", "BrayCurtisDistance", "JaccardDistance",
    "HaversineDistance",
)  # fmt: skip
_PARTS: tuple[tuple[str, str], ...] = (
    ("sklearn.utils._bunch", "Bunch"),
    ("sklearn.utils", "Bunch"),
    ("sklearn._loss.link", "IdentityLink LogLink LogitLink HalfLogitLink MultinomialLogit"),
    ("sklearn.calibration", "_CalibratedClassifier _SigmoidCalibration _TemperatureScaling"),
    ("sklearn.cluster._birch", "_CFNode _CFSubcluster"),
    ("sklearn.cluster._bisect_k_means", "_BisectingTree"),
    ("sklearn.ensemble._hist_gradient_boosting.binning", "_BinMapper"),
    ("sklearn.ensemble._hist_gradient_boosting.predictor", "TreePredictor"),
    ("sklearn.ensemble._gb_losses", "BinomialDeviance MultinomialDeviance LeastSquaresError"),
    ("sklearn.feature_extraction.text", "TfidfTransformer"),
    ("sklearn.gaussian_process._gpc", "_BinaryGaussianProcessClassifierLaplace"),
    (
        "sklearn.gaussian_process.kernels",
        "ConstantKernel WhiteKernel RBF Matern RationalQuadratic ExpSineSquared DotProduct PairwiseKernel Sum Product "
        "Exponentiation CompoundKernel",
    ),
    (
        "sklearn.model_selection._split",
        "KFold StratifiedKFold GroupKFold ShuffleSplit StratifiedShuffleSplit TimeSeriesSplit LeaveOneOut",
    ),
    ("sklearn.multiclass", "_ConstantPredictor"),
    ("sklearn.neural_network._stochastic_optimizers", "AdamOptimizer SGDOptimizer"),
    ("sklearn.utils._metadata_requests", "MetadataRequest MethodMetadataRequest"),
    ("sklearn.utils._tags", "Tags TargetTags InputTags ClassifierTags RegressorTags TransformerTags"),
    ("sklearn.metrics._scorer", "_PassthroughScorer"),
    ("xgboost.compat", "XGBoostLabelEncoder"),
    ("lightgbm.compat", "_LGBMLabelEncoder"),
    ("scipy.interpolate._bsplines", "BSpline"),
)
_FUNCTIONS = frozenset(
    {f"numpy.random._pickle.__{name}_ctor" for name in ("bit_generator", "generator", "randomstate")}
    | {f"numpy.random._{file}.{name}" for file, name in (
        ("mt19937", "MT19937"), ("pcg64", "PCG64"), ("pcg64", "PCG64DXSM"), ("philox", "Philox"), ("sfc64", "SFC64"))}
    | {"numpy.random.bit_generator.SeedSequence", "numpy.random.bit_generator.__pyx_unpickle_SeedSequence"}
    | {"numpy.random.mtrand.RandomState", "numpy.random.mtrand._rand"}
    | {"numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray", "numpy.ma.core._mareconstruct"}
    | {f"scipy.sparse.{module}.{kind}_{form}" for kind in ("csr", "csc", "coo") for form in ("matrix", "array")
       for module in (f"_{kind}", kind)}
    | {"sklearn.tree._tree.Tree", "sklearn.gaussian_process.kernels.Hyperparameter", "sklearn._loss.link.Interval"}
    | {f"sklearn.linear_model._sgd_fast.{name}" for name in (
        "Hinge", "SquaredHinge", "Log", "ModifiedHuber", "SquaredLoss", "Huber", "EpsilonInsensitive",
        "SquaredEpsilonInsensitive")}
    | {f"sklearn.neighbors._{tree}.{name}" for tree, kinds in (("kd_tree", "KDTree"), ("ball_tree", "BallTree"))
       for name in (kinds, f"{kinds}64", f"{kinds}32", "newObj")}
    | {f"sklearn.metrics._dist_metrics.{name}{bits}" for name in _DISTANCES for bits in ("", "64", "32")}
    | {"sklearn.metrics._dist_metrics.newObj", "sklearn.neighbors._dist_metrics.newObj"}
    | {f"sklearn.neighbors._dist_metrics.{name}" for name in _DISTANCES}
    | {f"sklearn._loss._loss.Cy{name}" for name in _LOSSES}
    | {f"sklearn._loss._loss.__pyx_unpickle_Cy{name}" for name in _LOSSES}
    | {f"sklearn._loss.loss.{name}" for name in _LOSSES}
)  # fmt: skip
"""Made with arguments; none of them opens, imports or calls anything outside this list."""
_VALUES = frozenset(
    {f"numpy.{name}" for name in ("mean", "median", "min", "max", "sum", "exp", "expm1", "log", "log1p", "log2",
                                  "log10", "sqrt", "square", "abs", "absolute", "sin", "cos", "tanh", "nan_to_num")}
    | {f"sklearn.feature_selection._univariate_selection.{name}" for name in (
        "f_classif", "f_regression", "chi2")}
    | {"sklearn.cluster._kmeans._kmeans_single_lloyd", "sklearn.cluster._kmeans._kmeans_single_elkan"}
)  # fmt: skip
"""Functions that stand as values of a setting. Called while a file is loaded they would only compute; none does it."""
_CLASSES = frozenset(f"{module}.{name}" for module, names in _PARTS for name in names.split())
NEVER_GIVEN_ARGUMENTS: frozenset[str] = frozenset(ESTIMATORS) | _CLASSES
"""Classes whose instances are made bare and then given their state: `Booster("a file")` would open it."""
ALLOWED: frozenset[str] = PLAIN | NUMPY | frozenset(ESTIMATORS) | _CLASSES | _FUNCTIONS | _VALUES

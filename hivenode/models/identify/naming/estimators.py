"""Estimators of scikit-learn and of the libraries that follow its ways: what each is for, and where it is defined.

The same table serves two ends: naming, and the allow-list of classes a pickle may mention. scikit-learn 0.22 to 1.9.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """What an estimator is for."""

    task: str | None
    architecture: str | None


CLASSIFY, REGRESS, CLUSTER, REDUCE, ODD, DENSITY, PREPARE, RANK, NEIGHBOURS = (
    "classification", "regression", "clustering", "dimensionality_reduction", "anomaly_detection",
    "density_estimation", "preprocessing", "ranking", "nearest_neighbors",
)  # fmt: skip
TREE, ENSEMBLE, LINEAR, NETWORK, SVM, NEAREST, BAYES, PROCESS, MIXTURE, CENTRES, WRAPPER = (
    "tree_based", "ensemble", "linear", "neural_network", "svm", "nearest_neighbors", "naive_bayes",
    "gaussian_process", "mixture_model", "clustering", None,
)  # fmt: skip

_TABLE: tuple[tuple[str, str | None, str | None, str], ...] = (
    ("calibration", CLASSIFY, WRAPPER, "CalibratedClassifierCV"),
    ("cluster._affinity_propagation", CLUSTER, CENTRES, "AffinityPropagation"),
    ("cluster._agglomerative", CLUSTER, CENTRES, "AgglomerativeClustering"),
    ("cluster._agglomerative", REDUCE, CENTRES, "FeatureAgglomeration"),
    ("cluster._bicluster", CLUSTER, CENTRES, "SpectralBiclustering SpectralCoclustering"),
    ("cluster._birch", CLUSTER, CENTRES, "Birch"),
    ("cluster._bisect_k_means", CLUSTER, CENTRES, "BisectingKMeans"),
    ("cluster._dbscan", CLUSTER, CENTRES, "DBSCAN"),
    ("cluster._hdbscan.hdbscan", CLUSTER, CENTRES, "HDBSCAN"),
    ("cluster._kmeans", CLUSTER, CENTRES, "KMeans MiniBatchKMeans"),
    ("cluster._mean_shift", CLUSTER, CENTRES, "MeanShift"),
    ("cluster._optics", CLUSTER, CENTRES, "OPTICS"),
    ("cluster._spectral", CLUSTER, CENTRES, "SpectralClustering"),
    ("compose._column_transformer", PREPARE, WRAPPER, "ColumnTransformer"),
    ("compose._target", REGRESS, WRAPPER, "TransformedTargetRegressor"),
    ("covariance._elliptic_envelope", ODD, "covariance", "EllipticEnvelope"),
    ("covariance._empirical_covariance", DENSITY, "covariance", "EmpiricalCovariance"),
    ("covariance._graph_lasso", DENSITY, "covariance", "GraphicalLasso GraphicalLassoCV"),
    ("covariance._robust_covariance", DENSITY, "covariance", "MinCovDet"),
    ("covariance._shrunk_covariance", DENSITY, "covariance", "LedoitWolf OAS ShrunkCovariance"),
    ("cross_decomposition._pls", REGRESS, LINEAR, "CCA PLSCanonical PLSRegression PLSSVD"),
    ("decomposition._dict_learning", REDUCE, LINEAR, "DictionaryLearning MiniBatchDictionaryLearning SparseCoder"),
    ("decomposition._factor_analysis", REDUCE, LINEAR, "FactorAnalysis"),
    ("decomposition._fastica", REDUCE, LINEAR, "FastICA"),
    ("decomposition._incremental_pca", REDUCE, LINEAR, "IncrementalPCA"),
    ("decomposition._kernel_pca", REDUCE, "kernel", "KernelPCA"),
    ("decomposition._lda", REDUCE, MIXTURE, "LatentDirichletAllocation"),
    ("decomposition._nmf", REDUCE, LINEAR, "MiniBatchNMF NMF"),
    ("decomposition._pca", REDUCE, LINEAR, "PCA"),
    ("decomposition._sparse_pca", REDUCE, LINEAR, "MiniBatchSparsePCA SparsePCA"),
    ("decomposition._truncated_svd", REDUCE, LINEAR, "TruncatedSVD"),
    ("discriminant_analysis", CLASSIFY, LINEAR, "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis"),
    ("dummy", CLASSIFY, "constant", "DummyClassifier"),
    ("dummy", REGRESS, "constant", "DummyRegressor"),
    ("ensemble._bagging", CLASSIFY, ENSEMBLE, "BaggingClassifier"),
    ("ensemble._bagging", REGRESS, ENSEMBLE, "BaggingRegressor"),
    ("ensemble._forest", CLASSIFY, ENSEMBLE, "ExtraTreesClassifier RandomForestClassifier"),
    ("ensemble._forest", REGRESS, ENSEMBLE, "ExtraTreesRegressor RandomForestRegressor"),
    ("ensemble._forest", PREPARE, ENSEMBLE, "RandomTreesEmbedding"),
    ("ensemble._gb", CLASSIFY, TREE, "GradientBoostingClassifier"),
    ("ensemble._gb", REGRESS, TREE, "GradientBoostingRegressor"),
    ("ensemble._hist_gradient_boosting.gradient_boosting", CLASSIFY, TREE, "HistGradientBoostingClassifier"),
    ("ensemble._hist_gradient_boosting.gradient_boosting", REGRESS, TREE, "HistGradientBoostingRegressor"),
    ("ensemble._iforest", ODD, ENSEMBLE, "IsolationForest"),
    ("ensemble._stacking", CLASSIFY, ENSEMBLE, "StackingClassifier"),
    ("ensemble._stacking", REGRESS, ENSEMBLE, "StackingRegressor"),
    ("ensemble._voting", CLASSIFY, ENSEMBLE, "VotingClassifier"),
    ("ensemble._voting", REGRESS, ENSEMBLE, "VotingRegressor"),
    ("ensemble._weight_boosting", CLASSIFY, ENSEMBLE, "AdaBoostClassifier"),
    ("ensemble._weight_boosting", REGRESS, ENSEMBLE, "AdaBoostRegressor"),
    ("feature_extraction._dict_vectorizer", PREPARE, None, "DictVectorizer"),
    ("feature_extraction._hash", PREPARE, None, "FeatureHasher"),
    ("feature_extraction.image", PREPARE, None, "PatchExtractor"),
    ("feature_extraction.text", PREPARE, None, "CountVectorizer HashingVectorizer TfidfTransformer TfidfVectorizer"),
    ("feature_selection._from_model", PREPARE, None, "SelectFromModel"),
    ("feature_selection._rfe", PREPARE, None, "RFE RFECV"),
    ("feature_selection._sequential", PREPARE, None, "SequentialFeatureSelector"),
    ("feature_selection._univariate_selection", PREPARE, None,
     "GenericUnivariateSelect SelectFdr SelectFpr SelectFwe SelectKBest SelectPercentile"),
    ("feature_selection._variance_threshold", PREPARE, None, "VarianceThreshold"),
    ("frozen._frozen", None, WRAPPER, "FrozenEstimator"),
    ("gaussian_process._gpc", CLASSIFY, PROCESS, "GaussianProcessClassifier"),
    ("gaussian_process._gpr", REGRESS, PROCESS, "GaussianProcessRegressor"),
    ("impute._base", PREPARE, None, "MissingIndicator SimpleImputer"),
    ("impute._iterative", PREPARE, None, "IterativeImputer"),
    ("impute._knn", PREPARE, None, "KNNImputer"),
    ("isotonic", REGRESS, "isotonic", "IsotonicRegression"),
    ("kernel_approximation", PREPARE, "kernel",
     "AdditiveChi2Sampler Nystroem PolynomialCountSketch RBFSampler SkewedChi2Sampler"),
    ("kernel_ridge", REGRESS, "kernel", "KernelRidge"),
    ("linear_model._base", REGRESS, LINEAR, "LinearRegression"),
    ("linear_model._bayes", REGRESS, LINEAR, "ARDRegression BayesianRidge"),
    ("linear_model._coordinate_descent", REGRESS, LINEAR,
     "ElasticNet ElasticNetCV Lasso LassoCV MultiTaskElasticNet MultiTaskElasticNetCV MultiTaskLasso MultiTaskLassoCV"),
    ("linear_model._glm.glm", REGRESS, LINEAR, "GammaRegressor PoissonRegressor TweedieRegressor"),
    ("linear_model._huber", REGRESS, LINEAR, "HuberRegressor"),
    ("linear_model._least_angle", REGRESS, LINEAR, "Lars LarsCV LassoLars LassoLarsCV LassoLarsIC"),
    ("linear_model._logistic", CLASSIFY, LINEAR, "LogisticRegression LogisticRegressionCV"),
    ("linear_model._omp", REGRESS, LINEAR, "OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV"),
    ("linear_model._passive_aggressive", CLASSIFY, LINEAR, "PassiveAggressiveClassifier"),
    ("linear_model._passive_aggressive", REGRESS, LINEAR, "PassiveAggressiveRegressor"),
    ("linear_model._perceptron", CLASSIFY, LINEAR, "Perceptron"),
    ("linear_model._quantile", REGRESS, LINEAR, "QuantileRegressor"),
    ("linear_model._ransac", REGRESS, WRAPPER, "RANSACRegressor"),
    ("linear_model._ridge", REGRESS, LINEAR, "Ridge RidgeCV"),
    ("linear_model._ridge", CLASSIFY, LINEAR, "RidgeClassifier RidgeClassifierCV"),
    ("linear_model._stochastic_gradient", CLASSIFY, LINEAR, "SGDClassifier"),
    ("linear_model._stochastic_gradient", REGRESS, LINEAR, "SGDRegressor"),
    ("linear_model._stochastic_gradient", ODD, LINEAR, "SGDOneClassSVM"),
    ("linear_model._theil_sen", REGRESS, LINEAR, "TheilSenRegressor"),
    ("manifold._classical_mds", REDUCE, "manifold", "ClassicalMDS"),
    ("manifold._isomap", REDUCE, "manifold", "Isomap"),
    ("manifold._locally_linear", REDUCE, "manifold", "LocallyLinearEmbedding"),
    ("manifold._mds", REDUCE, "manifold", "MDS"),
    ("manifold._spectral_embedding", REDUCE, "manifold", "SpectralEmbedding"),
    ("manifold._t_sne", REDUCE, "manifold", "TSNE"),
    ("mixture._bayesian_mixture", CLUSTER, MIXTURE, "BayesianGaussianMixture"),
    ("mixture._gaussian_mixture", CLUSTER, MIXTURE, "GaussianMixture"),
    ("model_selection._classification_threshold", CLASSIFY, WRAPPER,
     "FixedThresholdClassifier TunedThresholdClassifierCV"),
    ("model_selection._search", None, WRAPPER, "GridSearchCV RandomizedSearchCV"),
    ("model_selection._search_successive_halving", None, WRAPPER, "HalvingGridSearchCV HalvingRandomSearchCV"),
    ("multiclass", CLASSIFY, WRAPPER, "OneVsOneClassifier OneVsRestClassifier OutputCodeClassifier"),
    ("multioutput", CLASSIFY, WRAPPER, "ClassifierChain MultiOutputClassifier"),
    ("multioutput", REGRESS, WRAPPER, "MultiOutputRegressor RegressorChain"),
    ("naive_bayes", CLASSIFY, BAYES, "BernoulliNB CategoricalNB ComplementNB GaussianNB MultinomialNB"),
    ("neighbors._classification", CLASSIFY, NEAREST, "KNeighborsClassifier RadiusNeighborsClassifier"),
    ("neighbors._graph", PREPARE, NEAREST, "KNeighborsTransformer RadiusNeighborsTransformer"),
    ("neighbors._kde", DENSITY, NEAREST, "KernelDensity"),
    ("neighbors._lof", ODD, NEAREST, "LocalOutlierFactor"),
    ("neighbors._nca", REDUCE, LINEAR, "NeighborhoodComponentsAnalysis"),
    ("neighbors._nearest_centroid", CLASSIFY, NEAREST, "NearestCentroid"),
    ("neighbors._regression", REGRESS, NEAREST, "KNeighborsRegressor RadiusNeighborsRegressor"),
    ("neighbors._unsupervised", NEIGHBOURS, NEAREST, "NearestNeighbors"),
    ("neural_network._multilayer_perceptron", CLASSIFY, NETWORK, "MLPClassifier"),
    ("neural_network._multilayer_perceptron", REGRESS, NETWORK, "MLPRegressor"),
    ("neural_network._rbm", REDUCE, NETWORK, "BernoulliRBM"),
    ("pipeline", None, WRAPPER, "Pipeline"),
    ("pipeline", PREPARE, WRAPPER, "FeatureUnion"),
    ("preprocessing._data", PREPARE, None,
     "Binarizer KernelCenterer MaxAbsScaler MinMaxScaler Normalizer PolynomialFeatures PowerTransformer "
     "QuantileTransformer RobustScaler StandardScaler"),
    ("preprocessing._discretization", PREPARE, None, "KBinsDiscretizer"),
    ("preprocessing._encoders", PREPARE, None, "OneHotEncoder OrdinalEncoder"),
    ("preprocessing._function_transformer", PREPARE, None, "FunctionTransformer"),
    ("preprocessing._label", PREPARE, None, "LabelBinarizer LabelEncoder MultiLabelBinarizer"),
    ("preprocessing._polynomial", PREPARE, None, "PolynomialFeatures SplineTransformer"),
    ("preprocessing._target_encoder", PREPARE, None, "TargetEncoder"),
    ("random_projection", REDUCE, LINEAR, "GaussianRandomProjection SparseRandomProjection"),
    ("semi_supervised._label_propagation", CLASSIFY, NEAREST, "LabelPropagation LabelSpreading"),
    ("semi_supervised._self_training", CLASSIFY, WRAPPER, "SelfTrainingClassifier"),
    ("svm._classes", CLASSIFY, SVM, "LinearSVC NuSVC SVC"),
    ("svm._classes", REGRESS, SVM, "LinearSVR NuSVR SVR"),
    ("svm._classes", ODD, SVM, "OneClassSVM"),
    ("tree._classes", CLASSIFY, TREE, "DecisionTreeClassifier ExtraTreeClassifier"),
    ("tree._classes", REGRESS, TREE, "DecisionTreeRegressor ExtraTreeRegressor"),
)  # fmt: skip
"""Module below `sklearn`, task, architecture, classes."""

_OLD = {
    "ensemble._forest": "ensemble.forest", "ensemble._gb": "ensemble.gradient_boosting",
    "ensemble._weight_boosting": "ensemble.weight_boosting", "ensemble._bagging": "ensemble.bagging",
    "ensemble._voting": "ensemble.voting", "ensemble._iforest": "ensemble.iforest",
    "linear_model._logistic": "linear_model.logistic", "linear_model._base": "linear_model.base",
    "linear_model._ridge": "linear_model.ridge", "linear_model._coordinate_descent": "linear_model.coordinate_descent",
    "linear_model._stochastic_gradient": "linear_model.stochastic_gradient", "tree._classes": "tree.tree",
    "svm._classes": "svm.classes", "neighbors._classification": "neighbors.classification",
    "neighbors._regression": "neighbors.regression", "cluster._kmeans": "cluster.k_means_",
    "neural_network._multilayer_perceptron": "neural_network.multilayer_perceptron",
    "decomposition._pca": "decomposition.pca",
    "preprocessing._data": "preprocessing.data", "preprocessing._label": "preprocessing.label",
    "calibration": "calibration", "mixture._gaussian_mixture": "mixture.gaussian_mixture",
}  # fmt: skip
"""What modules were called before 0.22."""

_OTHERS: tuple[tuple[str, str | None, str | None, str], ...] = (
    ("xgboost.sklearn", CLASSIFY, TREE, "XGBClassifier XGBRFClassifier"),
    ("xgboost.sklearn", REGRESS, TREE, "XGBRegressor XGBRFRegressor"),
    ("xgboost.sklearn", RANK, TREE, "XGBRanker"),
    ("xgboost.sklearn", None, TREE, "XGBModel"),
    ("xgboost.core", None, TREE, "Booster"),
    ("lightgbm.sklearn", CLASSIFY, TREE, "LGBMClassifier"),
    ("lightgbm.sklearn", REGRESS, TREE, "LGBMRegressor"),
    ("lightgbm.sklearn", RANK, TREE, "LGBMRanker"),
    ("lightgbm.basic", None, TREE, "Booster"),
    ("catboost.core", CLASSIFY, TREE, "CatBoostClassifier"),
    ("catboost.core", REGRESS, TREE, "CatBoostRegressor"),
    ("catboost.core", RANK, TREE, "CatBoostRanker"),
    ("catboost.core", None, TREE, "CatBoost"),
)
"""Module, task, architecture, classes of other libraries."""


def _kinds() -> dict[str, Kind]:
    kinds = {}
    for module, task, architecture, names in _TABLE:
        for name in names.split():
            kinds[f"sklearn.{module}.{name}"] = Kind(task, architecture)
            if module in _OLD:
                kinds[f"sklearn.{_OLD[module]}.{name}"] = Kind(task, architecture)
    for module, task, architecture, names in _OTHERS:
        for name in names.split():
            kinds[f"{module}.{name}"] = Kind(task, architecture)
    return kinds


ESTIMATORS: dict[str, Kind] = _kinds()
"""By the full path of the class."""

INNER = (
    "best_estimator_", "estimator_", "regressor_", "classifier_", "final_estimator_", "estimator", "regressor",
    "base_estimator",
)  # fmt: skip
"""Where estimators that wrap another keep it, the fitted before the declared."""
LEARNT = frozenset({
    "coef_", "intercept_", "coefs_", "intercepts_", "cluster_centers_", "subcluster_centers_", "centroids_",
    "theta_", "var_", "sigma_", "class_log_prior_", "class_prior_", "feature_log_prob_", "dual_coef_",
    "support_vectors_", "components_", "noise_variance_", "means_", "covariances_", "weights_", "mean_", "scale_",
    "center_", "min_", "max_abs_", "idf_", "statistics_", "_fit_X", "X_train_", "alpha_", "X_fit_", "embedding_",
    "intercept_hidden_", "intercept_visible_", "X_thresholds_", "y_thresholds_", "quantiles_", "lambdas_",
    "covariance_", "location_", "a_", "b_", "offset_", "estimator_weights_",
})  # fmt: skip
"""Attributes that hold what was learnt, and no copy of it in another form."""
DERIVED = {"StandardScaler": "var_", "PCA": "noise_variance_", "EllipticEnvelope": "offset_"}
"""By class, what follows from the rest."""
TEXT = ("CountVectorizer", "HashingVectorizer", "TfidfVectorizer")

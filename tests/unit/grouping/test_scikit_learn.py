"""The groupings as estimators of scikit-learn."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from pml_posets.grouping import KMeansGrouping, RelaxedAssignment, SurrogateGrouping

FAILS = {"check_complex_data": "features that are no real numbers are a TypeError in this package"}
ESTIMATORS = pytest.mark.parametrize("estimator", [SurrogateGrouping(), KMeansGrouping(3)], ids=repr)


@ESTIMATORS
def test_the_checks_of_scikit_learn(estimator):
    pytest.importorskip("sklearn", minversion="1.6")
    results = check_estimator(estimator, expected_failed_checks=FAILS, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "xfail"}
    assert failed == set(FAILS)


@ESTIMATORS
def test_y_is_ignored(estimator):
    features = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    plain = estimator.fit_predict(features)
    for y in (np.arange(60) // 30, [0] * 60, np.arange(60), "anything"):
        np.testing.assert_array_equal(estimator.fit(features, y).labels_, plain)
        np.testing.assert_array_equal(estimator.fit_predict(features, y), plain)
    if isinstance(estimator, SurrogateGrouping):
        with pytest.raises(TypeError, match="positional"):
            estimator.fit(features, None, np.arange(60))
        assert (estimator.fit_predict(features, sources=np.zeros(60, int)) == -1).all()


def test_in_a_pipeline():
    features = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    pipeline = make_pipeline(StandardScaler(), KMeansGrouping(3))
    assert pipeline.fit_predict(features, np.zeros(60)).shape == (60,)
    for estimator in (pipeline, SurrogateGrouping(), RelaxedAssignment()):
        assert "<div" in estimator._repr_html_()

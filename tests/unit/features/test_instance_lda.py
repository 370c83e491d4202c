"""InstanceLDA against plain loops, on planted nuisances, in PML, and with bad input."""

import warnings

import numpy as np
import pytest
import torch
from pictures import generators
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from refusals import refuses_each
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from pml_posets.features.instance_lda import InstanceLDA

IMAGES, VIEWS, WIDE = 30, 5, 6
NUISANCE = np.array([8, 8, 8, 0.3, 0.3, 0.3])  # how much views change each column


def views(seed=0, images=IMAGES, count=VIEWS):
    rng = np.random.default_rng(seed)
    own = 2 * rng.normal(size=(images, 1, WIDE))
    rows = own + rng.normal(size=(images, count, WIDE)) * NUISANCE
    return rows.reshape(-1, WIDE).astype(np.float32), np.arange(images).repeat(count)


def by_loops(rows, owners, shrinkage):
    """S_w, shrunk, and S_b, as sums over views."""
    names, mean = set(owners.tolist()), rows.mean(0)
    within, total = np.zeros((2, WIDE, WIDE))
    for name in names:
        mine = rows[owners == name]
        for row in mine:
            for i, j in np.ndindex(WIDE, WIDE):
                own = (row[i] - mine[:, i].mean()) * (row[j] - mine[:, j].mean())
                within[i, j] += own / (len(rows) - len(names))
                total[i, j] += (row[i] - mean[i]) * (row[j] - mean[j]) / len(rows)
    mix = shrinkage * np.trace(within) / WIDE
    return (1 - shrinkage) * within + mix * np.eye(WIDE), total - within


# --- What it learns


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7])
def test_its_directions_solve_the_equation(shrinkage):
    rows, owners = (values[3:] for values in views())  # one image has fewer views
    lda = InstanceLDA(num_components=4, shrinkage=shrinkage).fit(rows, owners)
    within, between = by_loops(rows.astype(float), owners, shrinkage)
    weight = lda.weight_.astype(float)
    np.testing.assert_allclose(weight @ within @ weight.T, np.eye(4), atol=1e-4)
    ratios = weight @ between @ weight.T
    np.testing.assert_allclose(ratios, np.diag(np.diag(ratios)), atol=1e-4)
    largest = np.sort(np.linalg.eigvals(np.linalg.solve(within, between)).real)[::-1]
    np.testing.assert_allclose(np.diag(ratios), largest[:4], rtol=1e-3)


def test_rows_may_come_in_any_order_and_pseudo_labels_may_have_gaps():
    rows, owners = views()
    order = np.random.default_rng(3).permutation(len(rows))
    expected = InstanceLDA(num_components=3).fit(rows, owners)
    found = InstanceLDA(num_components=3).fit(rows[order], 7 * owners[order] + 2)
    signs = np.sign((expected.weight_ * found.weight_).sum(axis=1))[:, None]
    np.testing.assert_allclose(found.weight_ * signs, expected.weight_, atol=1e-3)
    more = np.concatenate([rows, 100 * np.ones((4, WIDE), np.float32)])
    left_out = InstanceLDA(num_components=3).fit(more, np.concatenate([owners, [-1] * 4]))
    np.testing.assert_array_equal(left_out.weight_, expected.weight_)


def test_many_columns_are_brought_down_first():
    rows, owners = views()
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(100, WIDE)))[0].T
    wide = (rows @ turn).astype(np.float32)
    short = InstanceLDA(num_components=3).fit(rows, owners).transform(rows)
    long = InstanceLDA(num_components=3, num_directions=WIDE).fit(wide, owners).transform(wide)
    np.testing.assert_allclose(short @ short.T, long @ long.T, atol=1e-3)


@pytest.mark.parametrize(("count", "images", "expected"), [(2, 30, 2), (50, 30, WIDE), (50, 4, 3)])
def test_it_keeps_no_more_columns_than_there_are(count, images, expected):
    rows, owners = views(images=images)
    found = InstanceLDA(num_components=count).fit(rows, owners).transform(rows)
    assert found.shape == (len(rows), expected)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_same_twice_and_the_generators_are_left_alone():
    rows, owners = views()
    before = generators()
    first, second = (InstanceLDA(num_components=3).fit(torch.from_numpy(rows), owners) for _ in range(2))
    np.testing.assert_array_equal(first.weight_, second.weight_)
    assert generators() == before


def test_as_a_module_it_is_the_embedder_of_a_pml_tester():
    rows, owners = views()
    lda = InstanceLDA(num_components=3, normalize=False).fit(rows, owners)
    module = lda.linear()
    found = module(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(found, lda.transform(rows), atol=1e-4)
    fresh, theirs = views(seed=1, images=20)
    data = torch.utils.data.TensorDataset(torch.from_numpy(fresh), torch.from_numpy(theirs))
    tester = GlobalEmbeddingSpaceTester(dataloader_num_workers=0, data_device=torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = tester.test({"val": data}, 0, torch.nn.Identity())["val"]
        seen = tester.test({"val": data}, 0, torch.nn.Identity(), module)["val"]
    key = next(name for name in raw if name.startswith("precision_at_1"))
    assert seen[key] > raw[key] + 0.3


# --- Bad input


test_options_and_instances_that_do_not_do = refuses_each(
    lambda changes, owners: InstanceLDA(**changes).fit(views()[0], owners),
    ({"num_components": 0}, views()[1], ValueError, "num_components must be at least 1, got 0"),
    ({"num_directions": 0}, views()[1], ValueError, "num_directions must be at least 1, got 0"),
    ({"shrinkage": 1.5}, views()[1], ValueError, r"shrinkage must be in \[0, 1\], got 1.5"),
    ({"random_state": -1}, views()[1], ValueError, "random_state must be at least 0, got -1"),
    ({}, np.arange(3), ValueError, r"instances must have shape \(150,\) to match the samples, got \(3,\)"),
    ({}, np.zeros(150), TypeError, "instances must be integers, got dtype float64"),
    ({}, np.zeros(150, int), ValueError, "two images or more, and some of them twice, got 1 of 150 samples"),
    ({}, np.arange(150), ValueError, "got 150 of 150 samples: give several views of each image"),
    ({}, np.full(150, -1), ValueError, "got 0 of 0 samples"),
)


def test_views_without_any_change():
    rows, owners = views()
    with pytest.raises(ValueError, match="views of each image are all alike: give views that differ"):
        InstanceLDA().fit(rows[::VIEWS].repeat(VIEWS, axis=0), owners)
    flat = rows.copy()
    flat[:, 0] = flat[::VIEWS, 0].repeat(VIEWS)  # one direction without
    assert InstanceLDA().fit(flat, owners).weight_.shape == (WIDE, WIDE)
    flat[:, 0] = 0
    with pytest.raises(ValueError, match=r"shrinkage must be above 0, got 0"):
        InstanceLDA(shrinkage=0).fit(flat, owners)


def test_before_it_is_fitted_and_another_width():
    lda = InstanceLDA()
    for call in (lambda: lda.transform(views()[0]), lda.linear):
        with pytest.raises(ValueError, match=r"learned nothing yet: call fit\(features, instances\)"):
            call()
    lda.fit(*views())
    with pytest.raises(ValueError, match="X has 5 features, but InstanceLDA is expecting 6"):
        lda.transform(np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="row 1 holds a NaN"):
        lda.fit(np.array([[0.0], [np.nan]]), [0, 0])


# --- As scikit-learn's


NOT_OURS = {
    "check_estimators_nan_inf": "it gives classes as floats, which are refused; NaN is tested above",
    "check_methods_subset_invariance": "float32 products of other sizes differ in the last bit",
    "check_methods_sample_order_invariance": "float32 products of other sizes differ in the last bit",
}


@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_s_own_checks():
    pytest.importorskip("sklearn", minversion="1.6")  # before, a check cannot be left out
    passed = check_estimator(InstanceLDA(), expected_failed_checks=NOT_OURS, on_fail="raise")
    assert sum(check["status"] == "passed" for check in passed) > 30


def test_in_a_pipeline_with_its_picture_and_parameters():
    rows, owners = views()
    pipeline = make_pipeline(PCA(5), InstanceLDA(num_components=3))
    embedded = pipeline.fit_transform(rows, owners)
    np.testing.assert_allclose(pipeline.transform(rows), embedded, atol=1e-5)
    assert "InstanceLDA" in pipeline._repr_html_()
    assert list(pipeline.get_feature_names_out()) == ["instancelda0", "instancelda1", "instancelda2"]
    clone(pipeline).set_params(instancelda__num_components=2).fit(rows, owners)
    assert repr(InstanceLDA(shrinkage=0.3)) == "InstanceLDA(shrinkage=0.3)"

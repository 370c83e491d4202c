"""Steps and whole pipelines in one file: saved, loaded, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.pipeline import FeatureUnion, make_pipeline
from torch import nn

from pml_posets.features import (
    HOGLDA,
    InstanceLDA,
    NeighborWhitening,
    NetworkFeatures,
    PartialWhitening,
    combine,
    extract,
    load,
    save,
)

MAPS = {"layer": "2", "grid": 2, "window": (1.3, 1.0), "center": True, "size": (12, 12), "std": 0.5}
ROWS, OWNERS = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32), np.arange(30) // 3


def images(num=9, size=12):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3, stride=2), nn.Flatten()
    )


def union(model):
    maps = NetworkFeatures(model, **MAPS)
    hog = HOGLDA(image_size=8, cell_size=4, window=(0.2, 0.5))
    weights = {"maps": np.sqrt(0.7).item(), "hog": np.sqrt(0.3).item()}
    return FeatureUnion([("maps", maps), ("hog", hog)], transformer_weights=weights)


def test_a_union_is_what_combine_gives():
    data = images()
    joined = union(network())
    rows = joined.fit(data).transform(data)
    maps, hog = (step.transform(data, mirror=False) for _, step in joined.transformer_list)
    np.testing.assert_allclose(rows, combine([(maps, 0.7), (hog, 0.3)]), atol=1e-6)
    step = joined.transformer_list[0][1]
    np.testing.assert_allclose(maps, extract(network(), data, **MAPS, progress=False), atol=1e-5)
    np.testing.assert_allclose(maps, clone(step).fit_transform(data), atol=1e-6)
    np.testing.assert_array_equal(step.transform(data, mirror=True)[1], step.transform(data.flip(-1)))
    first = step.set_params(center=False).fit(data).transform(data)
    np.testing.assert_allclose(first, extract(network(), data, **{**MAPS, "center": False}), atol=1e-5)


def test_a_pipeline_is_saved_and_loaded_whole(tmp_path):
    data, model = images(), network()
    pipeline = make_pipeline(union(model), PCA(4, whiten=True, random_state=0))
    expected = pipeline.fit(data).transform(data)
    save(pipeline, tmp_path / "a.npz")
    loaded = load(tmp_path / "a.npz", network=model)
    np.testing.assert_array_equal(loaded.transform(data), expected)
    assert repr(loaded) == repr(pipeline)
    assert "PCA" in loaded._repr_html_()
    with pytest.raises(ValueError, match=r"holds features of a network: give load\(path, network=\.\.\.\)"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "step",
    [
        NeighborWhitening(3, share=0.3),
        PartialWhitening(4, 0.3),
        InstanceLDA(num_components=3, shrinkage=0.2, normalize=False),
    ],
)
def test_each_step_comes_back(step, tmp_path):
    step = clone(step).fit(ROWS, OWNERS).set_output(transform="default")
    save(step, tmp_path / "step.npz")
    loaded = load(tmp_path / "step.npz")
    assert loaded.get_params() == step.get_params()
    np.testing.assert_array_equal(loaded.transform(ROWS), step.transform(ROWS))
    columns = loaded.get_feature_names_out()
    assert len(columns) == step.transform(ROWS).shape[1]
    assert columns[0] == f"{type(step).__name__.lower()}0"
    assert [path.name for path in tmp_path.iterdir()] == ["step.npz"]


@pytest.mark.parametrize("step", [NeighborWhitening(2), PartialWhitening(2), InstanceLDA(2)])
def test_steps_refuse_rows_whose_squares_leave_float32(step):
    for scale in (1e-30, 1e30):
        with pytest.raises(ValueError, match=r"squares fit float32, got [1-9]e[+-](30|29): scale them"):
            step.fit(ROWS * np.float32(scale), OWNERS)


@pytest.mark.parametrize("step", [NeighborWhitening(2), PartialWhitening(2)])
def test_columns_of_other_names_are_refused(step):
    pandas = pytest.importorskip("pandas")
    step.fit(pandas.DataFrame(ROWS[:, :2], columns=["a", "b"]))
    with pytest.raises(ValueError, match="feature names should match"):
        step.transform(pandas.DataFrame(ROWS[:, :2], columns=["b", "a"]))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (make_pipeline(PCA(2), KMeans(2)), "cannot save a KMeans: save one of HOGLDA, .* or use joblib"),
        (
            PCA(2, random_state=np.random.RandomState(0)),
            "cannot save the random_state of PCA, a RandomState: use joblib",
        ),
    ],
)
def test_what_cannot_be_saved(step, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save(step, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [HOGLDA, InstanceLDA])
def test_what_has_learned_nothing_is_not_saved(kind, tmp_path):
    with pytest.raises(ValueError, match=f"nothing to save: fit the {kind.__name__} first"):
        kind().save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="has learned nothing yet"):
        NetworkFeatures(nn.Flatten()).transform(images())


def test_files_that_are_no_steps(tmp_path):
    path = tmp_path / "a.npz"
    for steps, message in (
        ('{"format": 2, "tree": {"class": "os.system"}}', r"holds a os\.system, which this version does not"),
        ('{"format": 1, "tree": null}', "holds no feature steps"),
        ("no json", "holds no feature steps"),
    ):
        np.savez(path, steps=np.array(steps))
        with pytest.raises(ValueError, match=message):
            load(path)
    save(make_pipeline(PCA(4)), path)
    with pytest.raises(ValueError, match=r"a\.npz holds a Pipeline, no HOGLDA: read it by features\.load"):
        HOGLDA.load(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        HOGLDA.load(path)
    with pytest.raises(FileNotFoundError):
        HOGLDA.load(tmp_path / "none.npz")

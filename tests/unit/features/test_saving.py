"""Steps and whole pipelines in one file: saved, loaded, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import FeatureUnion, make_pipeline
from torch import nn

from pml_posets.features import HOGLDA, NetworkFeatures, combine, extract, load, save


def images(num=9, size=12):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3, stride=2), nn.Flatten()
    )


MAPS = {"layer": "2", "grid": 2, "window": (1.3, 1.0), "center": True, "size": (12, 12), "std": 0.5}


def union(model):
    maps = NetworkFeatures(model, **MAPS)
    hog = HOGLDA(image_size=16, cell_size=4, window=(0.2, 0.5))
    weights = {"maps": np.sqrt(0.7).item(), "hog": np.sqrt(0.3).item()}
    return FeatureUnion([("maps", maps), ("hog", hog)], transformer_weights=weights)


def test_a_union_is_what_combine_gives():
    data = images(9)
    joined = union(network())
    rows = joined.fit(data).transform(data)
    maps, hog = (step.transform(data, mirror=False) for _, step in joined.transformer_list)
    np.testing.assert_allclose(rows, combine([(maps, 0.7), (hog, 0.3)]), atol=1e-6)
    np.testing.assert_allclose(maps, joined.transformer_list[0][1].fit_transform(data), atol=1e-6)
    expected = extract(network(), data, **MAPS, progress=False)
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_a_pipeline_is_saved_and_loaded_whole(tmp_path):
    data, model = images(9), network()
    pipeline = make_pipeline(union(model), PCA(4, whiten=True, random_state=0))
    expected = pipeline.fit(data).transform(data)
    save(pipeline, tmp_path / "a.npz")
    loaded = load(tmp_path / "a.npz", network=model)
    np.testing.assert_array_equal(loaded.transform(data), expected)
    np.testing.assert_allclose(loaded.transform(data[3:5]), expected[3:5], atol=1e-5)
    assert repr(loaded) == repr(pipeline)
    assert "PCA" in loaded._repr_html_()
    np.testing.assert_allclose(clone(loaded).fit(data).transform(data), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"holds features of a network: give load\(path, network=\.\.\.\)"):
        load(tmp_path / "a.npz")
    save(make_pipeline(PCA(4)), tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"b\.npz holds a Pipeline, no HOGLDA: read it by features\.load"):
        HOGLDA.load(tmp_path / "b.npz")


def test_what_cannot_be_saved(tmp_path):
    from sklearn.cluster import KMeans

    with pytest.raises(TypeError, match=r"cannot save a KMeans: save one of HOGLDA, .* or use joblib"):
        save(make_pipeline(PCA(2), KMeans(2)), tmp_path / "a.npz")
    with pytest.raises(TypeError, match="cannot save the random_state of PCA, a RandomState: use joblib"):
        save(PCA(2, random_state=np.random.RandomState(0)), tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "b.npz", steps=np.array('{"format": 2, "tree": {"class": "os.system"}}'))
    with pytest.raises(ValueError, match=r"holds a os\.system, which this version does not know"):
        load(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", steps=np.array("no json"))
    with pytest.raises(ValueError, match="holds no feature steps"):
        load(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="has learned nothing yet"):
        NetworkFeatures(nn.Flatten()).transform(images())

"""Cache entries: found again, stale after any change, whole or not there."""

import os

import numpy as np
import pytest
import torch
from pictures import noise, saved

from pml_posets.data import ImageList
from pml_posets.data.cache import FeatureCache


@pytest.fixture
def paths(tmp_path):
    return saved(tmp_path / "images", [noise(8, 8, seed) for seed in range(3)])


def test_an_entry_is_found_again(tmp_path, paths):
    cache = FeatureCache(tmp_path / "deep" / "cache")
    key = cache.key({"ridge": 1.0, "mean": np.ones(3)}, paths)
    assert cache.load(key) is None
    cache.save(key, {"features": np.eye(3, dtype=np.float32)})
    fresh = FeatureCache(tmp_path / "deep" / "cache")
    same = fresh.key({"mean": np.ones(3), "ridge": 1.0}, [str(path) for path in paths])
    assert same == key
    found = fresh.load(same)
    assert list(found) == ["features"]
    np.testing.assert_array_equal(found["features"], np.eye(3))


def test_settings_and_data_tell_entries_apart(tmp_path, paths):
    cache = FeatureCache(tmp_path)
    settings = {"ridge": 1.0, "mean": np.ones(3)}
    keys = [
        cache.key(settings, paths),
        cache.key({**settings, "ridge": 2.0}, paths),
        cache.key({**settings, "mean": np.ones(3) + 1e-15}, paths),
        cache.key({**settings, "mean": np.ones((3, 1))}, paths),
        cache.key(settings, paths[::-1]),
        cache.key(settings, paths[:2]),
        cache.key(settings, ImageList(paths, transform=str)),
        cache.key(settings, torch.utils.data.Subset(ImageList(paths), [0])),
        cache.key(settings, paths, data_id="a"),
        cache.key(settings, paths, data_id="b"),
    ]
    assert len({key.entry for key in keys}) == len(keys)


def test_a_changed_file_makes_it_stale(tmp_path, paths):
    cache = FeatureCache(tmp_path)
    old = cache.key({}, paths)
    cache.save(old, {"features": np.zeros(1)})
    status = paths[1].stat()
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    new = cache.key({}, paths)
    assert new.entry == old.entry
    assert cache.load(new) is None
    cache.save(new, {"features": np.ones(1)})
    assert cache.load(new)["features"] == 1
    assert cache.load(old) is None
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_a_damaged_entry_counts_as_missing(tmp_path):
    cache = FeatureCache(tmp_path)
    key = cache.key({}, np.zeros((1, 2, 2)))
    cache.save(key, {"features": np.arange(5000)})
    (file,) = tmp_path.glob("*.npz")
    whole = file.read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", b"no archive", whole[:2000] + b"x" * 100 + whole[2100:]):
        file.write_bytes(damaged)
        assert cache.load(key) is None
    file.write_bytes(whole)
    assert len(cache.load(key)["features"]) == 5000


def test_a_write_that_fails_loses_nothing(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    key = cache.key({}, np.zeros((1, 2, 2)))
    cache.save(key, {"features": np.zeros(1)})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"not cached in .*No space left on device"):
        cache.save(key, {"features": np.ones(1)})
    assert cache.load(key)["features"] == 0
    assert len(os.listdir(tmp_path)) == 1

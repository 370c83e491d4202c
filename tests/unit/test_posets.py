"""Posets against plain loops: medoids, nearest classes, the order inside a poset, files."""

import contextlib
import os

import numpy as np
import pytest
import torch

from pml_posets._classes import ClassMembers
from pml_posets._validation import as_labels
from pml_posets.neighbors.nearest import search
from pml_posets.posets import Posets, medoids, relabel


def random_case(seed, num_samples=60, num_classes=7, num_dims=5, share=0.6):
    """Features, their mirror images, labels with every class used, flips of the assigned."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_samples, num_dims)).astype(np.float32)
    mirrored = rng.normal(size=(num_samples, num_dims)).astype(np.float32)
    labels = np.where(rng.random(num_samples) < share, rng.integers(0, num_classes, num_samples), -1)
    labels[rng.permutation(num_samples)[:num_classes]] = np.arange(num_classes)
    return features, mirrored, labels, (rng.random(num_samples) < 0.4) & (labels >= 0)


def loop_medoids(features, labels):
    """The definition, one sample at a time."""
    result = []
    for c in range(max(labels) + 1):
        members = [i for i in range(len(labels)) if labels[i] == c]
        sums = [sum(np.linalg.norm(features[i] - features[j]) for j in members) for i in members]
        result.append(members[int(np.argmin(sums))])
    return result


def loop_posets(features, mirrored, labels, flips, num_nearest):
    """Medoids, nearest classes and flips by their definitions."""
    features = np.where(flips[:, None], mirrored, features)
    found = loop_medoids(features, labels)
    nearest, distances, flips = [], [], flips.copy()
    for i in range(len(labels)):
        views = [features[i]] if labels[i] >= 0 else [features[i], mirrored[i]]
        lists = [
            sorted((np.linalg.norm(view - features[m]), c) for c, m in enumerate(found)) for view in views
        ]
        best = min(range(len(lists)), key=lambda v: lists[v][0][0])
        order = sorted(lists[best], key=lambda pair: (pair[1] != labels[i], pair[0]))
        if labels[i] < 0:
            flips[i] = best == 1
        nearest.append([c for _, c in order[:num_nearest]])
        distances.append([d for d, _ in order[:num_nearest]])
    return found, nearest, distances, flips


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_nearest", [1, 3])
def test_build_agrees_with_plain_loops(seed, num_nearest):
    features, mirrored, labels, flips = random_case(seed)
    found, nearest, distances, turned = loop_posets(features, mirrored, labels, flips, num_nearest)
    posets = Posets.build(features, labels, num_nearest, mirrored=mirrored, flips=flips, round=3)
    assert posets.medoids.tolist() == found
    assert posets.nearest_classes.tolist() == nearest
    np.testing.assert_allclose(posets.nearest_distances, distances, rtol=1e-5)
    assert posets.flips.tolist() == turned.tolist()
    assert (posets.num_samples, posets.num_classes, posets.num_nearest, posets.round) == (
        60,
        7,
        num_nearest,
        3,
    )


def test_build_without_mirror_images():
    features, _, labels, _ = random_case(5)
    found, nearest, _, _ = loop_posets(features, features, labels, np.zeros(60, bool), 2)
    posets = Posets.build(torch.from_numpy(features), torch.from_numpy(labels))
    assert posets.medoids.tolist() == found
    assert posets.nearest_classes.tolist() == nearest
    assert not posets.flips.any()


@pytest.mark.parametrize("k", [1, 3, 12, 59])
@pytest.mark.parametrize("num_nearest", [1, 3, 9])
@pytest.mark.parametrize("sources", [None, np.arange(60) // 4])
def test_lists_of_neighbors_change_nothing(monkeypatch, k, num_nearest, sources):
    features, _, labels, _ = random_case(k)
    features[30:40] = features[:10]  # equal distances
    neighbors = search(features, k, sources=sources)
    expected = Posets.build(features, labels, num_nearest, sources=sources)
    searched = []

    def counted(*arguments, query_features, **options):
        searched.append(len(query_features))
        return search(*arguments, query_features=query_features, **options)

    monkeypatch.setattr("pml_posets._nearest_classes.search", counted)
    posets = Posets.build(features, labels, num_nearest, sources=sources, neighbors=neighbors)
    assert posets.equals(expected)
    if k == 59:
        assert not searched  # the lists hold all
    elif (k, num_nearest) == (12, 1):
        assert 0 < sum(searched) < 30


def test_lists_that_do_not_fit():
    features, mirrored, labels, _ = random_case(0)
    neighbors = search(features, 5, mirrored=mirrored)
    with pytest.raises(ValueError, match="neighbors do not tell the nearest medoids of mirrored features"):
        Posets.build(features, labels, mirrored=mirrored, neighbors=neighbors)
    with pytest.raises(ValueError, match="neighbors and mirrored do not match"):
        Posets.build(features, labels, neighbors=neighbors)
    with pytest.raises(ValueError, match="a row for each of the 60 samples"):
        Posets.build(features, labels, neighbors=search(features[:50], 5))


def test_sources_leave_out_classes_of_the_own_video():
    features = np.float32([[0.0], [0.1], [4.0], [4.1], [0.2]])
    labels, sources = [0, 0, 1, 1, -1], ["a", "b", "c", "d", "a"]
    assert Posets.build(features, labels).nearest_classes[4].tolist() == [0, 1]
    posets = Posets.build(features, labels, sources=sources)
    assert posets.medoids.tolist() == [0, 2]
    assert posets.nearest_classes.tolist() == [[0, 1], [0, 1], [1, 0], [1, 0], [1, -1]]
    with pytest.raises(ValueError, match=r"sources must have shape \(5,\)"):
        Posets.build(features, labels, sources=["a"])


def test_poset_lists_unassigned_samples_by_distance():
    features, _, labels, _ = random_case(1)
    posets = Posets.build(features, labels, 3)
    for c in range(posets.num_classes):
        medoid = features[posets.medoids[c]]
        expected = [i for i in range(60) if labels[i] < 0 and c in posets.nearest_classes[i]]
        expected.sort(key=lambda i: np.linalg.norm(features[i] - medoid))
        assert posets.poset(c).tolist() == expected
        assert posets.members(c).tolist() == np.flatnonzero(labels == c).tolist()
    assert posets.sizes.tolist() == np.bincount(labels[labels >= 0]).tolist()
    assert posets.unassigned.tolist() == np.flatnonzero(labels < 0).tolist()
    assert np.flatnonzero(posets.is_medoid).tolist() == sorted(posets.medoids)
    for wrong in (-1, posets.num_classes, 1.0, True):
        with pytest.raises(ValueError, match="c must be a class id"):
            posets.poset(wrong)


@pytest.mark.parametrize("size", [1, 2, 3, 32, 33, 200])
def test_medoids_of_any_size(size):
    rng = np.random.default_rng(size)
    features = (100 + rng.normal(size=(3 * size, 6))).astype(np.float32)
    labels = rng.permutation(np.repeat(np.arange(3), size))
    assert medoids(features, labels).tolist() == loop_medoids(features.astype(np.float64), labels)


def test_medoids_of_a_class_beyond_one_block(monkeypatch):
    monkeypatch.setattr("pml_posets._classes._WHOLE_CLASS", 40)
    monkeypatch.setattr("pml_posets._classes.BLOCK_BYTES", 4000)
    features = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
    assert medoids(features, np.repeat([0, 1], 75)).tolist() == loop_medoids(features, np.repeat([0, 1], 75))


def test_tied_medoids_take_the_lower_index():
    square = np.float32([[1, 0], [0, 1], [0, 0], [1, 1], [7, 7]])
    assert medoids(square, [0, 0, 0, 0, -1]).tolist() == [0]
    assert medoids(np.zeros((40, 3), np.float32), np.repeat([1, 0], 20)).tolist() == [20, 0]


def test_near_duplicates_keep_their_distances():
    """Far from the origin, products of float32 rows would see no difference at all."""
    line = np.float32([[1000.0], [1000.001], [1000.002], [1000.01]])
    assert medoids(line, [0, 0, 0, 0]).tolist() == [1]
    assert medoids(np.repeat(line, 10, 0)[::-1], [0] * 40).tolist() == loop_medoids(
        np.repeat(line, 10, 0)[::-1].astype(np.float64), [0] * 40
    )


def test_no_class_and_few_classes():
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    none = Posets.build(features, [-1] * 6, 2)
    assert none.num_classes == 0
    assert none.medoids.shape == none.sizes.shape == (0,)
    assert (none.nearest_classes == -1).all()
    assert np.isinf(none.nearest_distances).all()
    assert none.unassigned.tolist() == list(range(6))
    few = Posets.build(features, [0, 0, 1, 1, -1, -1], 4)
    assert (few.nearest_classes[:, :2] >= 0).all()
    assert (few.nearest_classes[:, 2:] == -1).all()
    assert np.array_equal(np.isinf(few.nearest_distances), few.nearest_classes < 0)
    alone = Posets.build(features[:1], [0])
    assert alone.nearest_classes.tolist() == [[0, -1]]
    assert alone.nearest_distances[0, 0] == 0


def test_mirrored_copies_are_recognised():
    features, mirrored, labels, _ = random_case(4)
    plain = Posets.build(features, labels, 2, mirrored=mirrored)
    free = plain.unassigned
    swapped, swapped_mirrored = features.copy(), mirrored.copy()
    swapped[free], swapped_mirrored[free] = mirrored[free], features[free]
    turned = Posets.build(swapped, labels, 2, mirrored=swapped_mirrored)
    assert (turned.flips[free] != plain.flips[free]).all()
    assert turned.nearest_classes.tolist() == plain.nearest_classes.tolist()


def test_saved_and_loaded_whole(tmp_path):
    features, mirrored, labels, flips = random_case(0)
    posets = Posets.build(features, labels, 3, mirrored=mirrored, flips=flips, round=7)
    path = tmp_path / "round 7"
    posets.save(path)
    loaded = Posets.load(str(path))
    assert loaded.equals(posets)
    assert not loaded.equals(Posets.build(features, labels, 3, mirrored=mirrored, flips=flips, round=8))
    assert not posets.equals("posets")
    assert [loaded.poset(c).tolist() for c in range(7)] == [posets.poset(c).tolist() for c in range(7)]
    assert sorted(os.listdir(tmp_path)) == ["round 7"]
    assert Posets.from_arrays(posets.to_arrays()).equals(posets)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    features, _, labels, _ = random_case(0)
    old, new = Posets.build(features, labels), Posets.build(features, labels, round=1)
    path = tmp_path / "posets.npz"
    old.save(path)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        new.save(path)
    assert Posets.load(path).equals(old)
    assert os.listdir(tmp_path) == ["posets.npz"]
    with pytest.raises(OSError, match="nowhere"):
        new.save(tmp_path / "nowhere" / "posets.npz")


def test_damaged_files_are_never_taken_for_good(tmp_path):
    features, _, labels, _ = random_case(0)
    posets = Posets.build(features, labels)
    path = tmp_path / "posets.npz"
    posets.save(path)
    content = path.read_bytes()
    for cut in [*range(0, 200, 7), *range(200, len(content), 101)]:
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="no whole file of posets"):
            Posets.load(path)
    for place in range(0, len(content), 23):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        with contextlib.suppress(ValueError):  # else it was a byte that means nothing
            assert Posets.load(path).equals(posets)
    np.savez(path, labels=labels)
    with pytest.raises(ValueError, match="format"):
        Posets.load(path)
    np.savez(path, format=1, labels=labels)
    with pytest.raises(ValueError, match="lack the fields medoids, nearest_classes"):
        Posets.load(path)
    with path.open("wb") as file:
        np.save(file, labels)
    with pytest.raises(ValueError, match="single array"):
        Posets.load(path)
    with pytest.raises(FileNotFoundError):
        Posets.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"labels": np.zeros(5, int)},
            ValueError,
            r"shape \(6,\) to match the samples, got \(5,\): was the dataset",
        ),
        ({"labels": np.zeros(6)}, TypeError, "labels must be integers"),
        ({"labels": [True] * 6}, TypeError, "labels must be integers"),
        ({"labels": [0, 0, -2, 1, 1, 1]}, ValueError, "got -2 at index 2"),
        ({"labels": [0, 0, 2, 2, 2, 2]}, ValueError, "got 2 classes with ids up to 2: renumber them"),
        ({"features": np.full((6, 2), np.nan)}, ValueError, "features must be finite, but row 0"),
        ({"features": np.zeros((6, 2, 1))}, ValueError, r"features must have shape \(N, D\)"),
        ({"mirrored": np.zeros((5, 2))}, ValueError, r"mirrored must have the shape \(6, 2\)"),
        ({"mirrored": np.full((6, 2), np.inf)}, ValueError, "mirrored must be finite"),
        ({"flips": [True] * 6}, ValueError, "6 samples as mirrored, but there are no mirrored features"),
        ({"flips": np.zeros(5, bool)}, ValueError, r"flips must have shape \(6,\)"),
        ({"flips": np.zeros(6)}, TypeError, "flips must be booleans"),
        ({"num_nearest": 0}, ValueError, "num_nearest must be at least 1, got 0"),
        ({"num_nearest": 2.0}, TypeError, "num_nearest must be an integer"),
        ({"round": -1}, ValueError, "round must be at least 0"),
    ],
)
def test_bad_input_says_what_is_wrong(changes, error, text):
    given = {"features": np.arange(12.0).reshape(6, 2), "labels": np.array([0, 0, 1, 1, 1, -1]), **changes}
    with pytest.raises(error, match=text):
        Posets.build(**given)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("medoids", [0, 0], "medoid of class 1 is sample 0, no member"),
        ("medoids", [0, 9], "dataset indices"),
        ("medoids", [0], "one a class"),
        ("nearest_classes", [[0], [0], [2], [0]], r"class ids in 0\.\.1"),
        ("nearest_classes", [[0], [1], [1], [0]], "own class"),
        ("nearest_classes", [[0], [0], [1]], "nearest_classes must have shape"),
        ("nearest_distances", [[0], [0], [0], [np.inf]], "inf where nearest_classes is -1"),
        ("nearest_distances", [[0], [0], [0], [-1]], "nearest_distances must be finite and >= 0"),
        ("nearest_distances", [[0], [0], [0], [np.nan]], "nearest_distances must be finite and >= 0"),
        ("flips", [0, 0, 0, 0], "bool"),
        ("labels", [[0, 0, 1, -1]], "labels must have shape"),
    ],
)
def test_fields_that_do_not_fit(field, value, text):
    fields = {
        "labels": np.array([0, 0, 1, -1]),
        "medoids": np.array([0, 2]),
        "nearest_classes": np.array([[0], [0], [1], [0]]),
        "nearest_distances": np.array([[0.0], [1.0], [0.0], [2.0]]),
        "flips": np.zeros(4, bool),
    }
    assert Posets(**fields).sizes.tolist() == [2, 1]
    with pytest.raises(ValueError, match=text):
        Posets(**{**fields, field: np.array(value)})


def test_relabel_keeps_order_and_the_unassigned():
    assert relabel([9, -1, 4, 9, 30]).tolist() == [1, -1, 0, 1, 2]
    assert relabel(torch.tensor([-1, -1])).tolist() == [-1, -1]
    assert relabel(np.array([3], np.uint8)).tolist() == [0]
    with pytest.raises(ValueError, match="got -3"):
        relabel([-3])
    with pytest.raises(TypeError, match="integers"):
        relabel([0.5])
    assert as_labels([0, 5], 2, contiguous=False).tolist() == [0, 5]


def test_members_come_in_bounded_blocks():
    labels = np.random.default_rng(0).integers(-1, 50, 400)
    members = ClassMembers.of(relabel(labels))
    seen = [
        (c, row.tolist())
        for classes, block in members.blocks(10**6)
        for c, row in zip(classes, block, strict=True)
    ]
    assert sorted(seen) == [
        (c, np.flatnonzero(relabel(labels) == c).tolist()) for c in range(members.sizes.size)
    ]

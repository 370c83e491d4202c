"""Posets against plain loops: medoids, nearest classes, the order inside a poset, files."""

import contextlib
import os
from functools import partial

import loops
import numpy as np
import pytest
import torch
from refusals import refuses

from pml_posets._classes import ClassMembers
from pml_posets.neighbors.nearest import Neighbors, search
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
    return [*loops.medoids(np.float64(features), [*labels], lambda x, y: np.linalg.norm(x - y)).values()]


def loop_posets(features, mirrored, labels, flips, num_nearest):
    """Medoids, nearest classes, distances and flips by their definitions."""
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_nearest", [1, 3])
def test_build_agrees_with_plain_loops(seed, num_nearest):
    features, mirrored, labels, flips = random_case(seed)
    found, nearest, distances, turned = loop_posets(features, mirrored, labels, flips, num_nearest)
    flips |= labels < 0  # of no effect
    posets = Posets.build(features, labels, num_nearest, mirrored=mirrored, flips=flips, round=3)
    assert posets.medoids.tolist() == found
    assert posets.nearest_classes.tolist() == nearest
    np.testing.assert_allclose(posets.nearest_distances, distances, rtol=1e-5)
    assert posets.flips.tolist() == turned.tolist()
    sizes = posets.num_samples, posets.num_classes, posets.num_nearest, posets.round
    assert sizes == (60, 7, num_nearest, 3)


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


def test_sources_leave_out_classes_of_the_own_video():
    features = np.float32([[0.0], [0.1], [4.0], [4.1], [0.2]])
    labels, sources = [0, 0, 1, 1, -1], ["a", "b", "c", "d", "a"]
    assert Posets.build(features, labels).nearest_classes[4].tolist() == [0, 1]
    posets = Posets.build(features, labels, sources=sources)
    assert posets.medoids.tolist() == [0, 2]
    assert posets.nearest_classes.tolist() == [[0, 1], [0, 1], [1, 0], [1, 0], [1, -1]]


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


@pytest.mark.parametrize("size", [1, 2, 3, 32, 33, 60])
def test_medoids_of_any_size(size):
    rng = np.random.default_rng(size)
    features = (100 + rng.normal(size=(3 * size, 6))).astype(np.float32)
    labels = rng.permutation(np.repeat(np.arange(3), size))
    assert medoids(features, labels).tolist() == loop_medoids(features, labels)


def test_medoids_of_a_class_beyond_one_block(monkeypatch):
    monkeypatch.setattr("pml_posets._classes._WHOLE_CLASS", 40)
    monkeypatch.setattr("pml_posets._classes.BLOCK_BYTES", 4000)
    features = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
    assert medoids(features, np.repeat([0, 1], 75)).tolist() == loop_medoids(features, np.repeat([0, 1], 75))


def test_tied_medoids_take_the_lower_index():
    square = np.float32([[1, 0], [0, 1], [0, 0], [1, 1], [7, 7]])
    assert medoids(square, [0, 0, 0, 0, -1]).tolist() == [0]
    assert medoids(np.zeros((40, 3), np.float32), np.repeat([1, 0], 20)).tolist() == [20, 0]


def test_no_class_and_few_classes():
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    none = Posets.build(features, [-1] * 6, 2)
    assert none.num_classes == 0
    assert none.medoids.shape == none.sizes.shape == (0,)
    assert (none.nearest_classes == -1).all()
    assert none.unassigned.tolist() == list(range(6))
    few = Posets.build(features, [0, 0, 1, 1, -1, -1], 4)
    assert (few.nearest_classes[:, :2] >= 0).all()
    assert (few.nearest_classes[:, 2:] == -1).all()
    alone = Posets.build(features[:1], [0])
    assert alone.nearest_classes.tolist() == [[0, -1]]
    assert alone.nearest_distances.tolist() == [[0, np.inf]]


def test_saved_and_loaded_whole(tmp_path):
    features, mirrored, labels, flips = random_case(0)
    build = partial(Posets.build, features, labels, 3, mirrored=mirrored, flips=flips)
    posets = build(round=7)
    posets.save(tmp_path / "round 7")
    loaded = Posets.load(str(tmp_path / "round 7"))
    assert loaded.equals(posets)
    assert not loaded.equals(build(round=8))
    assert not posets.equals("posets")
    assert [loaded.poset(c).tolist() for c in range(7)] == [posets.poset(c).tolist() for c in range(7)]
    assert sorted(os.listdir(tmp_path)) == ["round 7"]
    assert Posets.from_arrays(posets.to_arrays()).equals(posets)


def test_damaged_files_are_never_taken_for_good(tmp_path):
    features, _, labels, _ = random_case(0)
    posets = Posets.build(features, labels)
    path = tmp_path / "posets.npz"
    posets.save(path)
    content = path.read_bytes()
    for cut in [*range(0, 200, 11), *range(200, len(content), 199)]:
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="no whole file of posets"):
            Posets.load(path)
    for place in range(0, len(content), 47):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        with contextlib.suppress(ValueError):  # else it was a byte that means nothing
            assert Posets.load(path).equals(posets)
    for arrays, text in (
        ({"labels": labels}, "its format is not 1"),
        ({"format": 2, **posets.to_arrays()}, "its format is not 1"),
        ({"format": 1, "labels": labels}, "lack the fields medoids, nearest_classes"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=text):
            Posets.load(path)


def test_relabel_keeps_order_and_the_unassigned():
    assert relabel([9, -1, 4, 9, 30]).tolist() == [1, -1, 0, 1, 2]
    assert relabel(torch.tensor([-1, -1])).tolist() == [-1, -1]
    assert relabel(np.array([3], np.uint8)).tolist() == [0]


def test_members_come_in_bounded_blocks():
    labels = relabel(np.random.default_rng(0).integers(-1, 50, 400))
    members, seen = ClassMembers.of(labels), {}
    for classes, block in members.blocks(10**6):
        seen.update(zip(classes.tolist(), block.tolist(), strict=True))
    assert seen == {c: np.flatnonzero(labels == c).tolist() for c in range(members.sizes.size)}


SIX = np.arange(12.0).reshape(6, 2)
MIRRORED = search(SIX, 5, mirrored=-SIX)
LISTS = search(SIX, 3)
MADE = Posets.build(SIX, [0, 0, 1, 1, 1, -1])


def build(features=SIX, labels=(0, 0, 1, 1, 1, -1), **options):
    return lambda: Posets.build(features, np.array(labels), **options)


def listed(indices):
    return build(neighbors=Neighbors(np.array(indices), LISTS.distances))


test_bad_input_says_what_is_wrong = refuses(
    (build(labels=[0] * 5), ValueError, "shape (6,) to match the samples, got (5,): was the dataset"),
    (build(labels=[0.0] * 6), TypeError, "labels must be integers"),
    (build(labels=[True] * 6), TypeError, "labels must be integers"),
    (build(labels=[0, 0, -2, 1, 1, 1]), ValueError, "got -2 at index 2"),
    (build(labels=[0, 0, 2, 2, 2, 2]), ValueError, "got 2 classes with ids up to 2: renumber them"),
    (build(SIX * np.nan), ValueError, "features must be finite, but row 0"),
    (build(SIX[:, :, None]), ValueError, "features must have shape (N, D)"),
    (build(mirrored=SIX[:5]), ValueError, "mirrored must have the shape (6, 2)"),
    (build(mirrored=SIX * np.nan), ValueError, "mirrored must be finite"),
    (build(flips=[True] * 6), ValueError, "6 samples as mirrored, but there are no mirrored features"),
    (build(flips=np.zeros(5, bool)), ValueError, "flips must have shape (6,)"),
    (build(flips=np.zeros(6)), TypeError, "flips must be booleans"),
    (build(num_nearest=0), ValueError, "num_nearest must be at least 1, got 0"),
    (build(round=-1), ValueError, "round must be at least 0"),
    (build(sources=["a"]), ValueError, "sources must have shape (6,)"),
    (build(mirrored=-SIX, neighbors=MIRRORED), ValueError, "neighbors do not tell the nearest medoids"),
    (build(neighbors=MIRRORED), ValueError, "neighbors and mirrored do not match"),
    (listed(LISTS.indices[:5]), ValueError, "a row for each of the 6 samples"),
    (listed(LISTS.indices + 3), ValueError, "neighbors must hold indices in -1..5: they are of another"),
    (listed(np.arange(6)[:, None] + [[0, 0, 0]]), ValueError, "must not hold a sample as its own neighbor"),
    (lambda: MADE.poset(-1), ValueError, "c must be a class id in 0..1, got -1"),
    (lambda: MADE.poset(2), ValueError, "c must be a class id in 0..1, got 2"),
    (lambda: MADE.poset(1.0), ValueError, "c must be a class id in 0..1, got 1.0"),
    (lambda: MADE.members(True), ValueError, "c must be a class id in 0..1, got True"),
    (lambda: relabel([-3]), ValueError, "got -3"),
    (lambda: relabel([0.5]), TypeError, "integers"),
)


def fields(**changes):
    """Those of four samples, the last unassigned, with changes."""
    given = {
        "labels": [0, 0, 1, -1],
        "medoids": [0, 2],
        "nearest_classes": [[0], [0], [1], [0]],
        "nearest_distances": [[0.0], [1.0], [0.0], [2.0]],
        "flips": [False] * 4,
        **changes,
    }
    return lambda: Posets(**{name: np.array(value) for name, value in given.items()})


def test_fields_that_fit():
    assert fields()().sizes.tolist() == [2, 1]


DISTANCES = "nearest_distances must be finite and >= 0, but inf where nearest_classes is -1"

test_fields_that_do_not_fit = refuses(
    (fields(medoids=[0, 0]), ValueError, "medoid of class 1 is sample 0, no member"),
    (fields(medoids=[0, 9]), ValueError, "dataset indices"),
    (fields(medoids=[0]), ValueError, "one a class"),
    (fields(nearest_classes=[[0], [0], [2], [0]]), ValueError, "class ids in 0..1"),
    (fields(nearest_classes=[[0], [1], [1], [0]]), ValueError, "own class"),
    (fields(nearest_classes=[[0], [0], [1]]), ValueError, "nearest_classes must have shape"),
    (fields(nearest_distances=[[0], [0], [0], [np.inf]]), ValueError, DISTANCES),
    (fields(nearest_distances=[[0], [0], [0], [-1]]), ValueError, DISTANCES),
    (fields(nearest_distances=[[0], [0], [0], [np.nan]]), ValueError, DISTANCES),
    (fields(flips=[0, 0, 0, 0]), ValueError, "bool"),
    (fields(labels=[[0, 0, 1, -1]]), ValueError, "labels must have shape"),
)

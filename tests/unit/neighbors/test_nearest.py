"""Neighbor search against plain loops in float64, faiss against torch, and what it says to bad input."""

import numpy as np
import pytest
import torch
from refusals import no_warning, refuses_each

from pml_posets import _nearest_classes
from pml_posets._validation import as_features
from pml_posets.neighbors import _proposals as proposals
from pml_posets.neighbors import nearest
from pml_posets.neighbors._queries import Block
from pml_posets.neighbors.nearest import Neighbors, search
from pml_posets.posets import Posets

BOTH_BACKENDS = pytest.mark.parametrize("backend", ["torch", "faiss"])
BOTH_METHODS = pytest.mark.parametrize("method", ["exact", "approximate"])


def loops(features, k, queries, *, mirrors=None, sources=None, query_sources=None, own=None):
    """Rows of (distance, index, flip), by definition."""
    answer = []
    for q in range(len(queries)):
        row = []
        for j, sample in enumerate(features.astype(np.float64)):
            if (own is not None and own[q] == j) or (sources is not None and sources[j] == query_sources[q]):
                continue
            views = [queries[q]] if mirrors is None else [queries[q], mirrors[q]]
            gaps = [np.sqrt(((view.astype(np.float64) - sample) ** 2).sum()) for view in views]
            row.append((min(gaps), j, min(gaps) < gaps[0]))
        row.sort()
        answer.append(row[:k] + [(np.inf, -1, False)] * max(0, k - len(row)))
    return answer


def check(found: Neighbors, expected, mirrored: bool) -> None:
    assert found.indices.dtype == np.int64
    assert found.distances.dtype == np.float32
    np.testing.assert_allclose(found.distances, [[d for d, _, _ in row] for row in expected], 1e-5, 1e-6)
    assert found.indices.tolist() == [[j for _, j, _ in row] for row in expected]
    if mirrored:
        assert found.flips.dtype == np.bool_
        assert found.flips.tolist() == [[f for _, _, f in row] for row in expected]
    else:
        assert found.flips is None


@BOTH_METHODS
@BOTH_BACKENDS
def test_plain_loops_agree(backend, method):
    rng = np.random.default_rng(0)

    def maybe(value):
        return value if rng.random() < 0.5 else None

    for _ in range(40):
        num, dim, k = int(rng.integers(1, 50)), int(rng.integers(1, 8)), int(rng.integers(1, 12))
        features, mirrors = rng.standard_normal((2, num, dim)).astype(np.float32)
        if rng.random() < 0.5:  # many exact ties
            features, mirrors = features.round(), mirrors.round()
        mirrors, sources, rows = (
            maybe(mirrors),
            maybe(rng.integers(0, 4, num)),
            maybe(rng.integers(0, num, 7)),
        )
        exclude_self = bool(rng.random() < 0.7)
        own = np.arange(num) if rows is None else rows
        expected = loops(
            features,
            k,
            features[own],
            mirrors=None if mirrors is None else mirrors[own],
            sources=sources,
            query_sources=None if sources is None else sources[own],
            own=own if exclude_self else None,
        )
        options = {"method": method, "backend": backend, "chunk_size": int(rng.integers(1, 20))}
        options |= {"queries": rows, "mirrored": mirrors, "sources": sources, "exclude_self": exclude_self}
        check(search(features, k, **options), expected, mirrors is not None)


@BOTH_BACKENDS
def test_separate_queries(backend):
    rng = np.random.default_rng(1)
    features, queries, mirrors = (rng.standard_normal((n, 5)).astype(np.float32) for n in (40, 9, 9))
    sources, query_sources = rng.choice(list("abc"), 40), rng.choice(list("abcd"), 9)
    found = search(
        features,
        6,
        query_features=torch.from_numpy(queries),
        mirrored=mirrors,
        sources=list(sources),
        query_sources=list(query_sources),
        backend=backend,
    )
    expected = loops(features, 6, queries, mirrors=mirrors, sources=sources, query_sources=query_sources)
    check(found, expected, True)
    same = search(features, 1, query_features=features[3:5], backend=backend)
    assert same.indices.ravel().tolist() == [3, 4]  # a query from outside may find its equal


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("by_source", [False, True])
def test_backends_agree_on_larger_data(mirror, by_source):
    rng = np.random.default_rng(2)
    features = rng.standard_normal((1000, 24)).astype(np.float32)
    features[100:140] = features[60:100]  # exact copies
    options = {"mirrored": features[rng.permutation(1000)] if mirror else None}
    if by_source:
        options["sources"] = rng.integers(0, 12, 1000)
    by_faiss = search(features, 20, backend="faiss", **options)
    by_torch = search(features, 20, backend="torch", chunk_size=77, **options)
    np.testing.assert_array_equal(by_faiss.indices, by_torch.indices)
    np.testing.assert_allclose(by_faiss.distances, by_torch.distances, atol=1e-4)
    if mirror:
        np.testing.assert_array_equal(by_faiss.flips, by_torch.flips)
    again = search(features, 20, backend="faiss", **options)
    np.testing.assert_array_equal(by_faiss.indices, again.indices)


@BOTH_BACKENDS
def test_tight_clusters_far_from_the_origin(backend):
    """|x|^2 - 2 x.y alone would be off by 100 times what tells these neighbours apart."""
    rng = np.random.default_rng(3)
    centers = np.repeat(1000 * rng.standard_normal((4, 8)), 50, axis=0)
    features = (centers + 0.05 * rng.standard_normal((200, 8))).astype(np.float32)
    own = np.arange(0, 200, 9)
    found = search(features, 4, backend=backend, queries=own)
    expected = loops(features, 4, features[own], own=own)
    np.testing.assert_allclose(found.distances, [[d for d, _, _ in row] for row in expected], rtol=1e-4)


@BOTH_METHODS
@BOTH_BACKENDS
@pytest.mark.parametrize("offset", [1e4, -3e5])
def test_features_far_from_the_origin(backend, method, offset, monkeypatch):
    """All samples, some of them, mirror images and queries from outside; no query needs all distances."""
    monkeypatch.setattr(proposals, "MIN_REDUCED_SAMPLES", 50)
    monkeypatch.setattr(nearest, "measure_all", lambda *_: pytest.fail("measured all"))
    rng = np.random.default_rng(5)
    features, mirrors = ((rng.standard_normal((90, 6)) + offset).astype(np.float32) for _ in range(2))
    options = {"backend": backend, "method": method}
    own = np.arange(90)
    check(search(features, 4, **options), loops(features, 4, features, own=own), False)
    found = search(features, 4, mirrored=mirrors, queries=own[:20], **options)
    check(found, loops(features, 4, features[:20], mirrors=mirrors, own=own), True)
    found = search(features, 4, query_features=mirrors, **options)
    check(found, loops(features, 4, mirrors), False)


@BOTH_BACKENDS
def test_an_approximate_search_far_from_the_origin(backend, monkeypatch):
    monkeypatch.setattr(proposals, "MIN_REDUCED_SAMPLES", 1000)
    far = clusters(1500, 300)[0] + np.float32(1e4)
    assert recall(search(far, 10, method="approximate", backend=backend), search(far, 10)) > 0.95


def lowest_others(num, k):
    return [[j for j in range(num) if j != i][:k] for i in range(num)]


@BOTH_BACKENDS
def test_equal_distances_come_by_index(backend):
    features = np.zeros((30, 3), np.float32)
    features[::2] += 1
    found = search(features, 5, queries=[0, 1, 28], backend=backend)
    assert found.indices.tolist() == [[2, 4, 6, 8, 10], [3, 5, 7, 9, 11], [0, 2, 4, 6, 8]]
    collapsed = search(np.ones((1000, 3)), 3, backend=backend)
    assert (collapsed.distances == 0).all()
    assert collapsed.indices.tolist() == lowest_others(1000, 3)
    one_hot = search(np.eye(300), 4, backend=backend)
    assert one_hot.indices.tolist() == lowest_others(300, 4)


@BOTH_BACKENDS
@pytest.mark.parametrize("where", [0.0, 1e4])
def test_many_ties_of_a_lattice(backend, where):
    """Distances take few values, each of many samples; with sources, mirror images, outside queries."""
    rng = np.random.default_rng(6)
    features, mirrors = rng.integers(0, 2, (2, 200, 5)).astype(np.float32) + np.float32(where)
    sources, own = rng.integers(0, 9, 200), np.arange(0, 200, 13)
    given = {"mirrors": mirrors[own], "sources": sources, "query_sources": sources[own]}
    options = {"queries": own, "sources": sources, "mirrored": mirrors, "backend": backend}
    check(search(features, 3, **options), loops(features, 3, features[own], **given), True)
    expected = loops(features, 3, features, own=np.arange(200))
    check(search(features, 3, backend=backend), expected, False)
    found = search(features, 40, query_features=mirrors[:5], backend=backend)
    check(found, loops(features, 40, mirrors[:5]), False)


@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_all_pairs_at_once_are_single_searches(monkeypatch, by_source, exclude_self):
    monkeypatch.setattr(proposals, "_JOIN_ROWS", 64)
    rng = np.random.default_rng(7)
    features = rng.standard_normal((333, 7)).astype(np.float32)
    codes = rng.integers(0, 50, 333) if by_source else None
    index, squares = proposals.all_pairs(features, 9, codes, exclude_self)
    gaps = ((features[:, None].astype(float) - features) ** 2).sum(2)
    if exclude_self:
        np.fill_diagonal(gaps, np.inf)
    if by_source:
        gaps[codes[:, None] == codes] = np.inf
    np.testing.assert_array_equal(index, np.argsort(gaps, axis=1)[:, :9])
    np.testing.assert_allclose(squares, np.sort(gaps, axis=1)[:, :9], atol=1e-5)
    few, none = proposals.all_pairs(features[:5], 9, np.array([0, 0, 0, 0, 1]), True)
    assert few[:, 0].tolist() == [4, 4, 4, 4, few[4, 0]]
    assert (few[:4, 1:] == -1).all()
    assert torch.isinf(none[:4, 1:]).all()


def test_the_automatic_method(monkeypatch):
    assert proposals.faster_method(14_000, 14_000, 4096) == "exact"
    assert proposals.faster_method(50_000, 50_000, 256) == "exact"
    assert proposals.faster_method(113_516, 10, 4096) == "exact"
    assert proposals.faster_method(113_516, 113_516, 4096) == "approximate"
    features, _ = clusters(500, 20)
    asked = []
    monkeypatch.setattr(nearest, "faster_method", lambda *sizes: asked.append(sizes) or "exact")
    found = search(features, 5, queries=[3, 1], method="auto").indices
    np.testing.assert_array_equal(found, search(features, 5).indices[[3, 1]])
    assert asked == [(len(features), 2, features.shape[1])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_of_other_precision(dtype):
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = search(rows.float().numpy(), 3, mirrored=rows.flip(1).float().numpy())
    for given in (rows, rows.clone().requires_grad_(), list(rows), tuple(rows)):
        found = search(given, 3, mirrored=rows.flip(1))
        np.testing.assert_array_equal(found.indices, expected.indices)
        outside = search(given, 3, query_features=given, mirrored=rows.flip(1))
        assert (outside.indices[:, 0] == np.arange(40)).all()
    labels = np.arange(40) // 4
    assert Posets.build(rows, labels).equals(Posets.build(rows.float(), labels))


def test_posets_by_an_approximate_search(monkeypatch):
    monkeypatch.setattr(proposals, "MIN_REDUCED_SAMPLES", 500)
    asked = []
    monkeypatch.setattr(
        _nearest_classes, "search", lambda *a, **k: asked.append(k["method"]) or search(*a, **k)
    )
    features, _ = clusters(3000, 300)
    labels = np.where(np.arange(3000) % 3 < 2, np.arange(3000) // 3, -1)  # 1000 medoids
    exact = Posets.build(features, labels, 2)
    found = Posets.build(features, labels, 2, method="approximate")
    assert asked == ["exact", "approximate"]
    np.testing.assert_array_equal(found.medoids, exact.medoids)
    assert (found.nearest_classes == exact.nearest_classes).mean() > 0.95


@BOTH_BACKENDS
def test_sources_that_leave_few_samples_or_none(backend):
    features = np.arange(1500, dtype=np.float32)[:, None]
    sources = np.array(["long"] * 1497 + ["b", "c", "d"])
    found = search(features, 4, queries=[0, 1497], sources=sources, backend=backend)
    assert found.indices.tolist() == [[1497, 1498, 1499, -1], [1496, 1498, 1495, 1499]]
    assert found.distances[0].tolist() == [1497, 1498, 1499, np.inf]
    none = search(np.eye(4), 2, sources=np.zeros(4, int), mirrored=np.eye(4), backend=backend)
    assert (none.indices == -1).all()
    assert np.isinf(none.distances).all()
    assert not none.flips.any()
    assert search([[1.0, 2.0]], 3, backend=backend).indices.tolist() == [[-1, -1, -1]]
    assert search(np.eye(4), 2, queries=[], backend=backend).indices.shape == (0, 2)


def clusters(num: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a few hundred sources that share much and differ along a fading spectrum."""
    rng = np.random.default_rng(4)
    spectrum = 1 / np.sqrt(1 + np.arange(dim))
    sources = rng.integers(0, num // 20, num)
    centres = rng.standard_normal((num // 20, dim))
    features = (centres[sources] + rng.standard_normal((num, dim))) * spectrum
    return features.astype(np.float32), sources


def recall(found: Neighbors, exact: Neighbors) -> float:
    pairs = zip(found.indices.tolist(), exact.indices.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


@BOTH_BACKENDS
def test_approximate_search_in_fewer_dimensions(backend, monkeypatch):
    monkeypatch.setattr(proposals, "MIN_REDUCED_SAMPLES", 1000)
    monkeypatch.setattr(proposals, "MAX_REDUCED_DIM", 40)
    features, sources = clusters(2000, 300)
    queries = np.arange(0, 2000, 7)
    directions = proposals.principal_directions(torch.from_numpy(features), seed=0)
    assert directions.shape == (300, 40)
    np.testing.assert_allclose(directions.T @ directions, np.eye(40), atol=1e-4)
    options = {"queries": queries, "sources": sources, "mirrored": np.roll(features, 1, axis=0)}
    exact = search(features, 10, backend=backend, **options)
    found = search(features, 10, backend=backend, method="approximate", **options)
    assert 0.95 <= recall(found, exact) < 1
    same = found.indices == exact.indices
    np.testing.assert_array_equal(found.distances[same], exact.distances[same])  # measured in full
    again = search(features, 10, backend=backend, method="approximate", **options)
    np.testing.assert_array_equal(found.indices, again.indices)


@BOTH_BACKENDS
def test_short_lists_of_an_approximate_search_are_filled(backend, monkeypatch):
    monkeypatch.setattr(proposals, "MIN_REDUCED_SAMPLES", 1000)
    monkeypatch.setattr(proposals, "MAX_REDUCED_DIM", 40)
    features, _ = clusters(4000, 300)
    alone = np.arange(4000) % 1999 > 0  # a source of all but a few samples
    few = search(features, 2, queries=[1], sources=alone, method="approximate", backend=backend)
    np.testing.assert_array_equal(few.indices, search(features, 2, queries=[1], sources=alone).indices)
    assert (few.indices >= 0).all()


def test_tiles_stay_small(monkeypatch):
    """No matrix of all distances: what one product makes is bounded."""
    made = []
    product = torch.addmm

    def record(*args, **options):
        out = product(*args, **options)
        made.append(out.numel())
        return out

    monkeypatch.setattr(torch, "addmm", record)
    table = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    tiles = proposals.TileProposer(table, proposals.row_squares(table))
    tiles.tile = 20_000
    own = torch.arange(100)
    found, _ = tiles.propose(table[:100], Block([], own, own, None, None, np.ones(100, np.int64)), 7)
    assert max(made) <= 20_000
    assert len(made) == 25
    np.testing.assert_array_equal(found, search(table, 7, queries=np.arange(100), backend="torch").indices)


def test_the_callers_state_is_kept():
    before = torch.get_rng_state()
    torch.set_float32_matmul_precision("high")
    try:
        search(torch.rand(50, 3, requires_grad=True, generator=torch.Generator().manual_seed(0)), 2)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_read_only_features_do_not_warn():
    features = np.eye(5, dtype=np.float32)
    features.flags.writeable = False
    with no_warning():
        assert search(features, 1).indices[0, 0] == 1


def test_progress_bar(capfd):
    search(np.eye(3), 1)
    assert capfd.readouterr() == ("", "")
    search(np.eye(3), 1, progress=True)
    assert "neighbors" in capfd.readouterr().err


OUTSIDE = {"query_features": np.eye(4), "sources": [1] * 6}


test_bad_options = refuses_each(
    lambda options: search(**{"features": np.ones((6, 4)), "k": 2, **options}),
    ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"k": 1.5}, TypeError, "k must be an integer"),
    ({"method": "quick"}, ValueError, "method must be one of 'auto', 'exact', 'approximate', got 'quick'"),
    ({"backend": "annoy"}, ValueError, "backend must be one of 'auto', 'faiss', 'torch'"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
    ({"queries": [0, 6]}, ValueError, r"queries must lie in 0\.\.5, got 6"),
    ({"queries": [-1]}, ValueError, "got -1"),
    ({"queries": [0.5]}, TypeError, "row numbers"),
    ({"queries": [[1]]}, ValueError, r"shape \(Q,\)"),
    ({"queries": [1], "query_features": np.eye(4)}, ValueError, "not both"),
    ({"query_features": np.eye(3)}, ValueError, "query_features must have 4 dimensions"),
    ({"mirrored": np.ones((5, 4))}, ValueError, r"mirrored must have the shape \(6, 4\) of the features"),
    ({"sources": [1, 2]}, ValueError, r"sources must have shape \(6,\)"),
    ({"query_sources": [1] * 6}, ValueError, "query_sources need sources and query_features"),
    (OUTSIDE, ValueError, "need query_sources too"),
    ({**OUTSIDE, "query_sources": list("abcd")}, TypeError, "must be of one type"),
    (
        {**OUTSIDE, "query_sources": [1, 2, None, 4]},
        TypeError,
        "query_sources must be .* got None at 2",
    ),
    ({"features": np.full((6, 4), 1e20)}, ValueError, "scale them"),
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu():
    with pytest.raises(ValueError, match="torch sees no GPU"):
        search(np.eye(3), 1, device="cuda")


def test_as_features_casts_and_keeps_what_fits():
    for dtype in (np.float16, np.float64, np.int32, np.uint8):
        out = as_features(np.ones((2, 3), dtype)[:, ::-1])
        assert out.dtype == np.float32
        assert out.flags.c_contiguous
    features = np.ones((2, 3), np.float32)
    assert as_features(features) is features
    tensor = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    assert as_features(tensor).tolist() == [[1, 1, 1], [1, 1, 1]]


test_as_features_rejects = refuses_each(
    lambda features: as_features(features, "codes"),
    (np.ones(3), ValueError, r"codes must have shape \(N, D\), got \(3,\)"),
    (np.ones((0, 3)), ValueError, "at least one sample"),
    (np.ones((2, 0)), ValueError, "at least one sample of one dimension"),
    ([[1, 2], [np.nan, 0]], ValueError, "codes must be finite, but row 1 holds"),
    ([[1e300, 2]], ValueError, "but row 0 holds"),
    (np.ones((2, 3), complex), TypeError, "real numbers, got dtype complex128"),
    ([["a"]], TypeError, "real numbers"),
    (np.ones((2, 3), bool), TypeError, "real numbers, got dtype bool"),
)

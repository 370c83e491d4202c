"""Cells of samples: what they propose against all distances, and what it costs."""

import numpy as np
import pytest
import torch

from pml_posets.neighbors import _candidates as proposals
from pml_posets.neighbors import _cells as cells
from pml_posets.neighbors import nearest as neighbors
from pml_posets.neighbors._candidates import Questions, squared_gaps
from pml_posets.neighbors._cells import Cells
from pml_posets.neighbors.nearest import search
from pml_posets.posets import Posets


def curved(num, dim, seed=0):
    """Points of a few dimensions among many, and a source for each."""
    rng = np.random.default_rng(seed)
    inner = rng.normal(size=(num, 6))
    rows = np.tanh(inner @ rng.normal(size=(6, dim))) + 0.01 * rng.normal(size=(num, dim))
    return rows.astype(np.float32), rng.integers(0, num // 10, num)


def questions(own, codes=None):
    return Questions(torch.from_numpy(own), None if codes is None else codes[own], np.ones(len(own), int))


def test_every_sample_is_a_member_once():
    table = torch.from_numpy(curved(3000, 8)[0])
    made = Cells(table, None, seed=0)
    assert sorted(made.members.tolist()) == list(range(3000))
    assert made.ends[-1] == 3000
    for c in (0, 7, len(made.centres) - 1):
        inside = made.members[made.starts[c] : made.ends[c]]
        assert (torch.cdist(table[inside], made.centres).argmin(1) == c).all()


def test_all_that_can_be_reached_is_what_loops_find(monkeypatch):
    """Where a query reaches every cell, the proposals are the nearest, less itself and its source."""
    monkeypatch.setattr(cells, "_REACH", 10_000)
    features, sources = curved(700, 5)
    table, codes = torch.from_numpy(features), torch.from_numpy(sources)
    own = np.arange(0, 700, 9)
    found, squares = Cells(table, codes, 0).propose(table[own], questions(own, codes), 8)
    for row, q in enumerate(own):
        gaps = ((features[q].astype(float) - features) ** 2).sum(1)
        gaps[sources == sources[q]] = np.inf
        expected = np.argsort(gaps, kind="stable")[:8]
        assert set(found[row].tolist()) == set(expected.tolist())
        np.testing.assert_allclose(np.sort(squares[row]), gaps[expected], atol=1e-4)


def test_short_lists_are_filled_by_none(monkeypatch):
    monkeypatch.setattr(cells, "_REACH", 10_000)
    table = torch.from_numpy(curved(200, 3)[0])
    codes = torch.zeros(200, dtype=torch.int64)
    codes[:3] = 1
    own = np.array([5, 0])
    found, squares = Cells(table, codes, 0).propose(table[own], questions(own, codes), 6)
    assert set(found[0].tolist()) == {0, 1, 2, -1}
    assert torch.isinf(squares[0][found[0] < 0]).all()
    assert (found[1] > 2).all()


@pytest.mark.parametrize("mirror", [False, True])
def test_search_by_cells(monkeypatch, mirror):
    monkeypatch.setattr(neighbors, "MIN_REDUCED_SAMPLES", 1000)
    features, sources = curved(4000, 16)
    options = {"sources": sources, "mirrored": features[:, ::-1].copy() if mirror else None}
    exact = search(features, 10, **options)
    found = search(features, 10, method="approximate", **options)
    hits = [len(set(a) & set(b)) for a, b in zip(found.indices.tolist(), exact.indices.tolist(), strict=True)]
    assert 0.95 <= np.mean(hits) / 10 <= 1
    same = found.indices == exact.indices
    np.testing.assert_array_equal(found.distances[same], exact.distances[same])  # measured in full
    assert not (sources[found.indices] == sources[:, None]).any()
    again = search(features, 10, method="approximate", **options)
    np.testing.assert_array_equal(found.indices, again.indices)
    some = search(features, 10, method="approximate", queries=[17, 3], **options)
    np.testing.assert_array_equal(some.indices, found.indices[[17, 3]])


def test_a_query_looks_at_few(monkeypatch):
    """The distances that are looked at grow as N^1.5, and no product holds more than a tile."""
    seen = []
    product = torch.addmm

    def record(*args, **options):
        out = product(*args, **options)
        seen.append(out.numel())
        return out

    monkeypatch.setattr(cells, "_REACH", 16)
    counts = []
    for num in (4000, 16_000):
        table = torch.from_numpy(curved(num, 4)[0])
        made = Cells(table, None, 0)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "addmm", record)
            own = np.arange(num)
            seen.clear()
            made.propose(table, questions(own), 4)
        counts.append(sum(seen))
        assert max(seen) <= cells._TILE
    assert counts[1] < 12 * counts[0]  # 16 times for N^2


def test_gaps_by_faiss_and_by_torch_agree(monkeypatch):
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.normal(size=(50, 33)).astype(np.float32))
    view = torch.from_numpy(rng.normal(size=(7, 33)).astype(np.float32))
    index = torch.from_numpy(rng.integers(-1, 50, (7, 9)))
    first = squared_gaps(table, view, index)
    monkeypatch.setattr(proposals, "_has_faiss", lambda: False)
    second = squared_gaps(table, view, index)
    assert torch.equal(first.isinf(), index < 0)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=0)
    for b in range(7):
        for j in range(9):
            if index[b, j] >= 0:
                expected = ((view[b].double() - table[index[b, j]].double()) ** 2).sum()
                assert abs(float(first[b, j]) - float(expected)) < 1e-4


def test_posets_by_an_approximate_search(monkeypatch):
    monkeypatch.setattr(neighbors, "MIN_REDUCED_SAMPLES", 500)
    features, _ = curved(3000, 8)
    labels = np.where(np.arange(3000) % 3 < 2, np.arange(3000) // 3, -1)  # 1000 medoids
    exact = Posets.build(features, labels, 2)
    found = Posets.build(features, labels, 2, method="approximate")
    np.testing.assert_array_equal(found.medoids, exact.medoids)
    assert (found.nearest_classes == exact.nearest_classes).mean() > 0.95

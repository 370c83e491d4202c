"""Whitening by the differences of mutual nearest neighbors."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from pml_posets.features import NeighborWhitening


def groups(num=40, each=4, seed=0):
    """Small groups in 6 dimensions; the next 6 are noise that differs as much inside the groups."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(rng.normal(size=(num, 6)), each, axis=0)
    return np.hstack([kinds + 0.2 * rng.normal(size=kinds.shape), rng.normal(size=kinds.shape)])


def recall(rows, each=4):
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.mean(similarity.argmax(1) // each == np.arange(len(rows)) // each)


def test_the_plain_formula():
    rows = groups(10).astype(np.float32)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    near = np.argsort(distances, axis=1)[:, :3]
    pairs = [(i, j) for i in range(40) for j in near[i] if i < j and i in near[j]]
    within = np.mean([np.outer(rows[i] - rows[j], rows[i] - rows[j]) for i, j in pairs], axis=0)
    total = np.cov(rows.T, bias=True)
    mixed = within * np.trace(total) / np.trace(within) + 0.3 * total
    values, vectors = np.linalg.eigh(mixed)
    expected = (rows - rows.mean(0)) @ (vectors / values**0.25) @ vectors.T
    found = NeighborWhitening(3, share=0.3, normalize=False).fit(rows)
    assert found.num_pairs_ == len(pairs)
    np.testing.assert_allclose(found.transform(rows), expected, rtol=1e-3, atol=1e-4)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.set_params(normalize=True).transform(rows), expected, atol=1e-4)
    moved = clone(found).fit(rows[::-1] + 5)  # neither order nor place matters
    np.testing.assert_allclose(moved.weight_, found.weight_, rtol=1e-3, atol=1e-3)


def test_what_differs_between_neighbors_is_held_back():
    learned = NeighborWhitening(3, power=1).fit(groups(seed=0))
    rows = groups(seed=1)
    plain = rows - rows.mean(0)
    before = recall(plain / np.linalg.norm(plain, axis=1, keepdims=True))
    assert recall(learned.transform(rows)) > before + 0.1


def test_copies_and_few_rows_do_not_break_it():
    copies = np.repeat(groups(5, 1), 2, axis=0)
    assert np.isfinite(NeighborWhitening(1).fit(copies).transform(copies)).all()
    few = groups(1, 3)
    assert np.isfinite(NeighborWhitening(5).fit(few).transform(few)).all()


def test_wrong_use_is_named():
    with pytest.raises(NotFittedError, match=r"Call .fit"):
        NeighborWhitening().transform(groups(2))
    with pytest.raises(ValueError, match="must have 12 columns"):
        NeighborWhitening().fit(groups(3)).transform(np.zeros((2, 3)))
    for options, rows, message in (
        ({}, np.ones((5, 3)), "three rows at least, not all equal"),
        ({}, groups(1, 2), "three rows at least"),
        ({"share": 0}, groups(2), "share must be"),
        ({"power": 2}, groups(2), "power must be"),
        ({"num_neighbors": 0}, groups(2), "num_neighbors must be"),
    ):
        with pytest.raises(ValueError, match=message):
            NeighborWhitening(**options).fit(rows)

"""Whitening by the differences of mutual nearest neighbors."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from pml_posets.features import NeighborWhitening, PartialWhitening, load, save


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


def test_what_differs_between_neighbors_is_held_back():
    learned = NeighborWhitening(3, power=1).fit(groups(seed=0))
    rows = groups(seed=1)
    plain = rows - rows.mean(0)
    before = recall(plain / np.linalg.norm(plain, axis=1, keepdims=True))
    assert recall(learned.transform(rows)) > before + 0.1


def test_rows_have_unit_length_and_order_and_place_do_not_matter():
    rows = groups(10)
    whitening = clone(NeighborWhitening(3)).fit(rows)
    np.testing.assert_allclose(np.linalg.norm(whitening.transform(rows), axis=1), 1, rtol=1e-5)
    moved = clone(whitening).fit(rows[::-1] + 5)
    np.testing.assert_allclose(moved.weight_, whitening.weight_, rtol=1e-3, atol=1e-3)


def test_copies_and_few_rows_do_not_break_it():
    copies = np.repeat(groups(5, 1), 2, axis=0)
    assert np.isfinite(NeighborWhitening(1).fit(copies).transform(copies)).all()
    few = groups(1, 3)
    assert np.isfinite(NeighborWhitening(5).fit(few).transform(few)).all()


def test_wrong_use_is_named():
    with pytest.raises(NotFittedError, match=r"Call .fit"):
        NeighborWhitening().transform(groups(2))
    with pytest.raises(ValueError, match="three rows at least, not all equal"):
        NeighborWhitening().fit(np.ones((5, 3)))
    with pytest.raises(ValueError, match="share must be"):
        NeighborWhitening(share=0).fit(groups(2))
    with pytest.raises(ValueError, match="must have 12 columns"):
        NeighborWhitening().fit(groups(3)).transform(np.zeros((2, 3)))


@pytest.mark.parametrize("step", [NeighborWhitening(3), PartialWhitening(4)])
def test_linear_steps_name_their_columns_and_are_saved(step, tmp_path):
    step = clone(step).fit(groups())
    columns = step.get_feature_names_out()
    assert len(columns) == step.transform(groups()).shape[1]
    assert columns[0] == f"{type(step).__name__.lower()}0"
    step.set_output(transform="default")
    save(step, tmp_path / "step.npz")
    np.testing.assert_array_equal(load(tmp_path / "step.npz").transform(groups()), step.transform(groups()))

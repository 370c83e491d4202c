"""The judge without labels: its numbers by plain loops, and which of two embeddings it prefers."""

import numpy as np
import pytest

from pml_posets.evaluation import label_free_score


def reference(plain, other, k):
    """Contrast and stability, one image at a time."""
    plain = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    other = other / np.linalg.norm(other, axis=1, keepdims=True)
    pairs, best, shared = [], [], []
    for i in range(len(plain)):
        others = [j for j in range(len(plain)) if j != i]
        own = {j: plain[i] @ plain[j] for j in others}
        after = {j: other[i] @ plain[j] for j in others}
        pairs += own.values()
        best.append(max(own.values()))
        nearest = [set(sorted(others, key=lambda j: -table[j])[:k]) for table in (own, after)]
        shared.append(len(nearest[0] & nearest[1]) / k)
    return (np.mean(best) - np.mean(pairs)) / np.std(pairs), np.mean(shared)


def grouped(spread, seed=0, dims=16):
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(size=(30, dims)), 5, axis=0) + spread * rng.normal(size=(150, dims))


@pytest.mark.parametrize("k", [1, 4])
def test_numbers_are_those_of_plain_loops(k):
    rng = np.random.default_rng(1)
    plain = rng.normal(size=(25, 6))
    other = plain + 0.5 * rng.normal(size=plain.shape)
    found = label_free_score(plain, other, num_neighbors=k)
    contrast, stability = reference(plain, other, k)
    assert found.contrast == pytest.approx(contrast, rel=1e-4)
    assert found.stability == pytest.approx(stability)
    assert found.score == pytest.approx(np.sqrt(contrast) * stability, rel=1e-4)


def test_clear_groups_score_above_vague_ones():
    change = 0.2 * np.random.default_rng(2).normal(size=(150, 16))
    scores = [label_free_score(x, x + change).score for x in map(grouped, (0.1, 0.7, 3))]
    assert scores == sorted(scores, reverse=True)


def test_a_collapsed_embedding_scores_nothing():
    rows = np.ones((40, 8))
    assert label_free_score(rows, rows).score == 0


def test_scale_and_order_do_not_matter():
    rng = np.random.default_rng(3)
    plain = rng.normal(size=(60, 8))
    other = plain + 0.3 * rng.normal(size=plain.shape)
    order = rng.permutation(60)
    first = label_free_score(plain, other)
    assert label_free_score(3 * plain[order], other[order]).score == pytest.approx(first.score, rel=1e-4)


def test_only_some_images_are_drawn():
    plain, other = grouped(0.3), grouped(0.3, seed=1)
    few = label_free_score(plain, other, num_samples=50)
    assert few == label_free_score(plain, other, num_samples=50)
    assert few != label_free_score(plain, other, num_samples=50, random_state=1)


@pytest.mark.parametrize(
    ("embeddings", "changed", "options", "message"),
    [
        (np.eye(20), np.eye(20)[:19], {}, r"changed must have the shape \(20, 20\) of the embeddings"),
        (np.eye(11), np.eye(11), {}, "there must be 12 images at least, got 11: lower num_neighbors"),
        (np.eye(20), np.eye(20), {"num_neighbors": 0}, "num_neighbors must be at least 1"),
        (np.eye(20), np.full((20, 20), np.nan), {}, "changed must be finite"),
    ],
)
def test_wrong_input_is_named(embeddings, changed, options, message):
    with pytest.raises(ValueError, match=message):
        label_free_score(embeddings, changed, **options)


def test_embeddings_far_from_the_origin():
    rng = np.random.default_rng(0)
    rows = np.float32(np.repeat(rng.normal(size=(20, 8)), 10, axis=0) + 0.3 * rng.normal(size=(200, 8)) + 1e4)
    changed = np.float32(rows + 0.02 * rng.normal(size=rows.shape))
    score = label_free_score(rows, changed)
    similarities = []
    for one in (rows, changed):
        units = one.astype(np.float64) / np.linalg.norm(one.astype(np.float64), axis=1, keepdims=True)
        plain = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        similarities.append(units @ plain.T)
        np.fill_diagonal(similarities[-1], -np.inf)
    near, moved = (np.argsort(-s, axis=1)[:, :10] for s in similarities)
    expected = np.mean([len({*a} & {*b}) / 10 for a, b in zip(near, moved, strict=True)])
    assert abs(score.stability - expected) < 0.02

"""The judge without labels: its numbers by plain loops, and which of two embeddings it prefers."""

import numpy as np
import pytest
from refusals import refuses

from pml_posets.evaluation import label_free_score


def reference(plain, other, k):
    """Contrast and stability, one image at a time."""
    plain, other = (np.float64(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (plain, other))
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
    contrast, stability = reference(plain, other, k)
    order = rng.permutation(25)
    for found in (
        label_free_score(plain, other, num_neighbors=k),
        label_free_score(3 * plain[order], other[order], num_neighbors=k),  # neither scale nor order matters
    ):
        assert found.contrast == pytest.approx(contrast, rel=1e-4)
        assert found.stability == pytest.approx(stability)
        assert found.score == pytest.approx(np.sqrt(contrast) * stability, rel=1e-4)


def test_clear_groups_score_above_vague_ones_and_a_collapsed_embedding_nothing():
    change = 0.2 * np.random.default_rng(2).normal(size=(150, 16))
    scores = [label_free_score(x, x + change).score for x in map(grouped, (0.1, 0.7, 3))]
    assert scores == sorted(scores, reverse=True)
    assert label_free_score(np.ones((40, 8)), np.ones((40, 8))).score == 0


def test_only_some_images_are_drawn():
    plain, other = grouped(0.3), grouped(0.3, seed=1)
    few = label_free_score(plain, other, num_samples=50)
    assert few == label_free_score(plain, other, num_samples=50)
    assert few != label_free_score(plain, other, num_samples=50, random_state=1)
    assert few != label_free_score(plain, other)


def test_embeddings_far_from_the_origin():
    rng = np.random.default_rng(0)
    rows = np.float32(np.repeat(rng.normal(size=(20, 8)), 5, axis=0) + 0.3 * rng.normal(size=(100, 8)) + 1e4)
    changed = np.float32(rows + 0.02 * rng.normal(size=rows.shape))
    assert label_free_score(rows, changed).stability == pytest.approx(
        reference(rows, changed, 10)[1], abs=0.02
    )


def judged(embeddings, changed, **options):
    return lambda: label_free_score(embeddings, changed, **options)


EYE = np.eye(20)

test_wrong_input_is_named = refuses(
    (judged(EYE, EYE[:19]), ValueError, "changed must have the shape (20, 20) of the embeddings"),
    (judged(EYE[:11], EYE[:11]), ValueError, "there must be 12 images at least, got 11: lower num_neighbors"),
    (judged(EYE, EYE, num_neighbors=0), ValueError, "num_neighbors must be at least 1"),
    (judged(EYE, EYE * np.nan), ValueError, "changed must be finite"),
)

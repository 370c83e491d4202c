"""Contrastive clustering against plain loops, and as PML asks of a loss."""

import math
import warnings

import numpy as np
import pytest
import torch
from batches import batch, elements
from pytorch_metric_learning import distances, reducers
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner

from pml_posets.losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from pml_posets.methods.contrastive_clustering import ContrastiveClusteringLoss
from pml_posets.posets import Posets

PLAIN = distances.LpDistance(normalize_embeddings=False, p=2, power=2)
KINDS = {
    "normalised": None,
    "plain": PLAIN,
    "power 1": distances.LpDistance(power=1),
    "cosine": distances.CosineSimilarity(),
}
BOTH = pytest.mark.parametrize("form", ["hinge", "softmax"])


def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def loop_loss(x, labels, ref=None, ref_labels=None, *, form="hinge", margin=0.2, temperature=0.1, norm=True):
    """Sample -> its loss."""
    ref, ref_labels = (x, labels) if ref is None else (ref, ref_labels)
    rows, refs = x.tolist(), ref.tolist()
    if norm:
        rows, refs = [unit(r) for r in rows], [unit(r) for r in refs]
    centers = {}
    for c in sorted(set(ref_labels.tolist()) - {-1}):
        members = [r for r, label in zip(refs, ref_labels.tolist(), strict=True) if label == c]
        mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
        centers[c] = unit(mean) if norm else mean
    out = {}
    for i, label in enumerate(labels.tolist()):
        if label not in centers:
            continue
        to = {c: sum((a - b) ** 2 for a, b in zip(rows[i], r, strict=True)) for c, r in centers.items()}
        if form == "hinge":
            others = [d for c, d in to.items() if c != label]
            out[i] = max(0.0, margin + to[label] - min(others)) if others else 0.0
        else:
            total = sum(math.exp(-d / temperature) for d in to.values())
            out[i] = -math.log(math.exp(-to[label] / temperature) / total)
    return out


# --- The value


@BOTH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_value_by_plain_loops(form, kind, seed):
    options = dict(form=form, margin=0.7, temperature=0.3)
    x, labels = batch(seed)
    expected = loop_loss(x, labels, norm=kind != "plain", **options)
    found = elements(ContrastiveClusteringLoss(distance=KINDS[kind], **options), x, labels)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    mean = ContrastiveClusteringLoss(distance=KINDS[kind], **options)(x, labels)
    values = list(expected.values())
    assert mean.item() == pytest.approx(sum(values) / len(values), rel=1e-6)


@BOTH
def test_centers_that_are_given(form):
    x, labels = batch(1)
    centers = torch.randn(4, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    clusters = torch.tensor([8, 2, 5, 40])  # no center for 11, no sample of 40
    for kind in ("normalised", "plain"):
        expected = loop_loss(x, labels, centers, clusters, form=form, norm=kind == "normalised")
        loss = ContrastiveClusteringLoss(form=form, distance=KINDS[kind])
        found = elements(loss, x, labels, ref_emb=centers, ref_labels=clusters)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
        assert {int(labels[i]) for i in found} == {2, 5, 8}
        loss.set_centers(centers, clusters)
        assert elements(loss, x, labels) == found
        other = elements(loss, x, labels, ref_emb=x, ref_labels=labels)  # given with the call: it wins
        loss.set_centers(None)
        assert elements(loss, x, labels) == other != found


def test_centers_without_labels_are_numbered():
    centers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = ContrastiveClusteringLoss(margin=0.5)
    loss.set_centers(centers)
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert elements(loss, x, torch.tensor([1, 1])) == pytest.approx({0: 2.5, 1: 0.5 + 0.4 - 0.8})
    centers.zero_()  # it has a copy
    assert elements(loss, x, torch.tensor([1, 1])) == pytest.approx({0: 2.5, 1: 0.5 + 0.4 - 0.8})


def test_miners_are_passed_over():
    x, labels = batch(3, unassigned=0)
    loss = ContrastiveClusteringLoss()
    assert loss(x, labels, MultiSimilarityMiner()(x, labels)) == loss(x, labels)
    assert loss(x, labels.int()) == loss(x, labels)
    loss.set_centers(torch.randn(12, 6))  # of another dtype than the embeddings
    assert loss(x, labels).isfinite()


# --- Gradients and dtypes


@BOTH
@pytest.mark.parametrize("kind", ["normalised", "plain", "cosine"])
def test_gradients(form, kind):
    x, labels = batch(1, size=9)
    loss = ContrastiveClusteringLoss(margin=1.0, form=form, temperature=0.5, distance=KINDS[kind])
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (x.requires_grad_(),))
    centers = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    clusters = torch.tensor([2, 5, 8, 11])

    def value(x, centers):
        return loss(x, labels, ref_emb=centers, ref_labels=clusters)

    assert torch.autograd.gradcheck(value, (x, centers.requires_grad_()))


def test_the_gradient_can_be_cut_at_the_centers():
    x, labels = batch(1)
    centers = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    for detach in (False, True):
        loss = ContrastiveClusteringLoss(margin=1.0, detach_centers=detach)
        x.requires_grad_().grad = None
        loss(x, labels, ref_emb=centers, ref_labels=torch.tensor([2, 5, 8, 11])).backward()
        assert (centers.grad is not None) != detach
        assert x.grad.abs().sum() > 0
        centers.grad = None


@BOTH
def test_half_precision_does_not_overflow(form):
    x, labels = batch(dtype=torch.float16)
    loss = ContrastiveClusteringLoss(form=form, distance=PLAIN, temperature=1e-3)
    value = loss((1e3 * x).requires_grad_(), labels)
    exact = loss(1e3 * x.double(), labels)
    assert exact > 7e4  # what the last cast makes of it is infinite
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(1e3 * x, labels).double(), exact, rtol=1e-3, atol=0)
    assert value == math.inf


# --- Edges


@BOTH
def test_one_cluster_is_zero(form):
    x, _ = batch()
    x.requires_grad_()
    value = ContrastiveClusteringLoss(form=form)(x, torch.full((24,), 3))
    value.backward()
    assert abs(value.item()) < 1e-12
    assert x.grad.abs().max() < 1e-12


@BOTH
@pytest.mark.parametrize("size", [0, 5])
def test_without_an_assigned_sample_it_is_zero(form, size):
    x = torch.randn(size, 6, requires_grad=True)
    loss = ContrastiveClusteringLoss(form=form)
    for options in ({}, {"ref_emb": torch.randn(3, 6), "ref_labels": torch.tensor([0, 1, -1])}):
        value = loss(x, torch.full((size,), -1), **options)
        assert value.item() == 0
        value.backward()


def test_clusters_of_a_single_sample_are_their_own_centers():
    x = torch.eye(3)
    assert ContrastiveClusteringLoss(margin=0.5)(x, torch.arange(3)).item() == 0
    assert ContrastiveClusteringLoss(margin=2.5)(x, torch.arange(3)).item() == pytest.approx(0.5)


# --- As PML asks


def test_statistics_and_reducers():
    x, labels = batch()
    loss = ContrastiveClusteringLoss(collect_stats=True, reducer=reducers.AvgNonZeroReducer())
    value = loss(x, labels)
    expected = [v for v in loop_loss(x, labels).values() if v > 0]
    assert value.item() == pytest.approx(sum(expected) / len(expected), rel=1e-6)
    assert loss.num_anchors == int((labels >= 0).sum())
    assert loss.num_centers == 4
    assert not [*loss.parameters(), *loss.buffers()]


def test_the_centers_survive_a_checkpoint():
    x, labels = batch()
    loss, other = ContrastiveClusteringLoss(), ContrastiveClusteringLoss()
    loss.set_centers(torch.randn(12, 6, dtype=torch.float64))
    assert other(x, labels) != loss(x, labels)
    other.load_state_dict(loss.state_dict())
    assert other(x, labels) == loss(x, labels)
    other.load_state_dict(ContrastiveClusteringLoss().state_dict())  # of one that had none
    assert other(x, labels) == ContrastiveClusteringLoss()(x, labels)


def test_dataset_indices_beside_another_loss():
    x, _ = batch(size=8, dtype=torch.float32)
    posets = Posets.build(np.random.default_rng(0).normal(size=(8, 3)), [0, 0, 1, 1, 2, 2, -1, -1])
    parts = {
        "ms": PseudoLabelLoss(MultiSimilarityLoss()),
        "ccl": PseudoLabelLoss(ContrastiveClusteringLoss()),
    }
    both = WeightedLosses(parts)
    both.bind(posets)
    indices = torch.tensor([0, 1, 2, 3, 4, 6])
    mined = MultiSimilarityMiner()(x[:6], torch.tensor([0, 0, 1, 1, 2, 3]))
    both(x[:6], indices, mined)
    expected = ContrastiveClusteringLoss()(x[:5], torch.tensor([0, 0, 1, 1, 2]))
    torch.testing.assert_close(both.values["ccl"], expected)


# --- Bad input


def test_bad_options():
    with pytest.raises(ValueError, match="form must be one of 'hinge', 'softmax', got 'triplet'"):
        ContrastiveClusteringLoss(form="triplet")
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        ContrastiveClusteringLoss(margin=-1)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        ContrastiveClusteringLoss(temperature=0)
    with pytest.raises(ValueError, match="a distance must have power 1 or 2"):
        ContrastiveClusteringLoss(distance=distances.LpDistance(power=3))


def test_bad_batches():
    x, labels = batch()
    loss = ContrastiveClusteringLoss()
    with pytest.raises(ValueError, match="labels must be given: the cluster of each sample"):
        loss(x)
    with pytest.raises(ValueError, match="labels must be -1 or more, found -2"):
        loss(x, labels - 1)
    with pytest.raises(ValueError, match="ref_emb needs ref_labels"):
        loss(x, labels, ref_emb=x)
    with pytest.raises(ValueError, match="ref_emb must have 6 columns"):
        loss(x, labels, ref_emb=x[:, :5], ref_labels=labels)
    with pytest.raises(ValueError, match="found NaN or infinity in 24 of 24 rows"):
        loss(x / 0, labels)
    with pytest.raises(ValueError, match="at least one row, got none"):
        loss.set_centers(torch.zeros(0, 6))
    with pytest.raises(ValueError, match="labels must be 0 or more, found -1"):
        loss.set_centers(torch.zeros(2, 6), torch.tensor([0, -1]))
    loss.set_centers(torch.zeros(2, 5))
    with pytest.raises(
        ValueError, match=r"ref_emb must have 6 columns like embeddings \(24, 6\), got \(2, 5\)"
    ):
        loss(x, labels)


def test_names_of_version_0_1():
    centers, labels = torch.eye(3, 4), torch.arange(3)
    loss, old = ContrastiveClusteringLoss(detach_centers=True), None
    with pytest.warns(DeprecationWarning, match="detach_centres is detach_centers now"):
        old = ContrastiveClusteringLoss(detach_centres=True)
    assert old.detach_centers
    with pytest.warns(DeprecationWarning, match="set_centres is set_centers now"):
        old.set_centres(centers, labels)
    loss.set_extra_state({"centres": centers, "labels": labels})  # of a checkpoint
    assert all(torch.equal(a, b) for a, b in zip(loss._given, old._given, strict=True))


def test_a_single_cluster_is_said_once():
    loss, embeddings = ContrastiveClusteringLoss(), torch.randn(6, 4)
    with pytest.warns(UserWarning, match="there is one cluster only"):
        assert loss(embeddings, torch.zeros(6).long()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(embeddings, torch.zeros(6).long())
        ContrastiveClusteringLoss()(embeddings, torch.arange(6) % 2)

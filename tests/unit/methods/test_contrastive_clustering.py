"""Contrastive clustering against plain loops, and as PML asks of a loss."""

import math

import numpy as np
import pytest
import torch
from batches import batch, elements
from loops import softmax, squared, unit
from pytorch_metric_learning import distances, reducers
from pytorch_metric_learning.miners import MultiSimilarityMiner
from refusals import no_warning, refuses

from pml_posets.methods.contrastive_clustering import ContrastiveClusteringLoss

PLAIN = distances.LpDistance(normalize_embeddings=False, p=2, power=2)
KINDS = {
    "normalized": None,
    "plain": PLAIN,
    "power 1": distances.LpDistance(power=1),
    "cosine": distances.CosineSimilarity(),
}
BOTH = pytest.mark.parametrize("form", ["hinge", "softmax"])
CLUSTERS = torch.tensor([8, 2, 5, 40])  # no center for 11, no sample of 40


def four_centers():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


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
        to = {c: squared(rows[i], center) for c, center in centers.items()}
        if form == "hinge":
            others = [d for c, d in to.items() if c != label]
            out[i] = max(0.0, margin + to[label] - min(others)) if others else 0.0
        else:
            out[i] = -math.log(softmax([-d / temperature for d in to.values()])[list(to).index(label)])
    return out


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_the_value_by_plain_loops(form, kind):
    options = dict(form=form, margin=0.7, temperature=0.3)
    x, labels = batch(1)
    expected = loop_loss(x, labels, norm=kind != "plain", **options)
    found = elements(ContrastiveClusteringLoss(distance=KINDS[kind], **options), x, labels)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    mean = ContrastiveClusteringLoss(distance=KINDS[kind], **options)(x, labels)
    assert mean.item() == pytest.approx(np.mean(list(expected.values())), rel=1e-6)


@BOTH
@pytest.mark.parametrize("kind", ["normalized", "plain"])
def test_centers_that_are_given(form, kind):
    (x, labels), centers = batch(1), four_centers()
    expected = loop_loss(x, labels, centers, CLUSTERS, form=form, norm=kind == "normalized")
    loss = ContrastiveClusteringLoss(form=form, distance=KINDS[kind])
    found = elements(loss, x, labels, ref_emb=centers, ref_labels=CLUSTERS)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    loss.set_centers(centers, CLUSTERS)
    assert elements(loss, x, labels) == found
    other = elements(loss, x, labels, ref_emb=x, ref_labels=labels)  # given with the call: it wins
    loss.set_centers(None)
    assert elements(loss, x, labels) == other != found


def test_centers_without_labels_are_numbered():
    centers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = ContrastiveClusteringLoss(margin=0.5)
    loss.set_centers(centers)
    centers.zero_()  # it has a copy
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert elements(loss, x, torch.tensor([1, 1])) == pytest.approx({0: 2.5, 1: 0.5 + 0.4 - 0.8})


def test_what_does_not_matter():
    x, labels = batch(3, unassigned=0)
    loss = ContrastiveClusteringLoss()
    assert loss(x, labels, MultiSimilarityMiner()(x, labels)) == loss(x, labels)
    assert loss(x, labels.int()) == loss(x, labels)
    loss.set_centers(torch.randn(12, 6))  # of another dtype than the embeddings
    assert loss(x, labels).isfinite()


@BOTH
@pytest.mark.parametrize("kind", ["normalized", "plain", "cosine"])
def test_gradients(form, kind):
    x, labels = batch(1, size=6, dims=3)
    loss = ContrastiveClusteringLoss(margin=1.0, form=form, temperature=0.5, distance=KINDS[kind])
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (x.requires_grad_(),))

    def value(x, centers):
        return loss(x, labels, ref_emb=centers, ref_labels=CLUSTERS)

    assert torch.autograd.gradcheck(value, (x, four_centers()[:, :3].clone().requires_grad_()))


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_can_be_cut_at_the_centers(detach):
    (x, labels), centers = batch(1), four_centers().requires_grad_()
    loss = ContrastiveClusteringLoss(margin=1.0, detach_centers=detach)
    loss(x.requires_grad_(), labels, ref_emb=centers, ref_labels=CLUSTERS).backward()
    assert (centers.grad is not None) != detach
    assert x.grad.abs().sum() > 0


@BOTH
def test_one_cluster_is_zero_and_said_once(form):
    loss, x, labels = (
        ContrastiveClusteringLoss(form=form),
        batch()[0].requires_grad_(),
        torch.zeros(24).long(),
    )
    with pytest.warns(UserWarning, match="there is one cluster only"):
        loss(x, labels)
    with no_warning():
        value = loss(x, labels)
        ContrastiveClusteringLoss()(x, torch.arange(24) % 2)
    value.backward()
    assert abs(value.item()) < 1e-12
    assert x.grad.abs().max() < 1e-12


@BOTH
@pytest.mark.parametrize("size", [0, 5])
@pytest.mark.parametrize(
    "options", [{}, {"ref_emb": torch.eye(3, 6), "ref_labels": torch.tensor([0, 1, -1])}]
)
def test_without_an_assigned_sample_it_is_zero(form, size, options):
    x = torch.randn(size, 6, requires_grad=True)
    value = ContrastiveClusteringLoss(form=form)(x, torch.full((size,), -1), **options)
    assert value.item() == 0
    value.backward()


def test_statistics_and_reducers():
    x, labels = batch()
    loss = ContrastiveClusteringLoss(collect_stats=True, reducer=reducers.AvgNonZeroReducer())
    expected = [v for v in loop_loss(x, labels).values() if v > 0]
    assert loss(x, labels).item() == pytest.approx(np.mean(expected), rel=1e-6)
    assert (loss.num_anchors, loss.num_centers) == (int((labels >= 0).sum()), 4)
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


def test_names_of_version_0_1():
    centers, labels = torch.eye(3, 4), torch.arange(3)
    loss = ContrastiveClusteringLoss(detach_centers=True)
    with pytest.warns(DeprecationWarning, match="detach_centres is detach_centers now"):
        old = ContrastiveClusteringLoss(detach_centres=True)
    assert old.detach_centers
    with pytest.warns(DeprecationWarning, match="set_centres is set_centers now"):
        old.set_centres(centers, labels)
    loss.set_extra_state({"centres": centers, "labels": labels})  # of a checkpoint
    assert all(torch.equal(a, b) for a, b in zip(loss._given, old._given, strict=True))


X, Y = batch()


def made(**options):
    return lambda: ContrastiveClusteringLoss(**options)


def called(x=X, labels=Y, centers=None, clusters=None, **refs):
    def call():
        loss = ContrastiveClusteringLoss()
        loss.set_centers(centers, clusters)
        loss(x, labels, **refs)

    return call


LIKE = "ref_emb must have 6 columns like embeddings (24, 6), got"

test_bad_input = refuses(
    (made(form="triplet"), ValueError, "form must be one of 'hinge', 'softmax', got 'triplet'"),
    (made(margin=-1), ValueError, "margin must be at least 0, got -1"),
    (made(temperature=0), ValueError, "temperature must be above 0, got 0"),
    (made(distance=distances.LpDistance(power=3)), ValueError, "a distance must have power 1 or 2"),
    (called(labels=None), ValueError, "labels must be given: the cluster of each sample"),
    (called(labels=Y - 1), ValueError, "labels must be -1 or more, found -2"),
    (called(ref_emb=X), ValueError, "ref_emb needs ref_labels"),
    (called(ref_emb=X[:, :5], ref_labels=Y), ValueError, f"{LIKE} (24, 5)"),
    (called(X / 0), ValueError, "found NaN or infinity in 24 of 24 rows"),
    (called(centers=torch.zeros(0, 6)), ValueError, "at least one row, got none"),
    (called(centers=X[:2], clusters=Y.abs()[:2] - 2), ValueError, "labels must be 0 or more, found -1"),
    (called(centers=torch.zeros(2, 5)), ValueError, f"{LIKE} (2, 5)"),
)

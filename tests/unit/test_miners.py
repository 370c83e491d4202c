"""NearestMedoidMiner against plain nested loops, bound and unbound, alone and with PML's losses."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import batch as batch_of
from loops import medoids, squared, unit
from pytorch_metric_learning import distances, losses
from refusals import no_warning, refuses

from pml_posets.miners import NearestMedoidMiner
from pml_posets.posets import Posets

batch = partial(batch_of, size=30)
ANCHORS = pytest.mark.parametrize("anchors", ["all", "unassigned"])
WITH_REF = pytest.mark.parametrize("with_ref", [False, True])


def distance(x, y):
    return squared(unit(x), unit(y)) ** 0.5


def as_pairs(near, place, same):
    """Positive and negative pairs as sets: each anchor with its near representatives, and with the others."""
    positives = {(i, m) for i, some in enumerate(near) for m in some}
    negatives = {(i, m) for i, some in enumerate(near) if some for m in place.values() if m not in some}
    return {(i, m) for i, m in positives if i != m or not same}, negatives  # a medoid has negatives alone


def loop_pairs(embeddings, labels, ref_emb=None, ref_labels=None, *, num_nearest=2, anchors="all"):
    ref_emb, ref_labels = (embeddings, labels) if ref_emb is None else (ref_emb, ref_labels)
    ref = ref_emb.tolist()
    medoid = medoids(ref, ref_labels.tolist(), distance)
    near = []
    for x, label in zip(embeddings.tolist(), labels.tolist(), strict=True):
        if label == -1:
            order = sorted(medoid.values(), key=lambda m, x=x: distance(x, ref[m]))
            near.append(set(order[:num_nearest]))
        else:
            near.append({medoid[label]} if anchors == "all" and label in medoid else set())
    return as_pairs(near, medoid, ref_emb is embeddings)


def as_sets(pairs):
    a1, p, a2, n = (index.tolist() for index in pairs)
    positives, negatives = list(zip(a1, p, strict=True)), list(zip(a2, n, strict=True))
    assert len(set(positives)) == len(positives)
    assert len(set(negatives)) == len(negatives)
    return set(positives), set(negatives)


@ANCHORS
@WITH_REF
@pytest.mark.parametrize("num_nearest", [1, 2, 9])
@pytest.mark.parametrize("num_classes", [1, 3, 7])
def test_agrees_with_the_plain_loops(anchors, num_nearest, with_ref, num_classes):
    embeddings, labels = batch(num_classes, num_classes=num_classes)
    ref = batch(9, size=25, num_classes=3) if with_ref else (None, None)
    miner = NearestMedoidMiner(num_nearest=num_nearest, anchors=anchors)
    expected = loop_pairs(embeddings, labels, *ref, num_nearest=num_nearest, anchors=anchors)
    assert as_sets(miner(embeddings, labels, *ref)) == expected


def test_hand_worked_case():
    embeddings = torch.tensor([[0.0], [1.0], [2.0], [6.0], [11.0], [12.0], [3.0], [9.0]])
    labels = torch.tensor([0, 0, 0, 1, 2, 2, -1, -1])
    plain = distances.LpDistance(normalize_embeddings=False)
    a1, p, a2, n = NearestMedoidMiner(num_nearest=1, distance=plain)(embeddings, labels)
    assert a1.tolist() == [0, 2, 5, 6, 7]  # medoids 1, 3, 4 are not paired with themselves
    assert p.tolist() == [1, 1, 4, 1, 4]  # sample 6: 2 to 1, 3 to 6; sample 7: 3 to 6, 2 to 11
    assert a2.tolist() == [i for i in range(8) for _ in range(2)]
    assert n.tolist() == [3, 4, 3, 4, 3, 4, 1, 4, 1, 3, 1, 3, 3, 4, 1, 3]
    pairs = NearestMedoidMiner(num_nearest=2, anchors="unassigned", distance=plain)(embeddings, labels)
    assert as_sets(pairs) == ({(6, 1), (6, 3), (7, 3), (7, 4)}, {(6, 4), (7, 1)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_and_autocast(dtype):
    embeddings, labels = batch(2, size=60, dims=16, dtype=dtype)
    embeddings += 3  # so that all are near
    expected = as_sets(NearestMedoidMiner()(embeddings.double(), labels))
    assert as_sets(NearestMedoidMiner()(embeddings, labels)) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert as_sets(NearestMedoidMiner()(embeddings, labels)) == expected


@pytest.mark.parametrize(
    ("rows", "label", "options"),
    [(0, 1, {}), (8, -1, {}), (8, 3, {"anchors": "unassigned"})],
    ids=["empty batch", "no representative", "no anchor"],
)
def test_nothing_to_mine(rows, label, options):
    pairs = NearestMedoidMiner(**options)(torch.randn(rows, 4), torch.full((rows,), label))
    assert [(index.shape, index.dtype) for index in pairs] == [((0,), torch.int64)] * 4


PMLS = "Contrastive TripletMargin MultiSimilarity NTXent Circle Margin SupCon Angular LiftedStructure"


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("name", PMLS.split())
def test_pmls_tuple_losses_take_its_pairs(name, bound):
    loss = getattr(losses, f"{name}Loss")()
    embeddings, labels = batch(0, size=40, dtype=torch.float32)
    embeddings.requires_grad_()
    miner = NearestMedoidMiner(posets=example_posets()[1] if bound else None)
    pairs = miner(embeddings, torch.arange(40) if bound else labels)
    assert not any(index.requires_grad for index in pairs)
    value = loss(embeddings, labels, pairs)
    assert value > 0
    assert torch.isfinite(torch.autograd.grad(value, embeddings)[0]).all()


def test_statistics_count_the_pairs():
    miner = NearestMedoidMiner(collect_stats=True)
    positives, negatives = as_sets(miner(*batch(0)))
    assert (miner.num_pos_pairs, miner.num_neg_pairs) == (len(positives), len(negatives))


def test_dataset_indices_in_an_unbound_miner_are_said_once():
    embeddings, miner = batch(0)[0], NearestMedoidMiner()
    with pytest.warns(UserWarning, match="every sample has a label of its own.*posets=sampler"):
        a1, _, a2, _ = miner(embeddings, torch.arange(30))
    assert (len(a1), len(a2)) == (0, 30 * 29)
    with no_warning():
        miner(embeddings, torch.arange(30))
        NearestMedoidMiner()(*batch(0))
        NearestMedoidMiner(posets=example_posets()[1])(embeddings, torch.arange(30))


def example_posets(num_nearest=2, size=60, num_classes=5):
    g = np.random.default_rng(0)
    features = g.standard_normal((size, 8)).astype(np.float32)
    labels = np.where(g.random(size) < 0.5, g.integers(0, num_classes, size), -1)
    labels[:num_classes] = np.arange(num_classes)
    return features, Posets.build(features, labels, num_nearest=num_nearest)


def loop_bound_pairs(posets, indices, ref_indices=None, num_nearest=2, anchors="all"):
    indices = [int(i) for i in indices]
    ref_indices = indices if ref_indices is None else [int(i) for i in ref_indices]
    place, near = {}, []
    for position, i in enumerate(ref_indices):
        c = int(posets.labels[i])
        if c >= 0 and int(posets.medoids[c]) == i and c not in place:
            place[c] = position
    for i in indices:
        c = int(posets.labels[i])
        wanted = posets.nearest_classes[i][:num_nearest].tolist() if c < 0 else [c]
        near.append({place[w] for w in wanted if w in place} if c < 0 or anchors == "all" else set())
    return as_pairs(near, place, ref_indices is indices)


@ANCHORS
@WITH_REF
@pytest.mark.parametrize("num_nearest", [1, 2])
def test_bound_agrees_with_the_plain_loops(anchors, num_nearest, with_ref):
    _, posets = example_posets()
    miner = NearestMedoidMiner(num_nearest=num_nearest, anchors=anchors, posets=posets)
    g = torch.Generator().manual_seed(0)
    for _ in range(10):
        indices = torch.randint(60, (25,), generator=g)  # with repeats
        ref = torch.randint(60, (33,), generator=g) if with_ref else None
        ref_emb = torch.randn(33, 4, generator=g) if with_ref else None
        pairs = miner(torch.randn(25, 4, generator=g), indices, ref_emb, ref)
        assert as_sets(pairs) == loop_bound_pairs(posets, indices, ref, num_nearest, anchors)


def test_rebinding_and_unbinding():
    _, first = example_posets()
    _, second = example_posets(size=50, num_classes=3)
    embeddings, labels = batch(0, size=50)
    expected = loop_bound_pairs(second, range(50))
    store = SimpleNamespace(posets=first)
    miner = NearestMedoidMiner(posets=store)
    assert miner.posets is first
    store.posets = second  # seen with the next batch
    assert as_sets(miner(embeddings, torch.arange(50))) == expected
    assert miner.posets is second
    miner.bind(first)
    assert miner.posets is first
    store.posets = None  # of no effect now
    miner.bind(second)
    assert as_sets(miner(embeddings, torch.arange(50))) == expected
    assert not miner.state_dict()
    miner.bind(None)
    assert miner.posets is None
    assert as_sets(miner(embeddings, labels)) == loop_pairs(embeddings, labels)


def test_a_gap_in_nearest_classes_is_no_class():
    _, posets = example_posets(num_nearest=3, num_classes=2)
    assert (posets.nearest_classes == -1).any()
    found = NearestMedoidMiner(num_nearest=3, posets=posets)(torch.zeros(60, 2), torch.arange(60))
    assert as_sets(found) == loop_bound_pairs(posets, range(60), None, 3)


def test_posets_without_a_class_and_batches_without_a_medoid():
    features, posets = example_posets()
    empty = Posets.build(features, np.full(60, -1))
    members = np.setdiff1d(np.arange(60), posets.medoids)
    for bound, indices in ((empty, np.arange(60)), (posets, members), (posets, members[:0])):
        pairs = NearestMedoidMiner(posets=bound)(torch.zeros(len(indices), 2), torch.from_numpy(indices))
        assert [len(index) for index in pairs] == [0] * 4


E, Y = batch(0)


def made(**options):
    return lambda: NearestMedoidMiner(**options)


def given(*args, posets=None):
    return lambda: NearestMedoidMiner(posets=posets)(*args)


def of_round(*indices):
    (e, i), *refs = ((torch.zeros(len(index), 3), index) for index in indices)
    return given(e, i, *(refs[0] if refs else ()), posets=example_posets()[1])


def some_posets(nearest):
    return SimpleNamespace(labels=[0, -1], medoids=[0], nearest_classes=nearest)


PAIR = torch.tensor([4, 5])

test_bad_input = refuses(
    (made(num_nearest=0), ValueError, "num_nearest must be at least 1, got 0"),
    (made(anchors="some"), ValueError, "anchors must be one of 'all', 'unassigned', got 'some'"),
    (made(distance=distances.LpDistance(power=3)), ValueError, "a distance must have power 1 or 2, got 3"),
    (made(posets=3), TypeError, "a pml_posets.posets.Posets, got int without labels, medoids"),
    (made(posets=some_posets([[0]])), ValueError, "nearest_classes (N, Z), got (2,), (1,), (1, 1)"),
    (made(posets=some_posets([[0], [0]])), ValueError, "got 1: build them with num_nearest=2 or more"),
    (given(E, Y[:5]), ValueError, "labels must have shape (30,) to match embeddings (30, 6), got (5,)"),
    (given(E, None), ValueError, "labels must be given, got None"),
    (given(E, Y, E), ValueError, "ref_labels must be given, got None"),
    (of_round(PAIR + 55), ValueError, "dataset indices must be in 0..59, got 59 to 60"),
    (of_round(PAIR - 5), ValueError, "labels must be 0 or more, found -1: ids count from 0"),
    (of_round(PAIR, torch.tensor([99])), ValueError, "dataset indices must be in 0..59, got 99"),
)

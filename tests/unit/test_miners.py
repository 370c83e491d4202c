"""NearestMedoidMiner against plain nested loops, bound and unbound, alone and with PML's losses."""

import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import batch as batch_of
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning.utils import distributed as pml_dist

from pml_posets.losses.poset import PosetLoss
from pml_posets.miners import NearestMedoidMiner
from pml_posets.posets import Posets

batch = partial(batch_of, size=30)


def distance(x, y):
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.sqrt(((x - y) ** 2).sum()))


def loop_pairs(embeddings, labels, ref_emb=None, ref_labels=None, *, num_nearest=2, anchors="all"):
    """Positive and negative pairs as sets."""
    ref_emb, ref_labels = (embeddings, labels) if ref_emb is None else (ref_emb, ref_labels)
    x, ref = embeddings.double().numpy(), ref_emb.double().numpy()
    labels, ref_labels = labels.tolist(), ref_labels.tolist()
    medoid = {}
    for c in sorted(set(ref_labels) - {-1}):
        members = [i for i, label in enumerate(ref_labels) if label == c]
        sums = [sum(distance(ref[i], ref[j]) for j in members) for i in members]
        medoid[c] = next(i for i, s in zip(members, sums, strict=True) if s <= min(sums) + 1e-12)
    positives, negatives = set(), set()
    for i, label in enumerate(labels):
        if label == -1:
            order = sorted(medoid.values(), key=lambda m: distance(x[i], ref[m]))
            near = set(order[:num_nearest])
        else:
            near = {medoid[label]} if anchors == "all" and label in medoid else set()
        if near:
            positives |= {(i, m) for m in near}
            negatives |= {(i, m) for m in medoid.values() if m not in near}
    if ref_emb is embeddings:
        positives -= {(i, i) for i in range(len(labels))}  # a medoid has negatives alone
    return positives, negatives


def as_sets(pairs):
    a1, p, a2, n = (index.tolist() for index in pairs)
    positives, negatives = list(zip(a1, p, strict=True)), list(zip(a2, n, strict=True))
    assert len(set(positives)) == len(positives)
    assert len(set(negatives)) == len(negatives)
    return set(positives), set(negatives)


# ---- unbound ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", ["all", "unassigned"])
@pytest.mark.parametrize("num_nearest", [1, 2, 3, 9])
@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_plain_loops(anchors, num_nearest, with_ref, dtype):
    for seed in range(4):
        embeddings, labels = batch(seed, dtype=dtype, num_classes=1 + 2 * seed)
        ref = batch(seed + 9, size=25, dtype=dtype, num_classes=3) if with_ref else (None, None)
        miner = NearestMedoidMiner(num_nearest=num_nearest, anchors=anchors)
        pairs = miner(embeddings, labels, *ref)
        assert all(index.dtype == torch.int64 for index in pairs)
        expected = loop_pairs(embeddings, labels, *ref, num_nearest=num_nearest, anchors=anchors)
        assert as_sets(pairs) == expected


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    embeddings, labels = batch(2, size=60, dims=16, dtype=dtype)
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
    assert [index.shape for index in pairs] == [(0,)] * 4
    assert all(index.dtype == torch.int64 for index in pairs)


def test_gives_no_gradient_and_leaves_the_batch_alone():
    embeddings, labels = batch(0)
    embeddings.requires_grad_()
    before = embeddings.detach().clone(), labels.clone()
    pairs = NearestMedoidMiner()(embeddings, labels)
    assert not any(index.requires_grad for index in pairs)
    assert torch.equal(embeddings, before[0])
    assert torch.equal(labels, before[1])


# ---- with PML's losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("miner_kind", ["batch", "round"])
@pytest.mark.parametrize(
    "loss",
    [
        losses.ContrastiveLoss(),
        losses.TripletMarginLoss(),
        losses.MultiSimilarityLoss(),
        losses.NTXentLoss(),
        losses.CircleLoss(),
        losses.MarginLoss(),
        losses.SupConLoss(),
        losses.TupletMarginLoss(),
        losses.AngularLoss(),
        losses.LiftedStructureLoss(),
        losses.IntraPairVarianceLoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_pmls_tuple_losses_take_its_pairs(loss, miner_kind):
    embeddings, labels = batch(0, size=40, dtype=torch.float32)
    embeddings.requires_grad_()
    if miner_kind == "batch":
        pairs = NearestMedoidMiner()(embeddings, labels)
    else:
        pairs = NearestMedoidMiner(posets=example_posets()[1])(embeddings, torch.arange(40))
    value = loss(embeddings, labels, pairs)
    assert value > 0
    assert torch.isfinite(torch.autograd.grad(value, embeddings)[0]).all()


def test_in_the_distributed_wrapper(monkeypatch):
    embeddings, labels = batch(0)
    other, other_labels = batch(5)
    everything, every_label = torch.cat([embeddings, other]), torch.cat([labels, other_labels])
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(pml_dist, "all_gather_embeddings_and_labels", lambda *_: (other, other_labels))
    pairs = pml_dist.DistributedMinerWrapper(NearestMedoidMiner())(embeddings, labels)
    assert as_sets(pairs) == as_sets(NearestMedoidMiner()(everything, every_label))


def test_statistics_count_the_pairs():
    miner = NearestMedoidMiner(collect_stats=True)
    positives, negatives = as_sets(miner(*batch(0)))
    assert (miner.num_pos_pairs, miner.num_neg_pairs) == (len(positives), len(negatives))


def test_dataset_indices_in_an_unbound_miner_are_said_once():
    embeddings, miner = batch(0)[0], NearestMedoidMiner()
    with pytest.warns(UserWarning, match="every sample has a label of its own.*posets=sampler"):
        a1, _, a2, _ = miner(embeddings, torch.arange(30))
    assert (len(a1), len(a2)) == (0, 30 * 29)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        miner(embeddings, torch.arange(30))
        NearestMedoidMiner()(*batch(0))
        NearestMedoidMiner(posets=example_posets()[1])(embeddings, torch.arange(30))


# ---- bound to posets -------------------------------------------------------------------------------------


def example_posets(num_nearest=2, size=60, num_classes=5):
    g = np.random.default_rng(0)
    features = g.standard_normal((size, 8)).astype(np.float32)
    labels = np.where(g.random(size) < 0.5, g.integers(0, num_classes, size), -1)
    labels[:num_classes] = np.arange(num_classes)
    return features, Posets.build(features, labels, num_nearest=num_nearest)


def loop_bound_pairs(posets, indices, ref_indices=None, num_nearest=2, anchors="all"):
    indices = [int(i) for i in indices]
    ref_indices = indices if ref_indices is None else [int(i) for i in ref_indices]
    place = {}
    for position, i in enumerate(ref_indices):
        c = int(posets.labels[i])
        if c >= 0 and int(posets.medoids[c]) == i and c not in place:
            place[c] = position
    positives, negatives = set(), set()
    for position, i in enumerate(indices):
        c = int(posets.labels[i])
        if c >= 0:
            wanted = [c] if anchors == "all" else []
        else:
            wanted = posets.nearest_classes[i][:num_nearest].tolist()
        near = {place[c] for c in wanted if c in place}
        if near:
            positives |= {(position, p) for p in near}
            negatives |= {(position, p) for p in place.values() if p not in near}
    if ref_indices is indices:
        positives -= {(i, i) for i in range(len(indices))}
    return positives, negatives


@pytest.mark.parametrize("anchors", ["all", "unassigned"])
@pytest.mark.parametrize("num_nearest", [1, 2])
@pytest.mark.parametrize("with_ref", [False, True])
def test_bound_agrees_with_the_plain_loops(anchors, num_nearest, with_ref):
    _, posets = example_posets()
    miner = NearestMedoidMiner(num_nearest=num_nearest, anchors=anchors, posets=posets)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        indices = torch.randint(60, (25,), generator=g)  # with repeats
        ref = torch.randint(60, (33,), generator=g) if with_ref else None
        embeddings = torch.randn(25, 4, generator=g)
        ref_emb = torch.randn(33, 4, generator=g) if with_ref else None
        pairs = miner(embeddings, indices, ref_emb, ref)
        assert as_sets(pairs) == loop_bound_pairs(posets, indices, ref, num_nearest, anchors)


def test_bound_uses_the_round_not_the_embeddings():
    features, posets = example_posets()
    indices = torch.from_numpy(np.concatenate([posets.medoids, posets.unassigned]))
    miner = NearestMedoidMiner(posets=posets)
    now = torch.randn(len(indices), 8, generator=torch.Generator().manual_seed(0))
    pairs = miner(now, indices)
    assert as_sets(pairs) == as_sets(miner(now.flip(0), indices))
    # With the features of the round and whole classes, bound and unbound miners say the same.
    everything = torch.arange(60)
    plain = distances.LpDistance(normalize_embeddings=False, power=2)
    unbound = NearestMedoidMiner(distance=plain)
    x = torch.from_numpy(features)
    assert as_sets(miner(x, everything)) == as_sets(unbound(x, torch.from_numpy(posets.labels)))


def test_bound_pairs_in_the_loss_give_eq_4():
    features, posets = example_posets()
    embeddings = torch.from_numpy(features).double().requires_grad_()
    indices = torch.arange(60)
    labels = torch.from_numpy(posets.labels)
    loss = PosetLoss(anchors="unassigned", sigma=0.8)
    value = loss(
        embeddings, labels, NearestMedoidMiner(anchors="unassigned", posets=posets)(embeddings, indices)
    )
    x = features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    terms = []
    for i in posets.unassigned:
        similarity = [np.exp(-((x[i] - x[m]) ** 2).sum() / (2 * 0.64)) for m in posets.medoids]
        terms.append(-np.log(sum(similarity[c] for c in posets.nearest_classes[i]) / sum(similarity)))
    assert value.item() == pytest.approx(np.mean(terms))


def test_bound_to_a_store_it_sees_every_round():
    _, first = example_posets()
    _, second = example_posets(size=50, num_classes=3)
    embeddings, _ = batch(0, size=50)
    store = SimpleNamespace(posets=first)
    miner = NearestMedoidMiner(posets=store)
    assert miner.posets is first
    store.posets = second
    assert as_sets(miner(embeddings, torch.arange(50))) == loop_bound_pairs(second, range(50))
    assert miner.posets is second
    miner.bind(first)
    store.posets = None
    assert miner.posets is first


def test_rebinding_and_unbinding():
    _, first = example_posets()
    _, second = example_posets(size=50, num_classes=3)
    embeddings, labels = batch(0, size=50)
    miner = NearestMedoidMiner(posets=first)
    miner.bind(second)
    assert miner.posets is second
    assert as_sets(miner(embeddings, torch.arange(50))) == loop_bound_pairs(second, range(50))
    miner.bind(None)
    assert miner.posets is None
    assert as_sets(miner(embeddings, labels)) == loop_pairs(embeddings, labels)
    assert not NearestMedoidMiner(posets=first).state_dict()


def test_a_gap_in_nearest_classes_is_no_class():
    _, posets = example_posets(num_nearest=3, num_classes=2)
    assert (posets.nearest_classes == -1).any()
    miner = NearestMedoidMiner(num_nearest=3, posets=posets)
    assert as_sets(miner(torch.zeros(60, 2), torch.arange(60))) == loop_bound_pairs(
        posets, range(60), None, 3
    )


def test_posets_without_a_class_and_batches_without_a_medoid():
    features, posets = example_posets()
    empty = Posets.build(features, np.full(60, -1))
    members = np.setdiff1d(np.arange(60), posets.medoids)
    for bound, indices in ((empty, np.arange(60)), (posets, members), (posets, members[:0])):
        pairs = NearestMedoidMiner(posets=bound)(torch.zeros(len(indices), 2), torch.from_numpy(indices))
        assert [len(index) for index in pairs] == [0] * 4


# ---- errors ----------------------------------------------------------------------------------------------

E, Y = batch(0)


def some_posets(nearest):
    return {"posets": SimpleNamespace(labels=[0, -1], medoids=[0], nearest_classes=nearest)}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_nearest": 0}, ValueError, "num_nearest must be at least 1, got 0"),
        ({"num_nearest": "2"}, TypeError, "num_nearest must be an integer, got '2'"),
        ({"anchors": "some"}, ValueError, "anchors must be one of 'all', 'unassigned', got 'some'"),
        ({"distance": distances.LpDistance(power=3)}, ValueError, "a distance must have power 1 or 2, got 3"),
        ({"posets": 3}, TypeError, "a pml_posets.posets.Posets, got int without labels, medoids"),
        (some_posets([[0]]), ValueError, "nearest_classes (N, Z), got (2,), (1,), (1, 1)"),
        (some_posets([[0], [0]]), ValueError, "got 1: build them with num_nearest=2 or more"),
    ],
)
def test_wrong_options_are_named(options, error, text):
    with pytest.raises(error) as caught:
        NearestMedoidMiner(**options)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((E, Y[:5]), ValueError, "labels must have shape (30,) to match embeddings (30, 6), got (5,)"),
        ((E, Y.float()), TypeError, "labels must be integers, got torch.float32"),
        ((E, Y - 1), ValueError, "labels must be -1 or more, found -2"),
        ((E * torch.nan, Y), ValueError, "embeddings must be finite, found NaN or infinity in 30 of 30 rows"),
        ((E, None), ValueError, "labels must be given, got None"),
        ((E, Y, E), ValueError, "ref_labels must be given, got None"),
    ],
)
def test_bad_batches_are_named(args, error, text):
    with pytest.raises(error) as caught:
        NearestMedoidMiner()(*args)
    assert text in str(caught.value)


def test_bound_to_other_data_is_named():
    miner = NearestMedoidMiner(posets=example_posets()[1])
    with pytest.raises(ValueError, match=r"dataset indices must be in 0\.\.59, got 4 to 60"):
        miner(torch.zeros(2, 3), torch.tensor([4, 60]))
    with pytest.raises(ValueError, match=r"labels must be 0 or more, found -1: ids count from 0"):
        miner(torch.zeros(2, 3), torch.tensor([4, -1]))
    with pytest.raises(ValueError, match=r"ref_labels must be 0 or more|0..59"):
        miner(torch.zeros(2, 3), torch.tensor([4, 5]), torch.zeros(1, 3), torch.tensor([99]))

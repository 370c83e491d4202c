"""PosetLoss, its representatives and its wrappers against plain nested loops."""

import math
import warnings

import numpy as np
import pytest
import ranks
import torch
import torch.nn.functional as F
from batches import batch, elements
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils import distributed as pml_dist
from torch.utils._python_dispatch import TorchDispatchMode

from pml_posets import _medoids
from pml_posets._medoids import batch_medoids
from pml_posets.distributed.process_group import rank
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.wrappers import PosetCrossBatchMemory, PosetSelfSupervisedLoss
from pml_posets.miners import NearestMedoidMiner
from pml_posets.posets import Posets

DISTANCES = {
    "default": None,
    "power 1": distances.LpDistance(power=1),
    "not normalized": distances.LpDistance(normalize_embeddings=False, power=2),
    "L1": distances.LpDistance(p=1, power=1),
    "cosine": distances.CosineSimilarity(),
    "dot": distances.DotProductSimilarity(normalize_embeddings=False),
    "snr": distances.SNRDistance(),
}


# ---- the plain loops -------------------------------------------------------------------------------------


def loop_squared(x, y, kind="default"):
    if kind in ("default", "power 1", "cosine", "snr"):
        x, y = ([v / math.sqrt(sum(u * u for u in z)) for v in z] for z in (x, y))
    if kind == "L1":
        x, y = ([v / sum(abs(u) for u in z) for v in z] for z in (x, y))
        return sum(abs(a - b) for a, b in zip(x, y, strict=True)) ** 2
    if kind in ("cosine", "dot"):
        return 2 - 2 * sum(a * b for a, b in zip(x, y, strict=True))
    if kind == "snr":
        return (variance([a - b for a, b in zip(x, y, strict=True)]) / variance(x)) ** 2
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def variance(values):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1)


def loop_medoids(embeddings, labels, kind="default"):
    """Class -> index of its medoid."""
    rows, found = embeddings.tolist(), {}
    labels = labels.tolist()
    for c in sorted(set(labels) - {-1}):
        best = None
        members = [i for i, label in enumerate(labels) if label == c]
        for i in members:
            total = 0.0
            for j in members:
                square = 0.0 if i == j else loop_squared(rows[i], rows[j], kind)
                total += math.copysign(math.sqrt(abs(square)), square)
            if best is None or total < best - 1e-12:
                best, found[c] = total, i
    return found


def loop_term(positives, negatives, sigma2, gamma, margin):
    """Eq. 4 and its variants for one anchor, from lists of squared distances."""
    if margin == "magnet":
        if not negatives:
            return 0.0
        over = sum(math.exp(-d / (2 * sigma2) - gamma) for d in positives)
        under = sum(math.exp(-d / (2 * sigma2)) for d in negatives)
        return max(0.0, -math.log(over / under))
    shift = gamma if margin == "paper" else -gamma
    over = sum(math.exp(-(d - shift) / (2 * sigma2)) for d in positives)
    under = sum(math.exp(-d / (2 * sigma2)) for d in negatives)
    under += over if margin == "additive" else sum(math.exp(-d / (2 * sigma2)) for d in positives)
    return -math.log(over / under)


def loop_loss(
    embeddings,
    labels,
    ref_emb=None,
    ref_labels=None,
    *,
    num_nearest=2,
    sigma=None,
    gamma=0.0,
    margin="paper",
    anchors="all",
    kind="default",
):
    """Anchor -> its loss."""
    ref_emb, ref_labels = (embeddings, labels) if ref_emb is None else (ref_emb, ref_labels)
    medoid = loop_medoids(ref_emb, ref_labels, kind)
    rows, refs = embeddings.tolist(), ref_emb.tolist()
    spread = []
    for i, c in enumerate(labels.tolist()):
        if c in medoid:
            spread.append(loop_squared(rows[i], refs[medoid[c]], kind))
    if not spread:
        for i, c in enumerate(ref_labels.tolist()):
            if c in medoid:
                spread.append(loop_squared(refs[i], refs[medoid[c]], kind))
    sigma2 = sigma**2 if sigma else (max(sum(spread) / len(spread), 0.02**2) if spread else 0.0)
    out = {}
    for i, label in enumerate(labels.tolist()):
        to = sorted((loop_squared(rows[i], refs[m], kind), c) for c, m in medoid.items())
        if label == -1:
            positives = [d for d, _ in to[:num_nearest]]
            negatives = [d for d, _ in to[num_nearest:]]
        elif anchors == "all":
            positives = [d for d, c in to if c == label]
            negatives = [d for d, c in to if c != label]
        else:
            positives = []
        if positives:
            out[i] = loop_term(positives, negatives, sigma2, gamma, margin)
    return out


# ---- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", ["paper", "magnet", "additive"])
@pytest.mark.parametrize("anchors", ["all", "unassigned"])
@pytest.mark.parametrize(("sigma", "gamma"), [(None, 0.0), (None, 0.3), (0.7, 0.3)])
@pytest.mark.parametrize("num_nearest", [1, 2, 3, 9])
def test_agrees_with_the_plain_loops(margin, anchors, sigma, gamma, num_nearest):
    options = dict(num_nearest=num_nearest, sigma=sigma, gamma=gamma, margin=margin, anchors=anchors)
    for seed in range(3):
        embeddings, labels = batch(seed)
        expected = loop_loss(embeddings, labels, **options)
        assert elements(PosetLoss(**options), embeddings, labels) == pytest.approx(
            expected, rel=1e-7, abs=1e-9
        )
        mean = sum(expected.values()) / len(expected)
        assert PosetLoss(**options)(embeddings, labels).item() == pytest.approx(mean, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("margin", ["paper", "magnet", "additive"])
def test_every_distance_agrees_with_the_plain_loops(kind, margin):
    for seed in range(3):
        embeddings, labels = batch(seed, size=30)
        embeddings = 0.5 * embeddings
        loss = PosetLoss(gamma=0.2, sigma=0.8, margin=margin, distance=DISTANCES[kind])
        expected = loop_loss(embeddings, labels, gamma=0.2, sigma=0.8, margin=margin, kind=kind)
        assert elements(loss, embeddings, labels) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_default_distance_is_squared_and_normalized():
    distance = PosetLoss().distance
    assert isinstance(distance, distances.LpDistance)
    assert (distance.normalize_embeddings, distance.p, distance.power) == (True, 2, 2)
    embeddings, labels = batch()
    for other in (distances.LpDistance(power=1), distances.CosineSimilarity()):
        torch.testing.assert_close(
            PosetLoss(distance=other)(embeddings, labels), PosetLoss()(embeddings, labels)
        )


def test_hand_worked_case():
    # On a line: class 0 at 0, 1, 2 (medoid 1), class 1 at 6, class 2 at 11, 12 (tied: 11); unassigned at 3.
    embeddings = torch.tensor([[0.0], [1.0], [2.0], [6.0], [11.0], [12.0], [3.0]])
    labels = torch.tensor([0, 0, 0, 1, 2, 2, -1])
    plain = distances.LpDistance(normalize_embeddings=False, power=2)
    found = batch_medoids(embeddings, labels, plain)
    assert found[0].tolist() == [1, 3, 4]
    assert found[1].tolist() == [0, 1, 2]
    # sigma^2 = (1 + 0 + 1 + 0 + 0 + 1) / 6 = 1/2, so every exponent is -d^2.
    loss = PosetLoss(num_nearest=2, distance=plain, anchors="unassigned")
    # d^2 of the unassigned: 4, 9, 64; the two nearest are positives.
    expected = -math.log((math.exp(-4) + math.exp(-9)) / (math.exp(-4) + math.exp(-9) + math.exp(-64)))
    assert elements(loss, embeddings, labels) == pytest.approx({6: expected}, abs=1e-7)
    loss = PosetLoss(num_nearest=1, distance=plain, anchors="unassigned", gamma=2.0)
    expected = -math.log(
        math.exp(-4 + 2) / (math.exp(-4) + math.exp(-9) + math.exp(-64))
    )  # - gamma / 2 sigma^2
    assert elements(loss, embeddings, labels) == pytest.approx({6: expected}, rel=1e-6)
    loss = PosetLoss(num_nearest=1, distance=plain, anchors="unassigned", gamma=7.0, margin="magnet")
    assert elements(loss, embeddings, labels) == pytest.approx({6: 4 - 9 + 7}, rel=1e-6)
    loss = PosetLoss(num_nearest=1, distance=plain, anchors="unassigned", gamma=5.0, margin="additive")
    assert elements(loss, embeddings, labels) == pytest.approx({6: math.log(2)}, rel=1e-6)
    # All anchors: sample 2 has d^2 = 1 to its medoid, 16 and 81 to the others.
    found = elements(PosetLoss(distance=plain), embeddings, labels)
    assert sorted(found) == list(range(7))
    assert found[2] == pytest.approx(math.log(1 + math.exp(-15) + math.exp(-80)), rel=1e-4)


@pytest.mark.parametrize("distance", [None, distances.CosineSimilarity()])
def test_one_nearest_is_cross_entropy_over_similarities(distance):
    embeddings, labels = batch(size=40)
    medoid, classes = batch_medoids(embeddings, labels)
    x = F.normalize(embeddings)
    sigma2 = 0.3
    logits = -(torch.cdist(x, x[medoid]) ** 2) / (2 * sigma2)
    target = logits.argmax(1)
    own = labels[:, None] == classes
    target[labels >= 0] = own[labels >= 0].float().argmax(1)
    loss = PosetLoss(num_nearest=1, sigma=sigma2**0.5, distance=distance)
    torch.testing.assert_close(loss(embeddings, labels), F.cross_entropy(logits, target))


def test_gamma_zero_is_one_loss_and_not_negative():
    embeddings, labels = batch(3)
    paper, additive = (elements(PosetLoss(margin=m), embeddings, labels) for m in ("paper", "additive"))
    assert paper == additive
    assert min(paper.values()) >= 0


def test_class_ids_may_have_gaps_and_any_integer_dtype():
    embeddings, labels = batch()
    expected = PosetLoss()(embeddings, labels)
    for dtype in (torch.int32, torch.int16, torch.int8):
        assert PosetLoss()(embeddings, labels.to(dtype)) == expected
    far = torch.where(labels < 0, -1, labels + 2**40)
    assert PosetLoss()(embeddings, far) == expected


# ---- representatives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("size", [1, 7, 60, 500])
def test_medoids_agree_with_the_plain_loops(kind, size):
    embeddings, labels = batch(size, size=size, num_classes=max(1, size // 9))
    expected = loop_medoids(embeddings, labels, kind)
    found = batch_medoids(embeddings, labels, DISTANCES[kind])
    assert dict(zip(found[1].tolist(), found[0].tolist(), strict=True)) == expected
    assert found[1].tolist() == sorted(expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_tied_medoids_go_to_the_lower_index(scale):
    g = torch.Generator().manual_seed(0)
    center = torch.randn(1, 64, generator=g)
    pair = center + scale * torch.randn(2, 64, generator=g)
    many = torch.cat([pair, torch.randn(30, 64, generator=g)])
    labels = torch.tensor([4, 4] + [-1] * 30)
    assert batch_medoids(many, labels)[0].tolist() == [0]
    assert batch_medoids(many.flip(0), labels.flip(0))[0].tolist() == [30]
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).repeat(10, 1) + 3
    plain = distances.LpDistance(normalize_embeddings=False, power=2)
    assert batch_medoids(scale * square, torch.zeros(40).long(), plain)[0].tolist() == [0]
    same = torch.ones(30, 8)
    assert batch_medoids(same, torch.arange(30) % 3)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("num_classes", [1, 3, 40])
def test_long_batches_are_taken_in_blocks(monkeypatch, kind, num_classes):
    embeddings, labels = batch(0, size=300, num_classes=num_classes)
    whole = batch_medoids(embeddings, labels, DISTANCES[kind])
    sizes = []
    plain = _medoids.prepared_distances
    monkeypatch.setattr(
        _medoids, "prepared_distances", lambda d, x, y: sizes.append((len(x), len(y))) or plain(d, x, y)
    )
    monkeypatch.setitem(_medoids._BLOCK_ROWS, "cpu", 16)
    blocked = batch_medoids(embeddings, labels, DISTANCES[kind])
    largest = labels[labels >= 0].bincount().max()
    assert max(rows for rows, _ in sizes) == 16
    assert max(columns for _, columns in sizes) <= 16 + 2 * largest
    assert sum(rows for rows, _ in sizes) == int((labels >= 0).sum())
    for one, other in zip(whole, blocked, strict=True):
        assert torch.equal(one, other)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns, in elements."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = [x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(x)]
        self.size = max([self.size, *found])
        return out


@pytest.mark.parametrize("kind", ["default", "not normalized", "cosine"])
@pytest.mark.parametrize("num_classes", [1, 2])
def test_memory_is_linear_in_the_size_of_a_class(kind, num_classes):
    size, dims = 6000, 4
    embeddings = torch.randn(size, dims, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(size) % num_classes
    distance = DISTANCES[kind]
    with Largest() as seen:
        pairs = NearestMedoidMiner(distance=distance)(embeddings, labels)
        PosetLoss(distance=distance)(embeddings.requires_grad_(), labels, pairs).backward()
        PosetLoss(distance=distance)(embeddings, labels).backward()
    assert seen.size <= 2 * 256 * size < size**2 / 10


@pytest.mark.parametrize("kind", ["not normalized", "not normalized, power 1"])
@pytest.mark.parametrize("where", [1e4, 1e6])
def test_embeddings_far_from_the_origin(kind, where):
    generator = torch.Generator().manual_seed(0)
    near = (
        torch.randint(-64, 64, (60, 8), generator=generator).float() / 8
    )  # exact in float32 with the offset
    labels = torch.randint(5, (60,), generator=generator) - 1
    distance = distances.LpDistance(normalize_embeddings=False, power=1 if kind.endswith("1") else 2)
    far = (near + where).requires_grad_()
    loss, miner = PosetLoss(sigma=3.0, distance=distance), NearestMedoidMiner(distance=distance)
    for one, other in zip(miner(far, labels), miner(near.double(), labels), strict=True):
        assert torch.equal(one, other)
    value, expected = loss(far, labels), loss(near.double().requires_grad_(), labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        gradient(loss, far.detach(), labels).double(),
        gradient(loss, near.double(), labels),
        rtol=1e-4,
        atol=1e-6,
    )


def test_classes_far_apart_keep_their_medoids():
    generator = torch.Generator().manual_seed(0)
    line = torch.randint(-64, 64, (40, 8), generator=generator).float() / 8
    labels = torch.arange(40) % 4
    plain = distances.LpDistance(normalize_embeddings=False)
    apart = line + 1e5 * labels[:, None]  # 1e5 apart, a few units wide
    assert batch_medoids(apart, labels, plain)[0].tolist() == list(
        loop_medoids(line, labels, "not normalized").values()
    )


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_operations_hangs_neither_on_samples_nor_on_classes():
    counts = set()
    for size, num_classes in [(80, 3), (120, 3), (120, 50)]:
        embeddings, labels = batch(0, size=size, num_classes=num_classes, dtype=torch.float32)
        loss, miner = PosetLoss(), NearestMedoidMiner()
        embeddings.requires_grad_()
        with Count() as mode:
            loss(embeddings, labels, miner(embeddings, labels)).backward()
            loss(embeddings, labels).backward()
        counts.add(mode.count)
    assert len(counts) == 1


# ---- tuples ----------------------------------------------------------------------------------------------


def loop_tuple_loss(embeddings, ref_emb, pairs, sigma2, gamma=0.0, margin="paper"):
    a1, p, a2, n = (index.tolist() for index in pairs)
    rows, refs = embeddings.tolist(), ref_emb.tolist()
    out = {}
    for anchor in sorted({*a1, *a2}):
        near = {q for a, q in zip(a1, p, strict=True) if a == anchor}
        if not near and ref_emb is embeddings and anchor in {*p, *n}:
            near = {anchor}  # a representative without a positive is its own
        if not near:
            continue
        far = {q for a, q in zip(a2, n, strict=True) if a == anchor} - near
        positives, negatives = ([loop_squared(rows[anchor], refs[q]) for q in side] for side in (near, far))
        out[anchor] = loop_term(positives, negatives, sigma2, gamma, margin)
    return out


@pytest.mark.parametrize("margin", ["paper", "magnet", "additive"])
@pytest.mark.parametrize("with_ref", [False, True])
def test_any_pair_tuple_agrees_with_the_plain_loops(margin, with_ref):
    g = torch.Generator().manual_seed(3)
    embeddings, _ = batch(0)
    ref = batch(1, size=31)[0] if with_ref else None
    num_ref = 31 if with_ref else 24
    for num_pairs in (1, 40):
        pairs = tuple(torch.randint(k, (num_pairs,), generator=g) for k in (24, num_ref) * 2)
        expected = loop_tuple_loss(embeddings, embeddings if ref is None else ref, pairs, 0.25, 0.2, margin)
        loss = PosetLoss(sigma=0.5, gamma=0.2, margin=margin)
        assert elements(loss, embeddings, None, pairs, ref) == pytest.approx(expected, rel=1e-7, abs=1e-9)
        doubled = tuple(torch.cat([index, index]) for index in pairs)
        assert elements(loss, embeddings, None, doubled, ref) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_triplets_are_pairs_of_one_anchor():
    embeddings, labels = batch()
    a, p, n = torch.tensor([0, 0, 3]), torch.tensor([1, 2, 4]), torch.tensor([5, 6, 7])
    loss = PosetLoss(sigma=0.4)
    assert loss(embeddings, labels, (a, p, n)) == loss(embeddings, labels, (a, p, a, n))


def test_without_labels_sigma_comes_from_the_positive_pairs():
    embeddings, _ = batch()
    pairs = (torch.tensor([0, 0, 3]), torch.tensor([1, 2, 4]), torch.tensor([0, 3]), torch.tensor([5, 6]))
    rows = embeddings.tolist()
    sigma2 = sum(loop_squared(rows[a], rows[p]) for a, p in [(0, 1), (0, 2), (3, 4)]) / 3
    expected = loop_tuple_loss(embeddings, embeddings, pairs, sigma2)
    assert elements(PosetLoss(sigma=None), embeddings, None, pairs) == pytest.approx(expected)
    unassigned = torch.full((24,), -1)
    assert elements(PosetLoss(sigma=None), embeddings, unassigned, pairs) == pytest.approx(expected)


@pytest.mark.parametrize("anchors", ["all", "unassigned"])
@pytest.mark.parametrize("num_nearest", [1, 2, 5])
@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("kind", ["default", "power 1", "cosine", "dot"])
def test_the_miners_tuple_changes_nothing(anchors, num_nearest, with_ref, kind):
    shared = dict(num_nearest=num_nearest, anchors=anchors, distance=DISTANCES[kind])
    for seed in range(4):
        embeddings, labels = batch(seed, size=40, unassigned=[0, 0.3, 0.6, 1.0][seed])
        embeddings.requires_grad_()
        ref = batch(seed + 10, size=33, num_classes=3) if with_ref else (None, None)
        loss, miner = PosetLoss(**shared), NearestMedoidMiner(**shared)
        values = []
        for pairs in (None, miner(embeddings, labels, *ref)):
            value = loss(embeddings, labels, pairs, *ref)
            values.append((value, torch.autograd.grad(value, embeddings)[0]))
        torch.testing.assert_close(values[0], values[1])


# ---- ref_emb ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", ["all", "unassigned"])
@pytest.mark.parametrize("sigma", [None, 0.6])
def test_representatives_come_from_ref_emb(anchors, sigma):
    for seed in range(3):
        embeddings, labels = batch(seed, size=20, num_classes=5)
        ref, ref_labels = batch(seed + 7, size=15, num_classes=3)
        expected = loop_loss(embeddings, labels, ref, ref_labels, anchors=anchors, sigma=sigma)
        loss = PosetLoss(anchors=anchors, sigma=sigma)
        found = elements(loss, embeddings, labels, None, ref, ref_labels)
        assert found == pytest.approx(expected)
        missing = (labels >= 0) & ~torch.isin(labels, ref_labels)
        assert not set(found) & set(missing.nonzero().flatten().tolist())


def test_sigma_of_unassigned_queries_comes_from_ref_emb():
    embeddings, labels = batch(0, size=10)
    ref, ref_labels = batch(1, size=15)
    labels = torch.full_like(labels, -1)
    expected = loop_loss(embeddings, labels, ref, ref_labels)
    assert elements(PosetLoss(sigma=None), embeddings, labels, None, ref, ref_labels) == pytest.approx(
        expected
    )
    pairs = NearestMedoidMiner()(embeddings, labels, ref, ref_labels)
    assert elements(PosetLoss(sigma=None), embeddings, labels, pairs, ref, ref_labels) == pytest.approx(
        expected
    )


def test_gradient_reaches_ref_emb_unless_detached():
    embeddings, labels = batch(0, size=10)
    ref, ref_labels = batch(1, size=15)
    for detach in (False, True):
        x, r = embeddings.clone().requires_grad_(), ref.clone().requires_grad_()
        PosetLoss(detach_representatives=detach)(x, labels, None, r, ref_labels).backward()
        assert x.grad.abs().sum() > 0
        medoid = batch_medoids(ref, ref_labels)[0]
        assert (r.grad is None) == detach
        if not detach:
            assert set(r.grad.abs().sum(1).nonzero().flatten().tolist()) == set(medoid.tolist())


# ---- gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", ["paper", "magnet", "additive"])
@pytest.mark.parametrize("kind", ["default", "cosine", "not normalized", "dot"])
@pytest.mark.parametrize("anchors", ["all", "unassigned"])
def test_gradcheck(margin, kind, anchors):
    embeddings, labels = batch(2, size=12, dims=4, num_classes=3)
    embeddings.requires_grad_()
    loss = PosetLoss(sigma=0.9, gamma=0.2, margin=margin, anchors=anchors, distance=DISTANCES[kind])
    assert torch.autograd.gradcheck(lambda e: loss(e, labels), (embeddings,))
    pairs = NearestMedoidMiner(anchors=anchors)(embeddings, labels)
    assert torch.autograd.gradcheck(lambda e: loss(e, labels, pairs), (embeddings,))


def gradient(loss, embeddings, labels):
    embeddings = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(embeddings, labels), embeddings)[0]


def test_sigma_is_fixed_for_unit_embeddings_alone():
    unit = ("default", "power 1", "cosine")
    assert {PosetLoss(distance=DISTANCES[kind]).sigma for kind in unit} == {0.3}
    assert {PosetLoss(distance=DISTANCES[kind]).sigma for kind in DISTANCES if kind not in unit} == {None}
    assert PosetLoss(sigma=None).sigma is None


IDLE = {
    "distinct": (torch.arange(24), {}, "every sample has a label of its own.*PseudoLabelLoss"),
    "one class": (torch.zeros(24).long(), {}, "there is one class only"),
    "unassigned": (torch.full((24,), -1), {}, "no sample has a class"),
    "no anchor": (torch.arange(24) % 3, {"anchors": "unassigned"}, 'no label is -1.*anchors="all"'),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_batch_that_teaches_nothing_is_said_once(case):
    labels, options, text = IDLE[case]
    embeddings, loss = batch(0)[0], PosetLoss(**options)
    with pytest.warns(UserWarning, match=text):
        loss(embeddings, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(embeddings, labels)
        PosetLoss()(*batch(0))
        PosetLoss()(embeddings[:1], labels[:1])
        PosetSelfSupervisedLoss(PosetLoss(), symmetric=False)(embeddings, embeddings + 0.1)  # all distinct
        PosetLoss(anchors="unassigned")(embeddings, torch.where(torch.arange(24) < 9, torch.arange(24), -1))


def test_estimated_sigma_is_detached_and_right():
    embeddings, labels = batch(0)
    medoid = loop_medoids(embeddings, labels)
    rows, members = embeddings.tolist(), [(i, c) for i, c in enumerate(labels.tolist()) if c >= 0]
    sigma = math.sqrt(sum(loop_squared(rows[i], rows[medoid[c]]) for i, c in members) / len(members))
    fixed, estimated = PosetLoss(sigma=sigma), PosetLoss(sigma=None, collect_stats=True)
    torch.testing.assert_close(estimated(embeddings, labels), fixed(embeddings, labels))
    torch.testing.assert_close(gradient(estimated, embeddings, labels), gradient(fixed, embeddings, labels))
    assert estimated.sigma_used == pytest.approx(sigma)
    assert estimated.num_anchors == 24
    assert estimated.num_representatives == len(medoid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sigma_has_a_floor(dtype):
    embeddings = torch.eye(4, 8, dtype=dtype).requires_grad_()
    for labels in (torch.arange(4), torch.zeros(4).long()):
        x = embeddings if labels[1] else torch.ones(4, 8, dtype=dtype, requires_grad=True)
        loss = PosetLoss(sigma=None, collect_stats=True)
        value = loss(x, labels)
        assert loss.sigma_used == pytest.approx(0.02, rel=1e-2)
        assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()
    single = PosetLoss(sigma=None, min_sigma=0.5, collect_stats=True)
    single(embeddings, torch.arange(4))
    assert single.sigma_used == pytest.approx(0.5)


def test_what_each_margin_does_to_the_gradient():
    embeddings, labels = batch(4)
    zero = gradient(PosetLoss(sigma=0.8), embeddings, labels)
    paper = PosetLoss(sigma=0.8, gamma=0.5)
    torch.testing.assert_close(gradient(paper, embeddings, labels), zero)
    shift = PosetLoss(sigma=0.8)(embeddings, labels) - paper(embeddings, labels)
    assert shift.item() == pytest.approx(0.5 / (2 * 0.64))
    # additive: a larger loss and larger weights; magnet: off once the gap is wide
    additive = PosetLoss(sigma=0.8, gamma=0.5, margin="additive")
    assert additive(embeddings, labels) > PosetLoss(sigma=0.8)(embeddings, labels)
    assert gradient(additive, embeddings, labels).norm() > zero.norm()
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2]])
    labels = torch.tensor([0, 1, -1])
    for gamma, moves in [(0.0, False), (1.0, False), (5.0, True)]:
        magnet = PosetLoss(num_nearest=1, sigma=0.7, gamma=gamma, margin="magnet", anchors="unassigned")
        assert bool(gradient(magnet, two, labels).abs().sum() > 0) == moves
        assert bool(magnet(two, labels) > 0) == moves


def test_detached_representatives_move_as_anchors_only():
    embeddings, labels = batch(0)
    medoid = batch_medoids(embeddings, labels)[0]
    free = gradient(PosetLoss(anchors="unassigned"), embeddings, labels)
    held = gradient(PosetLoss(anchors="unassigned", detach_representatives=True), embeddings, labels)
    assert free[medoid].abs().sum(1).min() > 0
    assert held[medoid].abs().sum() == 0
    torch.testing.assert_close(held[labels < 0], free[labels < 0])
    assert gradient(PosetLoss(detach_representatives=True), embeddings, labels)[medoid].abs().sum() > 0
    value = PosetLoss(detach_representatives=True)(embeddings, labels)
    assert value == PosetLoss()(embeddings, labels)


# ---- dtypes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["default", "cosine", "power 1"])
@pytest.mark.parametrize("margin", ["paper", "magnet", "additive"])
def test_dtypes(dtype, kind, margin):
    embeddings, labels = batch(1, size=40, dims=16, dtype=dtype)
    reference = embeddings.double()
    loss = PosetLoss(gamma=0.1, margin=margin, distance=DISTANCES[kind])
    x = embeddings.clone().requires_grad_()
    value = loss(x, labels)
    assert value.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert value.item() == pytest.approx(loss(reference, labels).item(), rel=tolerance)
    value.backward()
    assert x.grad.dtype == dtype
    exact = gradient(loss, reference, labels)
    assert (x.grad.double() - exact).norm() <= 3 * tolerance * exact.norm()
    torch.testing.assert_close(value, loss(x, labels, NearestMedoidMiner(distance=loss.distance)(x, labels)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_survives_sharp_and_wide_embeddings(dtype):
    embeddings, labels = batch(1, size=40, dims=16, dtype=dtype)
    x = (100 * embeddings).requires_grad_()
    plain = distances.LpDistance(normalize_embeddings=False, power=2)
    for loss in (PosetLoss(sigma=0.02), PosetLoss(distance=plain)):
        value = loss(x, labels)
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()


@pytest.mark.parametrize("kind", ["default", "cosine"])
def test_autocast(kind):
    embeddings, labels = batch(1, size=40, dims=16, dtype=torch.float32)
    layer = torch.nn.Linear(16, 16)
    loss, miner = PosetLoss(distance=DISTANCES[kind]), NearestMedoidMiner(distance=DISTANCES[kind])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(embeddings)
        assert out.dtype == torch.bfloat16
        value = loss(out, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(out, labels, miner(out, labels)))
        torch.testing.assert_close(loss(out.float(), labels), value)
    value.backward()
    assert torch.isfinite(layer.weight.grad).all()
    torch.testing.assert_close(value, loss(out.float(), labels))


def test_dtypes_of_embeddings_and_ref_emb_may_differ():
    embeddings, labels = batch(1, dtype=torch.float32)
    ref, ref_labels = batch(2)
    value = PosetLoss()(embeddings, labels, None, ref, ref_labels)
    torch.testing.assert_close(value, PosetLoss()(embeddings.double(), labels, None, ref, ref_labels).float())


# ---- nothing to learn from -------------------------------------------------------------------------------


def nothing():
    embeddings, labels = batch(0)
    empty = torch.zeros(0).long()
    return {
        "empty batch": (embeddings[:0], labels[:0]),
        "no representative": (embeddings, torch.full_like(labels, -1)),
        "no anchor": (embeddings, labels.abs()),
        "empty tuple": (embeddings, labels, (empty,) * 4),
        "only negatives": (embeddings, labels, (empty, empty, torch.tensor([0]), torch.tensor([1]))),
        "empty ref": (embeddings, labels, None, embeddings[:0], labels[:0]),
        "empty batch with ref": (embeddings[:0], labels[:0], None, embeddings, labels),
        "own class not in ref": (embeddings, labels.abs(), None, embeddings, labels.abs() + 1000),
    }


@pytest.mark.parametrize("case", nothing())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_learn_from_is_a_zero_loss_with_a_gradient_path(case, dtype):
    embeddings, *rest = nothing()[case]
    if len(rest) == 4:
        rest = [*rest[:2], rest[2].to(dtype), rest[3]]
    embeddings = embeddings.to(dtype).requires_grad_()
    for reducer in (None, reducers.AvgNonZeroReducer(), reducers.DivisorReducer()):
        value = PosetLoss(anchors="unassigned", reducer=reducer)(embeddings, *rest)
        assert value.shape == ()
        assert value.item() == 0
        embeddings.grad = None
        value.backward()
        assert embeddings.grad.abs().sum() == 0
    regularized = PosetLoss(anchors="unassigned", embedding_regularizer=regularizers.LpRegularizer())
    if len(embeddings):
        assert regularized(embeddings, *rest) > 0


def test_one_class_alone_teaches_nothing():
    embeddings, _ = batch(0)
    embeddings.requires_grad_()
    for margin in ("paper", "magnet", "additive"):
        value = PosetLoss(margin=margin)(embeddings, torch.zeros(24).long())
        assert value.item() == 0
        assert torch.autograd.grad(value, embeddings)[0].abs().sum() == 0


# ---- PML's contracts -------------------------------------------------------------------------------------


def test_reducers_and_regularizers():
    embeddings, labels = batch(0)
    found = elements(PosetLoss(), embeddings, labels)
    values = torch.tensor([found[i] for i in range(24)], dtype=torch.float64)
    middle = values.median().item()
    weights = torch.linspace(0.5, 2.0, 13).double()  # classes 2, 5, 8, 11; the last stands for -1
    expected = {
        reducers.MeanReducer(): values.mean(),
        reducers.ThresholdReducer(low=middle): values[values > middle].mean(),
        reducers.AvgNonZeroReducer(): values.mean(),
        reducers.ClassWeightedReducer(weights): (values * weights[labels]).mean(),
        reducers.PerAnchorReducer(): values.mean(),
        reducers.DivisorReducer(): values.mean(),
        reducers.MultipleReducers({"loss": reducers.MeanReducer()}): values.mean(),
    }
    for reducer, value in expected.items():
        torch.testing.assert_close(PosetLoss(reducer=reducer)(embeddings, labels), value)
    regularized = PosetLoss(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.1)
    torch.testing.assert_close(
        regularized(embeddings, labels), values.mean() + 0.1 * embeddings.norm(dim=1).mean()
    )
    assert regularized.sub_loss_names() == ["loss", "embedding_reg_loss"]


def test_leaves_no_state_behind_for_loggers():
    loss, miner = PosetLoss(collect_stats=True), NearestMedoidMiner(collect_stats=True)
    embeddings, labels = batch(0)
    loss(embeddings, labels, miner(embeddings, labels))
    assert not loss.state_dict()
    assert not miner.state_dict()
    recorded = [getattr(loss, name) for name in loss._record_these + loss._record_these_stats]
    recorded += [getattr(miner, name) for name in miner._record_these + miner._record_these_stats]
    assert all(isinstance(value, int | float) for value in recorded)


def test_multiple_losses():
    embeddings, labels = batch(0)
    labels = labels.abs()
    parts = [PosetLoss(), losses.NTXentLoss()]
    together = losses.MultipleLosses(parts, miners=[NearestMedoidMiner(), miners.MultiSimilarityMiner()])
    value = together(embeddings, labels)
    mined = miners.MultiSimilarityMiner()(embeddings, labels)
    torch.testing.assert_close(value, parts[0](embeddings, labels) + parts[1](embeddings, labels, mined))
    assert losses.MultipleLosses([PosetLoss()])(embeddings, labels) == parts[0](embeddings, labels)


def test_cross_batch_memory():
    loss = PosetLoss()
    memory = PosetCrossBatchMemory(loss, embedding_size=6, memory_size=60)
    mined = PosetCrossBatchMemory(loss, embedding_size=6, memory_size=60, miner=NearestMedoidMiner())
    seen, seen_labels = torch.zeros(0, 6, dtype=torch.float64), torch.zeros(0).long()
    for seed in range(4):  # the last wraps around
        embeddings, labels = batch(seed)
        embeddings.requires_grad_()
        value = memory(embeddings, labels)
        seen = torch.cat([seen, embeddings.detach()])[-60:] if seed < 2 else memory.embedding_memory
        seen_labels = torch.cat([seen_labels, labels])[-60:] if seed < 2 else memory.label_memory
        expected = loss(embeddings, labels, None, seen.clone(), seen_labels.clone())
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(mined(embeddings, labels), expected)
        assert torch.autograd.grad(value, embeddings)[0].abs().sum() > 0
    assert memory.has_been_filled
    mask = torch.arange(24) < 10
    assert torch.isfinite(memory(*batch(9), enqueue_mask=mask))
    assert pml_dist.DistributedLossWrapper(memory) is not None


@pytest.mark.parametrize("case", ["nan", "labels", "rows", "width", "mask", "dtype", "tuple"])
def test_a_refused_batch_leaves_the_memory_as_it_was(case):
    embeddings, labels = batch(0)
    bad = {
        "nan": (embeddings * torch.nan, labels),
        "labels": (embeddings, labels - 5),
        "rows": (embeddings, labels[:5]),
        "width": (embeddings[:, :5], labels),
        "mask": (embeddings, labels, None, labels[:3] > 0),
        "dtype": (embeddings, labels.float()),
        "tuple": (embeddings, labels, (labels,) * 4),
    }[case]
    memory, fresh = (PosetCrossBatchMemory(PosetLoss(), 6, memory_size=60) for _ in range(2))
    memory(*batch(1))
    fresh(*batch(1))
    with pytest.raises((ValueError, TypeError)):
        memory(*bad)
    assert memory.queue_idx == fresh.queue_idx
    assert torch.equal(memory.embedding_memory, fresh.embedding_memory)
    assert torch.equal(memory(embeddings, labels), fresh(embeddings, labels))


def test_a_loss_that_fails_leaves_the_memory_as_it_was(monkeypatch):
    memory, fresh = (PosetCrossBatchMemory(PosetLoss(), 6, memory_size=30) for _ in range(2))
    for each in (memory, fresh):
        each(*batch(1))
    forward = memory.loss.forward
    for error in (KeyboardInterrupt, RuntimeError):  # the second batch goes round the end

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(memory.loss, "forward", fail)
        with pytest.raises(error):
            memory(*batch(2))
    monkeypatch.setattr(memory.loss, "forward", forward)
    assert memory.queue_idx == fresh.queue_idx
    assert torch.equal(memory(*batch(0)), fresh(*batch(0)))


def test_self_supervised_loss():
    first, second = batch(0)[0], batch(1)[0]
    labels = torch.arange(24)
    loss = PosetLoss(sigma=0.5)
    both = PosetSelfSupervisedLoss(loss)(first, second)
    torch.testing.assert_close(both, loss(torch.cat([first, second]), labels.repeat(2)))
    one_sided = PosetSelfSupervisedLoss(loss, symmetric=False)(first, second)
    x, y = F.normalize(first), F.normalize(second)
    torch.testing.assert_close(one_sided, F.cross_entropy(-(torch.cdist(x, y) ** 2) / 0.5, labels))

    class Mine(PosetLoss):
        pass

    assert PosetSelfSupervisedLoss(Mine(sigma=0.5))(first, second) == both
    assert PosetCrossBatchMemory(Mine(), 6).supported_losses() == ["PosetLoss"]


def on_its_rows():
    """Loss, gradient and mined loss of this rank's part of a batch, by PML's wrappers."""
    inputs, labels = batch(0, size=40)
    weights = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6).sin().requires_grad_()
    part = slice(0, 17) if rank() == 0 else slice(20, 37)
    loss = pml_dist.DistributedLossWrapper(PosetLoss())
    value = loss(inputs[part] @ weights, labels[part])
    value.backward()
    torch.distributed.all_reduce(weights.grad)
    miner = pml_dist.DistributedMinerWrapper(NearestMedoidMiner())
    pairs = miner(inputs[part] @ weights, labels[part])
    again = loss(inputs[part] @ weights, labels[part], pairs)
    return [tensor.detach().numpy() / 2 for tensor in (value, weights.grad, again)]


def test_two_processes_learn_like_one_with_the_joint_batch():
    inputs, labels = batch(0, size=40)
    rows = [*range(17), *range(20, 37)]
    weights = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6).sin().requires_grad_()
    joint = PosetLoss()(inputs[rows] @ weights, labels[rows])
    joint.backward()
    for value, grad, mined in ranks.values(ranks.run(2, on_its_rows)):
        np.testing.assert_allclose(value, joint.detach(), rtol=1e-7)
        np.testing.assert_allclose(mined, joint.detach(), rtol=1e-7)
        np.testing.assert_allclose(grad, weights.grad, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:DistributedLossWrapper")
def test_distributed_wrapper_in_one_process():
    embeddings, labels = batch(0)
    assert pml_dist.DistributedLossWrapper(PosetLoss())(embeddings, labels) == PosetLoss()(embeddings, labels)


def test_compiles():
    embeddings, labels = batch(0, dtype=torch.float32)
    for margin in ("paper", "magnet"):
        loss = PosetLoss(gamma=0.1, margin=margin)
        compiled = torch.compile(loss, backend="eager")
        torch.testing.assert_close(compiled(embeddings, labels), loss(embeddings, labels))


# ---- errors ----------------------------------------------------------------------------------------------

E, Y = batch(0)
A = Y.abs()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_nearest": 0}, ValueError, "num_nearest must be at least 1, got 0"),
        ({"num_nearest": 1.5}, TypeError, "num_nearest must be an integer, got 1.5"),
        ({"num_nearest": True}, TypeError, "num_nearest must be an integer, got True"),
        ({"sigma": 0}, ValueError, "sigma must be above 0, got 0"),
        ({"sigma": -1.0}, ValueError, "sigma must be above 0, got -1.0"),
        ({"sigma": math.nan}, ValueError, "sigma must be above 0, got nan"),
        ({"sigma": "big"}, TypeError, "sigma must be a number, got 'big'"),
        ({"gamma": -0.1}, ValueError, "gamma must be at least 0, got -0.1"),
        ({"sigma": 1e-30}, ValueError, "sigma must be at least 1e-15, or its square leaves float32"),
        ({"min_sigma": 0.0}, ValueError, "min_sigma must be above 0, got 0.0"),
        ({"margin": "big"}, ValueError, "margin must be one of 'paper', 'magnet', 'additive', got 'big'"),
        ({"anchors": "none"}, ValueError, "anchors must be one of 'all', 'unassigned', got 'none'"),
        ({"distance": torch.cdist}, TypeError, "distance must be a pytorch_metric_learning distance, got"),
        ({"distance": distances.LpDistance(power=3)}, ValueError, "a distance must have power 1 or 2, got 3"),
        (
            {"distance": distances.CosineSimilarity(power=2)},
            ValueError,
            "similarity must have power 1, got 2",
        ),
    ],
)
def test_wrong_options_are_named(options, error, text):
    with pytest.raises(error) as caught:
        PosetLoss(**options)
    assert text in str(caught.value)


def with_value(value, row=3):
    x = E.clone()
    x[row, 1] = value
    return x


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((E, Y[:5]), ValueError, "labels must have shape (24,) to match embeddings (24, 6), got (5,)"),
        (
            (E, Y[:, None]),
            ValueError,
            "to match embeddings (24, 6), got (24, 1)",
        ),
        ((E, Y.float()), TypeError, "integers, got torch.float32: convert them by labels.long()"),
        ((E, Y > 0), TypeError, "labels must be integers, got torch.bool"),
        ((E, Y.tolist()), TypeError, "labels must be a torch.Tensor, got list"),
        ((E, Y - 5), ValueError, "-1 or more, found -6: mark every sample without a class by -1"),
        (
            (with_value(math.nan), Y),
            ValueError,
            "must be finite, found NaN or infinity in 1 of 24",
        ),
        ((with_value(-math.inf), Y), ValueError, "(first: row 3): lower the learning rate"),
        ((E.long(), Y), TypeError, "embeddings must be floating point, got torch.int64"),
        ((E.numpy(), Y), TypeError, "embeddings must be a torch.Tensor, got ndarray"),
        ((E[0], Y), ValueError, "embeddings must have shape (batch, dimensions), got (6,)"),
        ((E,), ValueError, "labels or indices_tuple must be given, got neither"),
        ((E, Y, None, E), ValueError, "ref_emb needs ref_labels or an indices_tuple"),
        ((E, Y, None, None, Y), ValueError, "ref_labels were given without ref_emb"),
        ((E, Y, None, E[:, :4], Y), ValueError, "ref_emb must have 6 columns like embeddings (24, 6), got"),
        ((E, Y, None, with_value(math.nan), Y), ValueError, "ref_emb must be finite"),
        ((E, Y, None, E[:9], Y), ValueError, "ref_labels must have shape (9,) to match ref_emb (9, 6), got"),
        ((E, Y, (Y, Y)), ValueError, "indices_tuple must be (a1, p, a2, n) or (a, p, n), got 2"),
        ((E, Y, Y), ValueError, "indices_tuple must be (a1, p, a2, n) or (a, p, n), got Tensor"),
        ((E, Y, (A, A + 20, A, A)), ValueError, "indices_tuple must hold indices in 0..23, found 31"),
        ((E, Y, (Y, A, A, A)), ValueError, "indices_tuple must hold indices in 0..23, found -1"),
        ((E, Y, (A[:3], A, A, A)), ValueError, "must be 1-D and of one length, got (3,), (24,)"),
    ],
)
def test_bad_batches_are_named(args, error, text):
    with pytest.raises(error) as caught:
        PosetLoss()(*args)
    assert text in str(caught.value)


def test_huge_but_finite_embeddings_are_no_error():
    half = torch.full((4, 8), 6e4, dtype=torch.float16)
    single = torch.full((4, 8), 3e38)
    for x in (half, single):
        assert torch.isfinite(PosetLoss()(x, torch.tensor([0, 0, 1, -1])))


def test_wrappers_name_what_they_cannot_take():
    with pytest.raises(TypeError, match="loss must be a PosetLoss, got NTXentLoss"):
        PosetCrossBatchMemory(losses.NTXentLoss(), 6)
    with pytest.raises(TypeError, match="loss must be a PosetLoss, got NTXentLoss"):
        PosetSelfSupervisedLoss(losses.NTXentLoss())
    with pytest.raises(ValueError, match="loss must have anchors=\"all\", got 'unassigned'"):
        PosetSelfSupervisedLoss(PosetLoss(anchors="unassigned"))
    memory = PosetCrossBatchMemory(PosetLoss(), 6, memory_size=8)
    with pytest.raises(
        ValueError, match="must fit into the memory of 8, got 24 embeddings: raise memory_size"
    ):
        memory(E, Y)
    with pytest.raises(ValueError, match="indices_tuple must be None"):
        memory(E[:8], Y[:8], (Y, Y, Y, Y))
    with pytest.raises(ValueError, match=r"embedding_size=6 columns like the memory, got \(8, 5\)"):
        memory(E[:8, :5], Y[:8])
    with pytest.raises(ValueError, match=r"enqueue_mask must be bool of shape \(8,\), one a sample, got"):
        memory(E[:8], Y[:8], None, Y[:5] > 0)
    with pytest.raises(ValueError, match="miner must not be bound to posets"):
        PosetCrossBatchMemory(PosetLoss(), 6, miner=NearestMedoidMiner(posets=example_posets()))
    with pytest.raises(ValueError, match=r"must have one shape, got \(24, 6\) and \(23, 6\)"):
        PosetSelfSupervisedLoss(PosetLoss())(E, E[1:])


def example_posets():
    features = E.float().numpy()
    return Posets.build(features, torch.arange(24) % 4)

"""PosetLoss, its representatives and its wrappers against plain nested loops."""

import math
import re
from statistics import variance

import numpy as np
import pytest
import ranks
import torch
import torch.nn.functional as F
from batches import batch, elements
from loops import dot, medoids, squared, unit
from pytorch_metric_learning import distances, losses, reducers, regularizers
from pytorch_metric_learning.utils import distributed as pml_dist
from refusals import no_warning, refuses
from torch.utils._python_dispatch import TorchDispatchMode

from pml_posets import _medoids
from pml_posets.distributed.process_group import rank
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.wrappers import PosetCrossBatchMemory, PosetSelfSupervisedLoss
from pml_posets.miners import NearestMedoidMiner
from pml_posets.posets import Posets

PLAIN = distances.LpDistance(normalize_embeddings=False, power=2)
DISTANCES = {
    "default": None,
    "power 1": distances.LpDistance(power=1),
    "not normalized": PLAIN,
    "L1": distances.LpDistance(p=1, power=1),
    "cosine": distances.CosineSimilarity(),
    "dot": distances.DotProductSimilarity(normalize_embeddings=False),
    "snr": distances.SNRDistance(),
}
MARGINS = pytest.mark.parametrize("margin", ["paper", "magnet", "additive"])
ANCHORS = pytest.mark.parametrize("anchors", ["all", "unassigned"])


def gradient(loss, embeddings, labels):
    embeddings = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(embeddings, labels), embeddings)[0]


def batch_medoids(embeddings, labels, distance=None):
    """(K,) indices and (K,) classes, as loss and miner find them."""
    distance = PosetLoss(distance=distance).distance
    x, _ = _medoids.prepared_pair(distance, embeddings, embeddings)
    return _medoids.prepared_medoids(x, labels, distance)


def loop_squared(x, y, kind="default"):
    if kind in ("default", "power 1", "cosine", "snr"):
        x, y = unit(x), unit(y)
    if kind == "L1":
        x, y = ([v / sum(abs(u) for u in z) for v in z] for z in (x, y))
        return sum(abs(a - b) for a, b in zip(x, y, strict=True)) ** 2
    if kind in ("cosine", "dot"):
        return 2 - 2 * dot(x, y)
    if kind == "snr":
        return (variance([a - b for a, b in zip(x, y, strict=True)]) / variance(x)) ** 2
    return squared(x, y)


def loop_medoids(embeddings, labels, kind="default"):
    """Class -> index of its medoid."""

    def distance(x, y):
        square = loop_squared(x, y, kind)
        return math.copysign(math.sqrt(abs(square)), square)

    return medoids(embeddings.tolist(), labels.tolist(), distance)


def loop_term(positives, negatives, sigma2, gamma, margin):
    """Eq. 4 and its variants for one anchor, from lists of squared distances."""

    def total(squares, shift=0.0):
        return sum(math.exp(-(d - shift) / (2 * sigma2)) for d in squares)

    if margin == "magnet":
        return max(0.0, gamma + math.log(total(negatives) / total(positives))) if negatives else 0.0
    over = total(positives, gamma if margin == "paper" else -gamma)
    under = total(negatives) + (over if margin == "additive" else total(positives))
    return -math.log(over / under)


def loop_loss(
    x, labels, ref=None, *, num_nearest=2, sigma=None, gamma=0, margin="paper", anchors="all", kind="default"
):
    """Anchor -> its loss."""
    ref, ref_labels = (x, labels) if ref is None else ref
    medoid = loop_medoids(ref, ref_labels, kind)
    rows, refs = x.tolist(), ref.tolist()
    spread = []
    for some, classes in ((rows, labels), (refs, ref_labels)):
        if not spread:  # else sigma is of the batch's own samples
            assigned = [(x, c) for x, c in zip(some, classes.tolist(), strict=True) if c in medoid]
            spread = [loop_squared(x, refs[medoid[c]], kind) for x, c in assigned]
    sigma2 = sigma**2 if sigma else (max(sum(spread) / len(spread), 0.02**2) if spread else 0.0)
    out = {}
    for i, label in enumerate(labels.tolist()):
        to = sorted((loop_squared(rows[i], refs[m], kind), c) for c, m in medoid.items())
        near = {c for _, c in to[:num_nearest]} if label == -1 else {label} if anchors == "all" else set()
        positives, negatives = ([d for d, c in to if (c in near) == side] for side in (True, False))
        if positives:
            out[i] = loop_term(positives, negatives, sigma2, gamma, margin)
    return out


@MARGINS
@ANCHORS
@pytest.mark.parametrize(("sigma", "gamma"), [(None, 0.0), (None, 0.3), (0.7, 0.3)])
@pytest.mark.parametrize("num_nearest", [1, 2, 9])
def test_agrees_with_the_plain_loops(margin, anchors, sigma, gamma, num_nearest):
    options = dict(num_nearest=num_nearest, sigma=sigma, gamma=gamma, margin=margin, anchors=anchors)
    embeddings, labels = batch(num_nearest)
    expected = loop_loss(embeddings, labels, **options)
    assert elements(PosetLoss(**options), embeddings, labels) == pytest.approx(expected, rel=1e-7, abs=1e-9)
    mean = sum(expected.values()) / len(expected)
    assert PosetLoss(**options)(embeddings, labels).item() == pytest.approx(mean, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("kind", DISTANCES)
def test_every_distance_agrees_with_the_plain_loops(kind):
    embeddings, labels = batch(size=30)
    embeddings = 0.5 * embeddings
    expected = loop_loss(embeddings, labels, gamma=0.2, sigma=0.8, kind=kind)
    loss = PosetLoss(gamma=0.2, sigma=0.8, distance=DISTANCES[kind])
    assert elements(loss, embeddings, labels) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_the_defaults_for_each_distance():
    distance = PosetLoss().distance
    assert type(distance) is distances.LpDistance
    assert (distance.normalize_embeddings, distance.p, distance.power) == (True, 2, 2)
    unit_kinds = ("default", "power 1", "cosine")
    for kind, distance in DISTANCES.items():
        assert PosetLoss(distance=distance).sigma == (0.3 if kind in unit_kinds else None)
    assert PosetLoss(sigma=None).sigma is None


def test_hand_worked_case():
    # On a line: class 0 at 0, 1, 2 (medoid 1), class 1 at 6, class 2 at 11, 12 (tied: 11); unassigned at 3.
    embeddings = torch.tensor([[0.0], [1.0], [2.0], [6.0], [11.0], [12.0], [3.0]])
    labels = torch.tensor([0, 0, 0, 1, 2, 2, -1])
    assert [part.tolist() for part in batch_medoids(embeddings, labels, PLAIN)] == [[1, 3, 4], [0, 1, 2]]
    # sigma^2 = (1 + 0 + 1 + 0 + 0 + 1) / 6 = 1/2, so every exponent is -d^2: 4, 9, 64 for the unassigned.
    total = math.exp(-4) + math.exp(-9) + math.exp(-64)
    for options, expected in (
        ({"num_nearest": 2}, -math.log((math.exp(-4) + math.exp(-9)) / total)),
        ({"num_nearest": 1, "gamma": 2.0}, -math.log(math.exp(-4 + 2) / total)),
        ({"num_nearest": 1, "gamma": 7.0, "margin": "magnet"}, 4 - 9 + 7),
        ({"num_nearest": 1, "gamma": 5.0, "margin": "additive"}, math.log(2)),
    ):
        loss = PosetLoss(distance=PLAIN, anchors="unassigned", **options)
        assert elements(loss, embeddings, labels) == pytest.approx({6: expected}, rel=1e-6, abs=1e-7)
    # All anchors: sample 2 has d^2 = 1 to its medoid, 16 and 81 to the others.
    found = elements(PosetLoss(distance=PLAIN), embeddings, labels)
    assert sorted(found) == list(range(7))
    assert found[2] == pytest.approx(math.log(1 + math.exp(-15) + math.exp(-80)), rel=1e-4)


def test_class_ids_may_have_gaps_and_any_integer_dtype():
    embeddings, labels = batch()
    expected = PosetLoss()(embeddings, labels)
    for dtype in (torch.int32, torch.int16, torch.int8):
        assert PosetLoss()(embeddings, labels.to(dtype)) == expected
    assert PosetLoss()(embeddings, torch.where(labels < 0, -1, labels + 2**40)) == expected


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize(
    ("size", "num_classes", "rows"), [(1, 1, 256), (60, 6, 256), (90, 1, 16), (90, 3, 16), (300, 40, 16)]
)
def test_medoids_agree_with_the_plain_loops(monkeypatch, kind, size, num_classes, rows):
    embeddings, labels = batch(size, size=size, num_classes=num_classes)
    sizes, plain = [], _medoids.prepared_distances
    monkeypatch.setattr(
        _medoids, "prepared_distances", lambda d, x, y: sizes.append((len(x), len(y))) or plain(d, x, y)
    )
    monkeypatch.setitem(_medoids._BLOCK_ROWS, "cpu", rows)
    found, classes = batch_medoids(embeddings, labels, DISTANCES[kind])
    expected = loop_medoids(embeddings, labels, kind)
    assert found.tolist() == list(expected.values())
    assert classes.tolist() == list(expected)
    if size > rows:  # blocks of rows, each against its own classes alone
        assert max(r for r, _ in sizes) == rows
        assert max(c for _, c in sizes) <= rows + 2 * labels[labels >= 0].bincount().max()


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_tied_medoids_go_to_the_lower_index(scale):
    g = torch.Generator().manual_seed(0)
    pair = torch.randn(1, 64, generator=g) + scale * torch.randn(2, 64, generator=g)
    many = torch.cat([pair, torch.randn(30, 64, generator=g)])
    labels = torch.tensor([4, 4] + [-1] * 30)
    assert batch_medoids(many, labels)[0].tolist() == [0]
    assert batch_medoids(many.flip(0), labels.flip(0))[0].tolist() == [30]
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).repeat(10, 1) + 3
    assert batch_medoids(scale * square, torch.zeros(40).long(), PLAIN)[0].tolist() == [0]
    assert batch_medoids(torch.ones(30, 8), torch.arange(30) % 3)[0].tolist() == [0, 1, 2]


class Operations(TorchDispatchMode):
    """Counts operations, and notes the largest tensor that any of them returns, in elements."""

    def __init__(self):
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += 1
        found = [x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(x)]
        self.largest = max([self.largest, *found])
        return out


def operations(embeddings, labels, distance=None):
    loss, miner = PosetLoss(distance=distance), NearestMedoidMiner(distance=distance)
    embeddings.requires_grad_()
    with Operations() as seen:
        loss(embeddings, labels, miner(embeddings, labels)).backward()
        loss(embeddings, labels).backward()
    return seen


@pytest.mark.parametrize(("kind", "num_classes"), [("default", 1), ("not normalized", 2)])
def test_memory_is_linear_in_the_size_of_a_class(kind, num_classes):
    size = 6000
    embeddings = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    seen = operations(embeddings, torch.arange(size) % num_classes, DISTANCES[kind])
    assert seen.largest <= 2 * 256 * size < size**2 / 10


def test_the_number_of_operations_hangs_neither_on_samples_nor_on_classes():
    cases = [(80, 3), (120, 3), (120, 50)]
    assert len({operations(*batch(0, size=size, num_classes=num)).count for size, num in cases}) == 1


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("where", [1e4, 1e6])
def test_embeddings_far_from_the_origin(power, where):
    generator = torch.Generator().manual_seed(0)
    near = torch.randint(-64, 64, (60, 8), generator=generator).float() / 8  # exact with the offset
    labels = torch.randint(5, (60,), generator=generator) - 1
    distance = distances.LpDistance(normalize_embeddings=False, power=power)
    far, near = near + where, near.double()
    loss, miner = PosetLoss(sigma=3.0, distance=distance), NearestMedoidMiner(distance=distance)
    for one, other in zip(miner(far, labels), miner(near, labels), strict=True):
        assert torch.equal(one, other)
    assert loss(far, labels).item() == pytest.approx(loss(near, labels).item(), rel=1e-5)
    exact = gradient(loss, near, labels)
    torch.testing.assert_close(gradient(loss, far, labels).double(), exact, rtol=1e-4, atol=1e-6)
    apart = near.float() + 1e5 * labels[:, None]  # classes 1e5 apart, a few units wide
    expected = loop_medoids(near, labels, "not normalized")
    assert batch_medoids(apart, labels, distance)[0].tolist() == list(expected.values())


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


@MARGINS
@pytest.mark.parametrize("num_ref", [None, 31])
@pytest.mark.parametrize("num_pairs", [1, 40])
def test_any_pair_tuple_agrees_with_the_plain_loops(margin, num_ref, num_pairs):
    g = torch.Generator().manual_seed(3)
    embeddings, _ = batch(0)
    ref = batch(1, size=num_ref)[0] if num_ref else None
    pairs = tuple(torch.randint(k, (num_pairs,), generator=g) for k in (24, num_ref or 24) * 2)
    expected = loop_tuple_loss(embeddings, embeddings if ref is None else ref, pairs, 0.25, 0.2, margin)
    loss = PosetLoss(sigma=0.5, gamma=0.2, margin=margin)
    for given in (pairs, tuple(torch.cat([index, index]) for index in pairs)):
        assert elements(loss, embeddings, None, given, ref) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_triplets_are_pairs_of_one_anchor():
    embeddings, labels = batch()
    a, p, n = torch.tensor([0, 0, 3]), torch.tensor([1, 2, 4]), torch.tensor([5, 6, 7])
    loss = PosetLoss(sigma=0.4)
    assert loss(embeddings, labels, (a, p, n)) == loss(embeddings, labels, (a, p, a, n))


@pytest.mark.parametrize("labels", [None, torch.full((24,), -1)])
def test_without_classes_sigma_comes_from_the_positive_pairs(labels):
    embeddings, _ = batch()
    pairs = (torch.tensor([0, 0, 3]), torch.tensor([1, 2, 4]), torch.tensor([0, 3]), torch.tensor([5, 6]))
    rows = embeddings.tolist()
    sigma2 = sum(loop_squared(rows[a], rows[p]) for a, p in [(0, 1), (0, 2), (3, 4)]) / 3
    expected = loop_tuple_loss(embeddings, embeddings, pairs, sigma2)
    assert elements(PosetLoss(sigma=None), embeddings, labels, pairs) == pytest.approx(expected)


@ANCHORS
@pytest.mark.parametrize("num_nearest", [1, 2, 5])
@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("kind", ["default", "dot"])
@pytest.mark.parametrize("unassigned", [0.0, 0.3, 1.0])
def test_the_miners_tuple_changes_nothing(anchors, num_nearest, with_ref, kind, unassigned):
    shared = dict(num_nearest=num_nearest, anchors=anchors, distance=DISTANCES[kind])
    embeddings, labels = batch(num_nearest, size=40, unassigned=unassigned)
    ref = batch(10, size=33, num_classes=3) if with_ref else (None, None)
    loss, pairs = PosetLoss(**shared), NearestMedoidMiner(**shared)(embeddings, labels, *ref)
    value = loss(embeddings, labels, None, *ref)
    torch.testing.assert_close(loss(embeddings, labels, pairs, *ref), value)


@ANCHORS
@pytest.mark.parametrize("sigma", [None, 0.6])
@pytest.mark.parametrize("unassigned", [0.4, 1.0])  # without classes of the batch sigma is of ref_emb
def test_representatives_come_from_ref_emb(anchors, sigma, unassigned):
    embeddings, labels = batch(0, size=20, num_classes=5, unassigned=unassigned)
    ref = batch(7, size=15, num_classes=3)
    options = dict(anchors=anchors, sigma=sigma)
    expected = loop_loss(embeddings, labels, ref, **options)
    for pairs in (None, NearestMedoidMiner(anchors=anchors)(embeddings, labels, *ref)):
        assert elements(PosetLoss(**options), embeddings, labels, pairs, *ref) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("margin", "kind", "anchors"),
    [
        ("paper", "default", "unassigned"),
        ("magnet", "cosine", "all"),
        ("additive", "not normalized", "all"),
        ("paper", "dot", "all"),
    ],
)
def test_gradcheck(margin, kind, anchors):
    embeddings, labels = batch(2, size=12, dims=4, num_classes=3)
    embeddings.requires_grad_()
    loss = PosetLoss(sigma=0.9, gamma=0.2, margin=margin, anchors=anchors, distance=DISTANCES[kind])
    for pairs in (None, NearestMedoidMiner(anchors=anchors)(embeddings, labels)):
        assert torch.autograd.gradcheck(lambda e, pairs=pairs: loss(e, labels, pairs), (embeddings,))


@pytest.mark.parametrize(
    ("labels", "options", "text"),
    [
        (torch.arange(24), {}, "every sample has a label of its own.*PseudoLabelLoss"),
        (torch.zeros(24).long(), {}, "there is one class only"),
        (torch.full((24,), -1), {}, "no sample has a class"),
        (torch.arange(24) % 3, {"anchors": "unassigned"}, 'no label is -1.*anchors="all"'),
    ],
)
def test_a_batch_that_teaches_nothing_is_said_once(labels, options, text):
    embeddings, loss = batch(0)[0], PosetLoss(**options)
    with pytest.warns(UserWarning, match=text):
        loss(embeddings, labels)
    with no_warning():
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
    torch.testing.assert_close(gradient(estimated, embeddings, labels), gradient(fixed, embeddings, labels))
    assert estimated.sigma_used == pytest.approx(sigma)
    assert (estimated.num_anchors, estimated.num_representatives) == (24, len(medoid))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rows", "labels"), [(torch.eye(4, 8), torch.arange(4)), (torch.ones(4, 8), torch.zeros(4).long())]
)
@pytest.mark.parametrize(("options", "floor"), [({}, 0.02), ({"min_sigma": 0.5}, 0.5)])
def test_sigma_has_a_floor(dtype, rows, labels, options, floor):
    loss = PosetLoss(sigma=None, collect_stats=True, **options)
    assert torch.isfinite(gradient(loss, rows.to(dtype), labels)).all()
    assert loss.sigma_used == pytest.approx(floor, rel=1e-2)


def test_detached_representatives_move_as_anchors_only():
    embeddings, labels = batch(0)
    medoid = batch_medoids(embeddings, labels)[0]
    free = gradient(PosetLoss(anchors="unassigned"), embeddings, labels)
    held = gradient(PosetLoss(anchors="unassigned", detach_representatives=True), embeddings, labels)
    assert free[medoid].abs().sum(1).min() > 0
    assert held[medoid].abs().sum() == 0
    torch.testing.assert_close(held[labels < 0], free[labels < 0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("kind", ["default", "cosine", "power 1"])
def test_half_precision(dtype, tolerance, kind):
    embeddings, labels = batch(1, size=40, dims=16, dtype=dtype)
    loss, miner = (make(distance=DISTANCES[kind]) for make in (PosetLoss, NearestMedoidMiner))
    exact = gradient(loss, embeddings.double(), labels)
    assert (gradient(loss, embeddings, labels).double() - exact).norm() <= 3 * tolerance * exact.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(embeddings, labels, miner(embeddings, labels)))
    torch.testing.assert_close(value, loss(embeddings.float(), labels))


def test_dtypes_of_embeddings_and_ref_emb_may_differ():
    embeddings, labels = batch(1, dtype=torch.float32)
    ref = batch(2)
    value = PosetLoss()(embeddings, labels, None, *ref)
    torch.testing.assert_close(value, PosetLoss()(embeddings.double(), labels, None, *ref).float())


E, Y = batch(0)
EMPTY = torch.zeros(0).long()
NOTHING = {
    "empty batch": (E[:0], Y[:0]),
    "no representative": (E, torch.full_like(Y, -1)),
    "no anchor": (E, Y.abs()),
    "empty tuple": (E, Y, (EMPTY,) * 4),
    "only negatives": (E, Y, (EMPTY, EMPTY, torch.tensor([0]), torch.tensor([1]))),
    "empty ref": (E, Y, None, E[:0], Y[:0]),
    "empty batch with ref": (E[:0], Y[:0], None, E, Y),
    "own class not in ref": (E, Y.abs(), None, E, Y.abs() + 1000),
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("reducer", [None, reducers.AvgNonZeroReducer(), reducers.DivisorReducer()])
def test_nothing_to_learn_from_is_a_zero_loss_with_a_gradient_path(case, reducer):
    embeddings, *rest = NOTHING[case]
    embeddings = embeddings.clone().requires_grad_()
    value = PosetLoss(anchors="unassigned", reducer=reducer)(embeddings, *rest)
    assert (value.shape, value.item()) == ((), 0)
    value.backward()
    assert embeddings.grad.abs().sum() == 0
    regularized = PosetLoss(anchors="unassigned", embedding_regularizer=regularizers.LpRegularizer())
    assert not len(embeddings) or regularized(embeddings, *rest) > 0


def test_reducers_and_regularizers():
    embeddings, labels = batch(0)
    values = torch.tensor([*elements(PosetLoss(), embeddings, labels).values()], dtype=torch.float64)
    middle = values.median().item()
    weights = torch.linspace(0.5, 2.0, 13).double()  # classes 2, 5, 8, 11; the last stands for -1
    for reducer, expected in (
        (reducers.ThresholdReducer(low=middle), values[values > middle].mean()),
        (reducers.ClassWeightedReducer(weights), (values * weights[labels]).mean()),
        (reducers.PerAnchorReducer(), values.mean()),
        (reducers.DivisorReducer(), values.mean()),
    ):
        torch.testing.assert_close(PosetLoss(reducer=reducer)(embeddings, labels), expected)
    regularized = PosetLoss(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.1)
    expected = values.mean() + 0.1 * embeddings.norm(dim=1).mean()
    torch.testing.assert_close(regularized(embeddings, labels), expected)


def test_leaves_no_state_behind_for_loggers():
    loss, miner = PosetLoss(collect_stats=True), NearestMedoidMiner(collect_stats=True)
    embeddings, labels = batch(0)
    loss(embeddings, labels, miner(embeddings, labels))
    for part in (loss, miner):
        assert not part.state_dict()
        names = part._record_these + part._record_these_stats
        assert all(isinstance(getattr(part, name), int | float) for name in names)


@pytest.mark.parametrize("miner", [None, NearestMedoidMiner(anchors="unassigned")])
def test_cross_batch_memory(miner):
    loss = PosetLoss()
    memory = PosetCrossBatchMemory(loss, embedding_size=6, memory_size=60, miner=miner)
    seen, seen_labels = torch.zeros(0, 6, dtype=torch.float64), torch.zeros(0).long()
    for seed in range(4):  # the last wraps around
        embeddings, labels = batch(seed)
        embeddings.requires_grad_()
        value = memory(embeddings, labels)
        seen = torch.cat([seen, embeddings.detach()])[-60:] if seed < 2 else memory.embedding_memory.clone()
        seen_labels = torch.cat([seen_labels, labels])[-60:] if seed < 2 else memory.label_memory.clone()
        pairs = miner and miner(embeddings, labels, seen, seen_labels)
        torch.testing.assert_close(value, loss(embeddings, labels, pairs, seen, seen_labels))
        assert torch.autograd.grad(value, embeddings)[0].abs().sum() > 0
    assert memory.has_been_filled
    assert torch.isfinite(memory(*batch(9), enqueue_mask=torch.arange(24) < 10))


def memories(size=60):
    """Two with the same batch in them."""
    found = [PosetCrossBatchMemory(PosetLoss(), 6, memory_size=size) for _ in range(2)]
    for memory in found:
        memory(*batch(1))
    return found


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((E * torch.nan, Y), "must be finite"),
        ((E, Y - 5), "labels must be -1 or more"),
        ((E, Y[:5]), "labels must have shape (24,)"),
        ((E, Y.float()), "labels must be integers"),
        ((E, None), "labels must be given, got None"),
        ((E[:, :5], Y), "6 columns like the memory, its embedding_size, got (24, 5)"),
        (
            (E, Y, None, Y[:3] > 0),
            "enqueue_mask must be bool of shape (24,), one a sample, got torch.bool (3,)",
        ),
        ((E, Y, None, Y), "enqueue_mask must be bool of shape (24,), one a sample, got torch.int64"),
        ((E, Y, (Y,) * 4), "indices_tuple must be None"),
        (
            (E.repeat(3, 1), Y.repeat(3)),
            "must fit into the memory of 60, got 72 embeddings: raise memory_size",
        ),
    ],
)
def test_a_refused_batch_leaves_the_memory_as_it_was(args, text):
    memory, fresh = memories()
    with pytest.raises((ValueError, TypeError), match=re.escape(text)):
        memory(*args)
    assert memory.queue_idx == fresh.queue_idx
    assert torch.equal(memory.embedding_memory, fresh.embedding_memory)
    assert torch.equal(memory(E, Y), fresh(E, Y))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_loss_that_fails_leaves_the_memory_as_it_was(monkeypatch, error):
    memory, fresh = memories(30)

    def fail(*args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(memory.loss, "forward", fail)
        with pytest.raises(error):
            memory(*batch(2))  # goes round the end
    assert memory.queue_idx == fresh.queue_idx
    assert torch.equal(memory.embedding_memory, fresh.embedding_memory)
    assert torch.equal(memory.label_memory, fresh.label_memory)
    assert torch.equal(memory(E, Y), fresh(E, Y))


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


def shared_batch():
    inputs, labels = batch(0, size=40)
    return inputs, labels, torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(6, 6).sin().requires_grad_()


def on_its_rows():
    """Loss, gradient and mined loss of this rank's part of a batch, by PML's wrappers."""
    inputs, labels, weights = shared_batch()
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
    inputs, labels, weights = shared_batch()
    rows = [*range(17), *range(20, 37)]
    joint = PosetLoss()(inputs[rows] @ weights, labels[rows])
    joint.backward()
    for value, grad, mined in ranks.values(ranks.run(2, on_its_rows)):
        np.testing.assert_allclose([value, mined], joint.item(), rtol=1e-7)
        np.testing.assert_allclose(grad, weights.grad, rtol=1e-7, atol=1e-7)


def test_compiles():
    embeddings, labels = batch(0, dtype=torch.float32)
    for margin in ("paper", "magnet"):
        loss = PosetLoss(gamma=0.1, margin=margin)
        compiled = torch.compile(loss, backend="eager")
        torch.testing.assert_close(compiled(embeddings, labels), loss(embeddings, labels))


def test_huge_but_finite_embeddings_are_no_error():
    for x in (torch.full((4, 8), 6e4, dtype=torch.float16), torch.full((4, 8), 3e38)):
        assert torch.isfinite(PosetLoss()(x, torch.tensor([0, 0, 1, -1])))


A = Y.abs()
NAN = E.index_fill(0, torch.tensor([3]), math.nan)
BOUND = NearestMedoidMiner(posets=Posets.build(E.float().numpy(), torch.arange(24) % 4))


def made(**options):
    return lambda: PosetLoss(**options)


test_wrong_options_are_named = refuses(
    (made(num_nearest=0), ValueError, "num_nearest must be at least 1, got 0"),
    (made(sigma=0), ValueError, "sigma must be above 0, got 0"),
    (made(gamma=-0.1), ValueError, "gamma must be at least 0, got -0.1"),
    (made(sigma=1e-30), ValueError, "sigma must be at least 1e-15, or its square leaves float32"),
    (made(min_sigma=0.0), ValueError, "min_sigma must be above 0, got 0.0"),
    (made(margin="big"), ValueError, "margin must be one of 'paper', 'magnet', 'additive', got 'big'"),
    (made(anchors="none"), ValueError, "anchors must be one of 'all', 'unassigned', got 'none'"),
    (made(distance=torch.cdist), TypeError, "distance must be a pytorch_metric_learning distance, got"),
    (made(distance=distances.LpDistance(power=3)), ValueError, "a distance must have power 1 or 2, got 3"),
    (made(distance=distances.CosineSimilarity(power=2)), ValueError, "similarity must have power 1, got 2"),
)


def given(*args):
    return lambda: PosetLoss()(*args)


test_bad_batches_are_named = refuses(
    (given(E, Y[:5]), ValueError, "labels must have shape (24,) to match embeddings (24, 6), got (5,)"),
    (given(E, Y.float()), TypeError, "integers, got torch.float32: convert them by labels.long()"),
    (given(E, Y > 0), TypeError, "labels must be integers, got torch.bool"),
    (given(E, Y.tolist()), TypeError, "labels must be a torch.Tensor, got list"),
    (given(E, Y - 5), ValueError, "-1 or more, found -6: mark every sample without a class by -1"),
    (given(NAN, Y), ValueError, "NaN or infinity in 1 of 24 rows (first: row 3): lower the learning rate"),
    (given(-1 / (E - E[3, 1]), Y), ValueError, "must be finite, found NaN or infinity in 1 of 24"),
    (given(E.long(), Y), TypeError, "embeddings must be floating point, got torch.int64"),
    (given(E.numpy(), Y), TypeError, "embeddings must be a torch.Tensor, got ndarray"),
    (given(E[0], Y), ValueError, "embeddings must have shape (batch, dimensions), got (6,)"),
    (given(E), ValueError, "labels or indices_tuple must be given, got neither"),
    (given(E, Y, None, E), ValueError, "ref_emb needs ref_labels or an indices_tuple"),
    (given(E, Y, None, None, Y), ValueError, "ref_labels were given without ref_emb"),
    (given(E, Y, None, E[:, :4], Y), ValueError, "ref_emb must have 6 columns like embeddings (24, 6), got"),
    (given(E, Y, None, NAN, Y), ValueError, "ref_emb must be finite"),
    (given(E, Y, None, E[:9], Y), ValueError, "ref_labels must have shape (9,) to match ref_emb (9, 6), got"),
    (given(E, Y, (Y, Y)), ValueError, "indices_tuple must be (a1, p, a2, n) or (a, p, n), got 2"),
    (given(E, Y, Y), ValueError, "indices_tuple must be (a1, p, a2, n) or (a, p, n), got Tensor"),
    (given(E, Y, (A, A + 20, A, A)), ValueError, "indices_tuple must hold indices in 0..23, found 31"),
    (given(E, Y, (Y, A, A, A)), ValueError, "indices_tuple must hold indices in 0..23, found -1"),
    (given(E, Y, (A, A, A, A), E[:9], Y[:9]), ValueError, "indices_tuple must hold indices in 0..8, found"),
    (given(E, Y, (A[:3], A, A, A)), ValueError, "must be 1-D and of one length, got (3,), (24,)"),
)


test_wrappers_name_what_they_cannot_take = refuses(
    (lambda: PosetCrossBatchMemory(losses.NTXentLoss(), 6), TypeError, "must be a PosetLoss, got NTXentLoss"),
    (lambda: PosetSelfSupervisedLoss(losses.NTXentLoss()), TypeError, "must be a PosetLoss, got NTXentLoss"),
    (lambda: PosetSelfSupervisedLoss(PosetLoss(anchors="unassigned")), ValueError, 'must have anchors="all"'),
    (
        lambda: PosetCrossBatchMemory(PosetLoss(), 6, miner=BOUND),
        ValueError,
        "miner must not be bound to posets",
    ),
    (
        lambda: PosetSelfSupervisedLoss(PosetLoss())(E, E[1:]),
        ValueError,
        "must have one shape, got (24, 6) and (23, 6)",
    ),
)

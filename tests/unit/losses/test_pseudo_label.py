"""Losses and miners of class ids behind dataset indices."""

import warnings

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import (
    ArcFaceLoss,
    ContrastiveLoss,
    MarginLoss,
    MultipleLosses,
    MultiSimilarityLoss,
    NormalizedSoftmaxLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    TripletMarginLoss,
)
from pytorch_metric_learning.miners import (
    AngularMiner,
    BatchEasyHardMiner,
    BatchHardMiner,
    MultiSimilarityMiner,
    TripletMarginMiner,
)

from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, PseudoLabelMiner, WeightedLosses
from pml_posets.miners import NearestMedoidMiner
from pml_posets.posets import Posets
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelSampler
from pml_posets.training.joint import JointTrainer

LABELS = np.array([0, 1, -1, 0, 2, 1, -1, 2, -1, 0])


@pytest.fixture
def posets():
    return Posets.build(np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32), LABELS)


def batch(seed=0, size=24):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(size, 6, generator=generator, requires_grad=True)
    return embeddings, torch.randint(0, 10, (size,), generator=generator)


def by_hand(embeddings, indices):
    labels = torch.from_numpy(LABELS)[indices]
    kept = labels >= 0
    return embeddings[kept], labels[kept], labels


LOSSES = [
    ContrastiveLoss(),
    MultiSimilarityLoss(),
    NTXentLoss(),
    TripletMarginLoss(),
    NormalizedSoftmaxLoss(3, 6),
]


@pytest.mark.parametrize("inner", LOSSES, ids=lambda loss: type(loss).__name__)
def test_drop_is_the_loss_of_the_assigned(inner, posets):
    embeddings, indices = batch()
    x, labels, _ = by_hand(embeddings, indices)
    found = PseudoLabelLoss(inner, posets)(embeddings, indices)
    assert torch.equal(found, inner(x, labels))
    found.backward()
    unassigned = torch.from_numpy(LABELS)[indices] < 0
    assert (embeddings.grad[unassigned] == 0).all()
    assert (embeddings.grad[~unassigned] != 0).any()


@pytest.mark.parametrize("miner", [MultiSimilarityMiner(epsilon=1.0), TripletMarginMiner(margin=9.0)])
def test_drop_with_a_tuple_of_the_whole_batch(miner, posets):
    embeddings, indices = batch()
    x, labels, _ = by_hand(embeddings, indices)
    mined = PseudoLabelMiner(miner, posets)(embeddings, indices)
    inner = TripletMarginLoss()
    expected = inner(x, labels, miner(x, labels))
    assert torch.equal(PseudoLabelLoss(inner, posets)(embeddings, indices, mined), expected)
    assert expected > 0
    # Pairs with unassigned samples are dropped with them.
    wild = miner(embeddings, torch.from_numpy(LABELS)[indices])  # -1 is a class to PML
    if len(wild) == 3:
        kept = torch.stack([torch.from_numpy(LABELS)[indices][part] >= 0 for part in wild]).all(dim=0)
        reference = inner(embeddings, torch.from_numpy(LABELS)[indices], tuple(part[kept] for part in wild))
        assert torch.allclose(PseudoLabelLoss(inner, posets)(embeddings, indices, wild), reference)


def test_mined_pairs_point_into_the_whole_batch(posets):
    embeddings, indices = batch(1)
    labels = torch.from_numpy(LABELS)[indices]
    a1, p, a2, n = PseudoLabelMiner(MultiSimilarityMiner(epsilon=9.0), posets)(embeddings, indices)
    pairs = {(i, j) for i, j in zip(a1.tolist(), p.tolist(), strict=True)}
    expected = {
        (i, j) for i in range(24) for j in range(24) if i != j and labels[i] == labels[j] and labels[i] >= 0
    }
    assert pairs == expected
    assert (labels[a2] != labels[n]).all()
    assert (labels[torch.cat([a2, n])] >= 0).all()


def test_references_are_looked_up_and_dropped_too(posets):
    embeddings, indices = batch(2)
    ref, ref_indices = batch(3, size=30)
    x, labels, _ = by_hand(embeddings, indices)
    y, ref_labels, _ = by_hand(ref, ref_indices)
    inner, miner = ContrastiveLoss(), MultiSimilarityMiner(epsilon=0.5)
    found = PseudoLabelLoss(inner, posets)(embeddings, indices, None, ref, ref_indices)
    assert torch.equal(found, inner(x, labels, None, y, ref_labels))
    mined = PseudoLabelMiner(miner, posets)(embeddings, indices, ref, ref_indices)
    found = PseudoLabelLoss(inner, posets)(embeddings, indices, mined, ref, ref_indices)
    assert torch.equal(found, inner(x, labels, miner(x, labels, y, ref_labels), y, ref_labels))


def test_keep_is_the_poset_loss_of_labels(posets):
    embeddings, indices = batch(4)
    _, _, labels = by_hand(embeddings, indices)
    inner = PosetLoss(sigma=0.5)
    assert torch.equal(PseudoLabelLoss(inner, posets, "keep")(embeddings, indices), inner(embeddings, labels))
    bound = NearestMedoidMiner(posets=posets)
    mined = bound(embeddings, indices)
    found = PseudoLabelLoss(inner, posets, "keep")(embeddings, indices, mined)
    assert torch.equal(found, inner(embeddings, labels, mined))
    unbound = NearestMedoidMiner()
    found = PseudoLabelMiner(unbound, posets, "keep")(embeddings, indices)
    assert all(torch.equal(a, b) for a, b in zip(found, unbound(embeddings, labels), strict=True))


def test_own_makes_each_unassigned_sample_a_class(posets):
    embeddings, _ = batch(5, size=4)
    indices = torch.tensor([0, 3, 2, 6])
    found = PseudoLabelLoss(NTXentLoss(), posets, "own")(embeddings, indices)
    assert torch.equal(found, NTXentLoss()(embeddings, torch.tensor([0, 0, 7, 8])))
    assert PseudoLabelLoss(NTXentLoss(), posets, "own").class_ids(indices).tolist() == [0, 0, 5, 9]


def test_classification_without_an_assigned_sample_is_zero_not_nan(posets):
    loss = PseudoLabelLoss(torch.nn.CrossEntropyLoss(), posets)
    logits = torch.randn(3, 3, requires_grad=True)
    found = loss(logits, torch.tensor([2, 6, 8]))
    assert found.item() == 0
    found *= 0.5  # PML weighs in place
    found.backward()
    assert torch.equal(logits.grad, torch.zeros(3, 3))
    logits = torch.full((2, 3), torch.inf, requires_grad=True)
    assert loss(logits, torch.tensor([2, 6])).item() == 0
    some = torch.randn(4, 3)
    assert torch.equal(
        loss(some, torch.tensor([2, 5, 6, 7])),
        torch.nn.functional.cross_entropy(some[[1, 3]], torch.tensor([1, 2])),
    )


@pytest.mark.parametrize("inner", LOSSES, ids=lambda loss: type(loss).__name__)
def test_metric_losses_without_an_assigned_sample_are_zero(inner, posets):
    embeddings = torch.randn(3, 6, requires_grad=True)
    found = PseudoLabelLoss(inner, posets)(embeddings, torch.tensor([2, 6, 8]))
    assert found.item() == 0
    found.backward()


def test_a_subset_miner_points_into_the_whole_batch(posets):
    embeddings, indices = batch(6)
    subset = PseudoLabelMiner(lambda embeddings, labels: labels.argsort()[:5], posets)(embeddings, indices)
    labels = torch.from_numpy(LABELS)[indices]
    assert len(subset) == 5
    assert (labels[subset] == labels[labels >= 0].sort().values[:5]).all()


def test_a_store_is_followed_when_it_changes():
    features = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    sampler = PseudoLabelSampler(features, 4, grouping=GivenLabels([0, 0, 1, 1, -1, -1]))
    loss = PseudoLabelLoss(NTXentLoss(), sampler)
    indices = torch.arange(6)
    assert loss.class_ids(indices).tolist() == [0, 0, 1, 1, -1, -1]
    sampler.grouping = GivenLabels([-1, 0, 1, 1, 0, -1])
    sampler.regroup(features)
    assert loss.class_ids(indices).tolist() == [-1, 0, 1, 1, 0, -1]
    loss.bind(Posets.build(features, [-1, -1, -1, -1, 0, 0]))
    assert loss.class_ids(indices).tolist() == [-1, -1, -1, -1, 0, 0]


def test_nothing_big_reaches_logs_or_state(posets):
    loss = PseudoLabelLoss(NormalizedSoftmaxLoss(3, 6), posets)
    assert list(loss.state_dict()) == ["inner.W"]
    assert not loss._buffers
    assert [name for name, value in vars(loss).items() if isinstance(value, dict) and value] == ["_modules"]


def test_records_of_the_inner_miner_are_found(posets):
    miner = PseudoLabelMiner(BatchEasyHardMiner(collect_stats=True), posets)
    miner(*batch(7))
    assert miner._record_these_stats
    assert miner.num_pos_pairs == miner.inner.num_pos_pairs > 0
    with pytest.raises(AttributeError):
        miner.nothing_of_the_kind  # noqa: B018


def test_bad_input(posets):
    loss = PseudoLabelLoss(NTXentLoss(), posets)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"0\.\.9, got 3 to 10"):
        loss(x, torch.tensor([3, 10]))
    with pytest.raises(ValueError, match="got -1 to 3"):
        loss(x, torch.tensor([3, -1]))
    with pytest.raises(TypeError, match="IndexedDataset"):
        loss(x, torch.tensor([0.0, 1.0]))
    with pytest.raises(RuntimeError, match="no posets are bound"):
        PseudoLabelLoss(NTXentLoss())(x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="'drop', 'keep', 'own', got 'skip'"):
        PseudoLabelLoss(NTXentLoss(), posets, "skip")
    with pytest.raises(TypeError, match="must take class ids"):
        PseudoLabelMiner(NearestMedoidMiner(posets=posets), posets)
    with pytest.raises(TypeError, match="an instance"):
        PseudoLabelLoss(NTXentLoss, posets)
    with pytest.raises(ValueError, match=r"\(a1, p, a2, n\) or \(a, p, n\), got 2"):
        loss(x, torch.tensor([0, 1]), (x, x))


# --- A weighted sum


def parts(posets):
    features = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    torch.manual_seed(0)
    return {
        "poset": PseudoLabelLoss(PosetLoss(sigma=0.5), posets, "keep"),
        "pairs": PseudoLabelLoss(ContrastiveLoss(), posets),
        "feature": FeatureLoss(6, features),
    }


def test_a_weighted_sum_is_the_sum(posets):
    losses = parts(posets)
    weights = {"pairs": 0.25, "poset": 2.0, "feature": 3}
    both = WeightedLosses(losses, weights)
    embeddings, indices = batch(8)
    expected = sum(weights[name] * loss(embeddings, indices) for name, loss in losses.items())
    found = both(embeddings, indices)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(expected, embeddings)
    found.backward()
    torch.testing.assert_close(embeddings.grad, slope)
    assert losses["feature"].map.weight.grad.abs().sum() > 0
    torch.testing.assert_close(WeightedLosses(losses)(embeddings, indices), sum(both.values.values()))


def test_the_values_of_the_last_call_are_kept_for_logs(posets):
    both = WeightedLosses(parts(posets), {"poset": 1.0, "pairs": 0.0, "feature": 5.0})
    assert both.values == {}
    for seed in (1, 2):
        embeddings, indices = batch(seed)
        both(embeddings, indices)
        assert list(both.values) == ["poset", "feature"]
        for name, value in both.values.items():
            assert not value.requires_grad
            assert value == both.losses[name](embeddings, indices)


def test_a_loss_of_weight_zero_is_never_called(posets):
    def broken(embeddings, labels):
        raise AssertionError

    losses = {**parts(posets), "broken": PseudoLabelLoss(broken, posets)}
    both = WeightedLosses(losses, {"poset": 1, "pairs": 0, "feature": 1, "broken": 0})
    assert sorted(both.losses) == ["feature", "poset"]
    assert both(*batch()) > 0


def test_a_tuple_reaches_every_part(posets):
    losses = {name: loss for name, loss in parts(posets).items() if name != "feature"}
    embeddings, indices = batch(9)
    mined = PseudoLabelMiner(MultiSimilarityMiner(epsilon=0.1), posets)(embeddings, indices)
    found = WeightedLosses(losses)(embeddings, indices, mined)
    torch.testing.assert_close(found, sum(loss(embeddings, indices, mined) for loss in losses.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_without_a_sample_are_zero(posets, dtype):
    both = WeightedLosses(parts(posets))
    embeddings = torch.randn(3, 6).to(dtype).requires_grad_()
    both(embeddings, torch.tensor([2, 6, 8])).backward()  # unassigned: nothing to classify or to pair
    assert both.values["pairs"] == both.values["poset"] == 0
    assert both.values["feature"] > 0
    assert embeddings.grad.isfinite().all()
    nothing = both(embeddings[:0], torch.zeros(0, dtype=torch.int64))
    assert nothing.item() == 0
    nothing.backward()


def test_every_part_is_bound(posets):
    losses = parts(None)
    both = WeightedLosses(losses)
    both.bind(posets)
    assert losses["poset"].class_ids(torch.arange(10)).tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match="the posets have 3 samples, the features 10"):
        both.bind(Posets.build(np.eye(3, dtype=np.float32), [0, 0, 1]))


def test_a_weighted_sum_has_the_state_of_its_parts(posets):
    both = WeightedLosses(parts(posets), {"poset": 1.0, "pairs": 1.0, "feature": 2.0})
    both(*batch())
    assert sorted(both.state_dict()) == ["losses.feature.map.bias", "losses.feature.map.weight"]
    assert not list(both.buffers())


def test_a_weighted_sum_that_needs_classes_says_so_without_any(posets):
    features = np.random.default_rng(2).normal(size=(10, 3)).astype(np.float32)

    def rounds(**losses):
        return JointTrainer(
            models={"trunk": torch.nn.Linear(3, 6)},
            optimizers={"trunk_optimizer": lambda p: torch.optim.SGD(p, lr=0.1)},
            freeze_these=("metric_loss",),
            sampler=PseudoLabelSampler(features, 4, grouping=GivenLabels([-1] * 10), num_batches=1),
            loss_funcs={"metric_loss": WeightedLosses(losses)},
            dataset=[torch.from_numpy(row) for row in features],
            num_rounds=1,
            progress=False,
        )

    losses = parts(None)
    with pytest.raises(ValueError, match="formed no class"):
        rounds(poset=losses["poset"], pairs=losses["pairs"]).train()
    rounds(poset=losses["poset"], feature=losses["feature"]).train()


def test_bad_weights(posets):
    losses = parts(posets)
    for weights in (
        {"poset": 1.0},
        dict.fromkeys([*losses, "more"], 1.0),
        {**dict.fromkeys(losses, 1.0), "pairs": -1.0},
        {**dict.fromkeys(losses, 1.0), "pairs": np.nan},
        {**dict.fromkeys(losses, 1.0), "pairs": np.inf},
    ):
        with pytest.raises(ValueError, match=r"names of the losses, \['feature', 'pairs', 'poset'\], got"):
            WeightedLosses(losses, weights)
    with pytest.raises(ValueError, match="no loss with a weight above 0"):
        WeightedLosses(losses, dict.fromkeys(losses, 0))
    with pytest.raises(ValueError, match="no loss with a weight above 0"):
        WeightedLosses({})
    with pytest.raises(TypeError, match="the loss pairs takes no dataset indices: put it into PseudoLabel"):
        WeightedLosses({"pairs": ContrastiveLoss()})


# --- What does not go together


@pytest.mark.parametrize("unassigned", ["drop", "keep", "own"])
@pytest.mark.parametrize("kind", [PseudoLabelLoss, PseudoLabelMiner])
def test_rows_that_do_not_match(kind, unassigned, posets):
    inner = ContrastiveLoss() if kind is PseudoLabelLoss else MultiSimilarityMiner()
    adapter, rest = kind(inner, posets, unassigned), ((None,) if kind is PseudoLabelLoss else ())
    embeddings, indices = batch()
    with pytest.raises(
        ValueError, match=r"dataset indices must have shape \(24,\), one a sample, got \(12,\)"
    ):
        adapter(embeddings, indices[:12])
    with pytest.raises(ValueError, match=r"must have shape \(12,\), one a sample, got \(24,\)"):
        adapter(embeddings[:12], indices)
    with pytest.raises(ValueError, match=r"must have shape \(24,\), one a sample, got \(24, 1\)"):
        adapter(embeddings, indices[:, None])
    with pytest.raises(ValueError, match=r"must have shape \(24,\), one a sample, got \(23,\)"):
        adapter(embeddings, indices, *rest, embeddings, indices[1:])
    for refs in ((embeddings, None), (None, indices)):
        with pytest.raises(ValueError, match="ref_emb and ref_labels must be given together"):
            adapter(embeddings, indices, *rest, *refs)


@pytest.mark.parametrize("inner", [torch.nn.CrossEntropyLoss(), NormalizedSoftmaxLoss(3, 6)])
def test_logits_that_do_not_match(inner, posets):
    indices = torch.tensor([0, 1, 2, 3])  # 2 is unassigned: three classes for three of five rows
    for weighted in (False, True):
        loss = PseudoLabelLoss(inner, posets)
        loss = WeightedLosses({"one": loss}) if weighted else loss
        with pytest.raises(ValueError, match=r"must have shape \(5,\), one a sample, got \(4,\)"):
            loss(torch.randn(5, 6), indices)


def test_a_tuple_of_another_batch(posets):
    embeddings, indices = batch()
    with pytest.raises(ValueError, match=r"indices_tuple must hold indices in 0\.\.23, found 24"):
        PseudoLabelLoss(ContrastiveLoss(), posets)(embeddings, indices, (torch.tensor([24]),) * 3)


def test_pairs_that_were_not_mined_by_classes(posets):
    embeddings = batch()[0][:10]
    loss = PseudoLabelLoss(NTXentLoss(), posets)
    with pytest.warns(UserWarning, match="label of its own"):
        mined = NearestMedoidMiner()(embeddings, torch.arange(10))
    with pytest.raises(ValueError, match=r"got no positive pair of two samples and 10 negative pairs of one"):
        loss(embeddings, torch.arange(10), mined)
    itself = (torch.arange(10), torch.arange(10), *mined[2:])
    with pytest.raises(ValueError, match="Bind it, or wrap it in PseudoLabelMiner"):
        loss(embeddings, torch.arange(10), itself)
    with pytest.warns(UserWarning, match="no pair at all by the miner"):  # PML's, unbound: no two are alike
        loss(embeddings, torch.arange(10), MultiSimilarityMiner()(embeddings, torch.arange(10)))
    twice = torch.arange(5).repeat(2)  # two views: pairs of views alone
    with pytest.warns(UserWarning, match="8 negative pairs of one class"):
        PseudoLabelLoss(NTXentLoss(), posets)(embeddings, twice, MultiSimilarityMiner(9.0)(embeddings, twice))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for inner, how in ((NearestMedoidMiner(), "keep"), (MultiSimilarityMiner(), "own")):
            mined = PseudoLabelMiner(inner, posets, how)(embeddings, torch.arange(10))
            PseudoLabelLoss(PosetLoss(), posets, "keep")(embeddings, torch.arange(10), mined)
        bound = NearestMedoidMiner(posets=posets)
        PseudoLabelLoss(PosetLoss(), posets, "keep")(
            embeddings, torch.arange(10), bound(embeddings, torch.arange(10))
        )
        unassigned = torch.tensor([2, 6, 8])
        empty = PseudoLabelMiner(BatchHardMiner(), posets)(embeddings[:3], unassigned)
        PseudoLabelLoss(TripletMarginLoss(), posets)(embeddings[:3], unassigned, empty)


@pytest.mark.parametrize(
    "inner", [BatchHardMiner(), MultiSimilarityMiner(), TripletMarginMiner(), AngularMiner()]
)
@pytest.mark.parametrize("rows", [[2, 6, 8], [2, 0, 6], []])
def test_a_batch_with_nothing_to_mine(inner, rows, posets):
    embeddings = torch.randn(len(rows), 6, requires_grad=True)
    mined = PseudoLabelMiner(inner, posets)(embeddings, torch.tensor(rows, dtype=torch.int64))
    assert all(len(part) == 0 for part in mined)
    for loss in (TripletMarginLoss(), ContrastiveLoss(), MultiSimilarityLoss()):
        value = PseudoLabelLoss(loss, posets)(embeddings, torch.tensor(rows, dtype=torch.int64), mined)
        assert value.item() == 0
        value.backward()


def test_references_without_a_class_give_nothing_to_mine(posets):
    embeddings, indices = batch()
    mined = PseudoLabelMiner(BatchHardMiner(), posets)(
        embeddings, indices, embeddings[:2], torch.tensor([2, 6])
    )
    assert [len(part) for part in mined] == [0] * 4


@pytest.mark.parametrize("unassigned", ["keep", "own"])
def test_losses_with_an_output_for_each_class_take_assigned_samples_alone(unassigned):
    proxies = MultipleLosses([ProxyAnchorLoss(3, 4)])
    for inner in (torch.nn.CrossEntropyLoss(), ArcFaceLoss(3, 4), proxies, MarginLoss(num_classes=3)):
        with pytest.raises(
            ValueError, match=r"'drop' for \w+Loss, which has an output or a proxy for each class"
        ):
            PseudoLabelLoss(inner, unassigned=unassigned)
    PseudoLabelLoss(torch.nn.CrossEntropyLoss(ignore_index=-1), unassigned="keep")
    PseudoLabelLoss(MarginLoss(), unassigned=unassigned)


@pytest.mark.parametrize("name", ["a.b", "values"])
def test_names_that_a_sum_cannot_hold(name):
    with pytest.raises(ValueError, match=f"losses has the name '{name}'"):
        WeightedLosses({name: PseudoLabelLoss(PosetLoss())})

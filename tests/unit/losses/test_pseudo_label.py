"""Losses and miners of class ids behind dataset indices."""

import re

import numpy as np
import pytest
import torch
import trainings
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners
from refusals import no_warning, refuses

from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, PseudoLabelMiner, WeightedLosses
from pml_posets.miners import NearestMedoidMiner
from pml_posets.posets import Posets
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelSampler

LABELS = np.array([0, 1, -1, 0, 2, 1, -1, 2, -1, 0])
UNASSIGNED = torch.tensor([2, 6, 8])
EVERY = torch.arange(10)
FEATURES = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
POSETS = Posets.build(FEATURES, LABELS)


def batch(seed=0, size=24):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(size, 6, generator=generator, requires_grad=True)
    return embeddings, torch.randint(0, 10, (size,), generator=generator)


def by_hand(embeddings, indices):
    """The assigned samples' embeddings and labels, all labels."""
    labels = torch.from_numpy(LABELS)[indices]
    kept = labels >= 0
    return embeddings[kept], labels[kept], labels


@pytest.mark.parametrize("inner", [pml.ContrastiveLoss(), pml.NTXentLoss(), pml.NormalizedSoftmaxLoss(3, 6)])
def test_drop_is_the_loss_of_the_assigned(inner):
    embeddings, indices = batch()
    x, labels, every = by_hand(embeddings, indices)
    loss = PseudoLabelLoss(inner, POSETS)
    found = loss(embeddings, indices)
    assert torch.equal(found, inner(x, labels))
    found.backward()
    assert not embeddings.grad[every < 0].any()
    nothing = loss(torch.randn(3, 6, requires_grad=True), UNASSIGNED)
    assert nothing.item() == 0
    nothing.backward()


@pytest.mark.parametrize(
    "miner", [miners.MultiSimilarityMiner(epsilon=1.0), miners.TripletMarginMiner(margin=9.0)]
)
def test_drop_with_a_tuple_of_the_whole_batch(miner):
    embeddings, indices = batch()
    x, labels, every = by_hand(embeddings, indices)
    mined = PseudoLabelMiner(miner, POSETS)(embeddings, indices)
    inner = pml.TripletMarginLoss()
    loss, expected = PseudoLabelLoss(inner, POSETS), inner(x, labels, miner(x, labels))
    assert torch.equal(loss(embeddings, indices, mined), expected)
    assert expected > 0
    # Pairs with unassigned samples are dropped with them.
    wild = miner(embeddings, every)  # -1 is a class to PML
    if len(wild) == 3:
        kept = torch.stack([every[part] >= 0 for part in wild]).all(dim=0)
        reference = inner(embeddings, every, tuple(part[kept] for part in wild))
        assert torch.allclose(loss(embeddings, indices, wild), reference)


def test_mined_pairs_point_into_the_whole_batch():
    embeddings, indices = batch(1)
    labels = torch.from_numpy(LABELS)[indices]
    a1, p, a2, n = PseudoLabelMiner(miners.MultiSimilarityMiner(epsilon=9.0), POSETS)(embeddings, indices)
    same = (labels[:, None] == labels) & (labels >= 0).outer(labels >= 0)
    expected = same.fill_diagonal_(False).nonzero().tolist()
    assert sorted(zip(a1.tolist(), p.tolist(), strict=True)) == [tuple(pair) for pair in expected]
    assert (labels[a2] != labels[n]).all()
    assert (labels[torch.cat([a2, n])] >= 0).all()
    subset = PseudoLabelMiner(lambda embeddings, labels: labels.argsort()[:5], POSETS)
    found = labels[subset(embeddings, indices)]
    assert found.tolist() == labels[labels >= 0].sort().values[:5].tolist()
    assert subset(embeddings[:3], UNASSIGNED).tolist() == []


def test_references_are_looked_up_and_dropped_too():
    embeddings, indices = batch(2)
    ref, ref_indices = batch(3, size=30)
    x, labels, _ = by_hand(embeddings, indices)
    y, ref_labels, _ = by_hand(ref, ref_indices)
    inner, miner = pml.ContrastiveLoss(), miners.MultiSimilarityMiner(epsilon=0.5)
    loss = PseudoLabelLoss(inner, POSETS)
    found = loss(embeddings, indices, None, ref, ref_indices)
    assert torch.equal(found, inner(x, labels, None, y, ref_labels))
    mined = PseudoLabelMiner(miner, POSETS)(embeddings, indices, ref, ref_indices)
    found = loss(embeddings, indices, mined, ref, ref_indices)
    assert torch.equal(found, inner(x, labels, miner(x, labels, y, ref_labels), y, ref_labels))
    mined = PseudoLabelMiner(miners.BatchHardMiner(), POSETS)(embeddings, indices, ref[:2], UNASSIGNED[:2])
    assert [len(part) for part in mined] == [0] * 4


def test_keep_is_the_poset_loss_of_labels():
    embeddings, indices = batch(4)
    _, _, labels = by_hand(embeddings, indices)
    inner, unbound = PosetLoss(sigma=0.5), NearestMedoidMiner()
    for mined in (None, NearestMedoidMiner(posets=POSETS)(embeddings, indices)):
        found = PseudoLabelLoss(inner, POSETS, "keep")(embeddings, indices, mined)
        assert torch.equal(found, inner(embeddings, labels, mined))
    found = PseudoLabelMiner(unbound, POSETS, "keep")(embeddings, indices)
    assert all(torch.equal(a, b) for a, b in zip(found, unbound(embeddings, labels), strict=True))


def test_own_makes_each_unassigned_sample_a_class():
    embeddings, _ = batch(5, size=4)
    indices = torch.tensor([0, 3, 2, 6])
    loss = PseudoLabelLoss(pml.NTXentLoss(), POSETS, "own")
    assert torch.equal(loss(embeddings, indices), pml.NTXentLoss()(embeddings, torch.tensor([0, 0, 7, 8])))
    assert loss.class_ids(indices).tolist() == [0, 0, 5, 9]


def test_classification_without_an_assigned_sample_is_zero_not_nan():
    loss = PseudoLabelLoss(torch.nn.CrossEntropyLoss(), POSETS)
    logits = torch.full((3, 3), torch.inf, requires_grad=True)
    found = loss(logits, UNASSIGNED)
    assert found.item() == 0
    found *= 0.5  # PML weighs in place
    found.backward()
    assert not logits.grad.any()
    some = torch.randn(4, 3)
    expected = torch.nn.functional.cross_entropy(some[[1, 3]], torch.tensor([1, 2]))
    assert torch.equal(loss(some, torch.tensor([2, 5, 6, 7])), expected)


def test_a_store_is_followed_when_it_changes():
    sampler = PseudoLabelSampler(FEATURES[:6], 4, grouping=GivenLabels([0, 0, 1, 1, -1, -1]))
    loss = PseudoLabelLoss(pml.NTXentLoss(), sampler)
    indices = torch.arange(6)
    assert loss.class_ids(indices).tolist() == [0, 0, 1, 1, -1, -1]
    sampler.grouping = GivenLabels([-1, 0, 1, 1, 0, -1])
    sampler.regroup(FEATURES[:6])
    assert loss.class_ids(indices).tolist() == [-1, 0, 1, 1, 0, -1]
    loss.bind(Posets.build(FEATURES[:6], [-1, -1, -1, -1, 0, 0]))
    assert loss.class_ids(indices).tolist() == [-1, -1, -1, -1, 0, 0]


def test_nothing_big_reaches_logs_or_state():
    loss = PseudoLabelLoss(pml.NormalizedSoftmaxLoss(3, 6), POSETS)
    assert list(loss.state_dict()) == ["inner.W"]
    assert not loss._buffers
    assert [name for name, value in vars(loss).items() if isinstance(value, dict) and value] == ["_modules"]


def test_records_of_the_inner_miner_are_found():
    miner = PseudoLabelMiner(miners.BatchEasyHardMiner(collect_stats=True), POSETS)
    miner(*batch(7))
    assert miner._record_these_stats
    assert miner.num_pos_pairs == miner.inner.num_pos_pairs > 0
    with pytest.raises(AttributeError):
        miner.nothing_of_the_kind  # noqa: B018


def parts(posets=POSETS):
    torch.manual_seed(0)
    return {
        "poset": PseudoLabelLoss(PosetLoss(sigma=0.5), posets, "keep"),
        "pairs": PseudoLabelLoss(pml.ContrastiveLoss(), posets),
        "feature": FeatureLoss(6, FEATURES),
    }


def test_a_weighted_sum_is_the_sum():
    losses = parts()
    weights = {"pairs": 0.25, "poset": 2.0, "feature": 3}
    both, (embeddings, indices) = WeightedLosses(losses, weights), batch(8)
    expected = sum(weights[name] * loss(embeddings, indices) for name, loss in losses.items())
    found = both(embeddings, indices)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(expected, embeddings)
    found.backward()
    torch.testing.assert_close(embeddings.grad, slope)
    assert losses["feature"].map.weight.grad.abs().sum() > 0
    assert sorted(both.state_dict()) == ["losses.feature.map.bias", "losses.feature.map.weight"]
    assert not list(both.buffers())
    torch.testing.assert_close(WeightedLosses(losses)(embeddings, indices), sum(both.values.values()))


def test_values_are_kept_and_a_loss_of_weight_zero_is_never_called():
    def broken(embeddings, labels):
        raise AssertionError

    losses = {**parts(), "broken": PseudoLabelLoss(broken, POSETS)}
    both = WeightedLosses(losses, {"poset": 1, "pairs": 0, "feature": 5.0, "broken": 0})
    assert both.values == {}
    for seed in (1, 2):
        embeddings, indices = batch(seed)
        both(embeddings, indices)
        assert sorted(both.values) == sorted(both.losses) == ["feature", "poset"]
        for name, value in both.values.items():
            assert not value.requires_grad
            assert value == both.losses[name](embeddings, indices)


def test_a_tuple_reaches_every_part():
    losses = {name: loss for name, loss in parts().items() if name != "feature"}
    embeddings, indices = batch(9)
    mined = PseudoLabelMiner(miners.MultiSimilarityMiner(epsilon=0.1), POSETS)(embeddings, indices)
    found = WeightedLosses(losses)(embeddings, indices, mined)
    torch.testing.assert_close(found, sum(loss(embeddings, indices, mined) for loss in losses.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_without_a_sample_are_zero(dtype):
    both = WeightedLosses(parts())
    embeddings = torch.randn(3, 6).to(dtype).requires_grad_()
    both(embeddings, UNASSIGNED).backward()  # nothing to classify or to pair
    assert both.values["pairs"] == both.values["poset"] == 0
    assert both.values["feature"] > 0
    assert embeddings.grad.isfinite().all()
    nothing = both(embeddings[:0], torch.zeros(0, dtype=torch.int64))
    assert nothing.item() == 0
    nothing.backward()


def test_every_part_is_bound():
    losses = parts(None)
    WeightedLosses(losses).bind(POSETS)
    assert all(losses[name].class_ids(EVERY).tolist() == LABELS.tolist() for name in ("poset", "pairs"))


def test_a_weighted_sum_that_needs_classes_says_so_without_any():
    def rounds(*names):
        losses = {name: loss for name, loss in parts(None).items() if name in names}
        return trainings.make(
            torch.from_numpy(FEATURES),
            torch.nn.Linear(4, 6),
            GivenLabels([-1] * 10),
            loss_funcs={"metric_loss": WeightedLosses(losses)},
            freeze_these=("metric_loss",),
        )

    with pytest.raises(ValueError, match="formed no class"):
        rounds("poset", "pairs").train()
    rounds("poset", "feature").train()


def weighted(**changes):
    weights = {**dict.fromkeys(parts(), 1.0), **changes}
    return lambda: WeightedLosses(parts(), weights)


NAMES = "names of the losses, ['feature', 'pairs', 'poset'], got"

test_bad_weights = refuses(
    (lambda: WeightedLosses(parts(), {"poset": 1.0}), ValueError, NAMES),
    *((weighted(**change), ValueError, NAMES) for change in ({"more": 1}, {"pairs": -1}, {"pairs": np.nan})),
    (weighted(pairs=np.inf), ValueError, NAMES),
    (weighted(poset=0, pairs=0, feature=0), ValueError, "no loss with a weight above 0"),
    (lambda: WeightedLosses({}), ValueError, "no loss with a weight above 0"),
    (lambda: WeightedLosses({"a": torch.nn.Identity()}), TypeError, "loss a takes no dataset indices"),
    (lambda: WeightedLosses({"a.b": PseudoLabelLoss(PosetLoss())}), ValueError, "losses has the name 'a.b'"),
    (lambda: WeightedLosses({"values": PseudoLabelLoss(PosetLoss())}), ValueError, "the name 'values'"),
)

X, ROWS = batch()
PAIR = torch.tensor([0, 1])


def loss_of(*args, inner=pml.ContrastiveLoss(), unassigned="drop", posets=POSETS):  # noqa: B008
    return lambda: PseudoLabelLoss(inner, posets, unassigned)(*args)


test_bad_input = refuses(
    (loss_of(X[:2], torch.tensor([3, 10])), ValueError, "0..9, got 3 to 10"),
    (loss_of(X[:2], torch.tensor([3, -1])), ValueError, "got -1 to 3"),
    (loss_of(X[:2], torch.tensor([0.0, 1.0])), TypeError, "IndexedDataset"),
    (loss_of(X[:2], PAIR, posets=None), RuntimeError, "no posets are bound"),
    (loss_of(unassigned="skip"), ValueError, "'drop', 'keep', 'own', got 'skip'"),
    (loss_of(inner=pml.NTXentLoss), TypeError, "an instance"),
    (loss_of(inner=PseudoLabelLoss(pml.NTXentLoss())), TypeError, "must take class ids"),
    (lambda: PseudoLabelMiner(NearestMedoidMiner(posets=POSETS), POSETS), TypeError, "must take class ids"),
    (loss_of(X[:2], PAIR, (PAIR, PAIR)), ValueError, "(a1, p, a2, n) or (a, p, n), got 2"),
    (loss_of(X, ROWS, (torch.tensor([24]),) * 3), ValueError, "must hold indices in 0..23, found 24"),
)


@pytest.mark.parametrize("unassigned", ["drop", "keep", "own"])
@pytest.mark.parametrize("kind", [PseudoLabelLoss, PseudoLabelMiner])
def test_rows_that_do_not_match(kind, unassigned):
    inner, rest = (
        (pml.ContrastiveLoss(), (None,)) if kind is PseudoLabelLoss else (miners.BatchHardMiner(), ())
    )
    shape, together = "dataset indices must have shape", "ref_emb and ref_labels must be given together"
    for args, text in (
        ((X, ROWS[:12]), f"{shape} (24,), one a sample, got (12,)"),
        ((X[:12], ROWS), f"{shape} (12,), one a sample, got (24,)"),
        ((X, ROWS[:, None]), f"{shape} (24,), one a sample, got (24, 1)"),
        ((X, ROWS, *rest, X, ROWS[1:]), f"{shape} (24,), one a sample, got (23,)"),
        ((X, ROWS, *rest, X, None), together),
        ((X, ROWS, *rest, None, ROWS), together),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            kind(inner, POSETS, unassigned)(*args)


def test_pairs_that_were_not_mined_by_classes():
    embeddings = X[:10]
    loss = PseudoLabelLoss(pml.NTXentLoss(), POSETS)
    with pytest.warns(UserWarning, match="label of its own"):
        mined = NearestMedoidMiner()(embeddings, EVERY)
    with pytest.raises(ValueError, match=r"got no positive pair of two samples and 10 negative pairs of one"):
        loss(embeddings, EVERY, mined)
    with pytest.raises(ValueError, match="Bind it, or wrap it in PseudoLabelMiner"):
        loss(embeddings, EVERY, (EVERY, EVERY, *mined[2:]))  # each paired with itself
    with pytest.warns(UserWarning, match="no pair at all by the miner"):  # PML's, unbound: no two are alike
        loss(embeddings, EVERY, miners.MultiSimilarityMiner()(embeddings, EVERY))
    twice = torch.arange(5).repeat(2)  # two views: pairs of views alone
    with pytest.warns(UserWarning, match="8 negative pairs of one class"):
        PseudoLabelLoss(pml.NTXentLoss(), POSETS)(
            embeddings, twice, miners.MultiSimilarityMiner(9.0)(embeddings, twice)
        )
    good = [
        PseudoLabelMiner(NearestMedoidMiner(), POSETS, "keep"),
        PseudoLabelMiner(miners.MultiSimilarityMiner(), POSETS, "own"),
        NearestMedoidMiner(posets=POSETS),
    ]
    with no_warning():
        for miner in good:
            PseudoLabelLoss(PosetLoss(), POSETS, "keep")(embeddings, EVERY, miner(embeddings, EVERY))


@pytest.mark.parametrize("inner", [miners.BatchHardMiner(), miners.MultiSimilarityMiner()])
@pytest.mark.parametrize("rows", [[2, 6, 8], [2, 0, 6], []])
def test_a_batch_with_nothing_to_mine(inner, rows):
    embeddings, indices = torch.randn(len(rows), 6, requires_grad=True), torch.tensor(rows).long()
    mined = PseudoLabelMiner(inner, POSETS)(embeddings, indices)
    assert all(len(part) == 0 for part in mined)
    with no_warning():
        for loss in (pml.TripletMarginLoss(), pml.ContrastiveLoss(), pml.MultiSimilarityLoss()):
            value = PseudoLabelLoss(loss, POSETS)(embeddings, indices, mined)
            assert value.item() == 0
            value.backward()


@pytest.mark.parametrize("unassigned", ["keep", "own"])
def test_losses_with_an_output_for_each_class_take_assigned_samples_alone(unassigned):
    proxies = pml.MultipleLosses([pml.ProxyAnchorLoss(3, 4)])
    for inner in (torch.nn.CrossEntropyLoss(), pml.ArcFaceLoss(3, 4), proxies, pml.MarginLoss(num_classes=3)):
        with pytest.raises(ValueError, match=r"'drop' for \w+Loss, which has an output or a proxy"):
            PseudoLabelLoss(inner, unassigned=unassigned)
    PseudoLabelLoss(torch.nn.CrossEntropyLoss(ignore_index=-1), unassigned="keep")
    PseudoLabelLoss(pml.MarginLoss(), unassigned=unassigned)

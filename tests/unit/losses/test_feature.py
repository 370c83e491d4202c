"""FeatureLoss against plain loops, with flips, its state and what it refuses."""

import copy

import numpy as np
import pytest
import torch
from loops import dot, unit
from refusals import no_warning, refuses

from pml_posets.losses.feature import FeatureLoss
from pml_posets.posets import Posets

NUM, WIDE, NARROW = 12, 5, 7  # samples, columns of features, columns of embeddings


def table(seed=0):
    return np.random.default_rng(seed).normal(size=(NUM, WIDE)).astype(np.float32)


def batch(seed=0, size=9, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    embeddings = 3 * torch.randn(size, NARROW, generator=generator)
    return embeddings.to(dtype).requires_grad_(), torch.randint(0, NUM, (size,), generator=generator)


def make(mirrored=None, embedding_dim=NARROW, features=None):
    torch.manual_seed(1)
    return FeatureLoss(embedding_dim, table() if features is None else features, mirrored)


def flipped_posets(flips):
    labels = [0, 1, 2, 3] * 3  # an unassigned sample would get a flip of its own
    return Posets.build(table(), labels, mirrored=table(1), flips=np.array(flips))


def by_loops(loss, embeddings, targets):
    """The mean over samples of 1 - cos(W phi / |phi| + b, f), number by number."""
    weight, bias = loss.map.weight.tolist(), loss.map.bias.tolist()
    total = 0.0
    for row, target in zip(embeddings.tolist(), targets.tolist(), strict=True):
        told = [dot(w, unit(row)) + b for w, b in zip(weight, bias, strict=True)]
        total += 1 - dot(unit(told), unit(target))
    return total / len(embeddings)


def test_by_hand():
    loss = FeatureLoss(2, np.float32([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0]]))
    with torch.no_grad():
        loss.map.weight.copy_(torch.eye(2))
        loss.map.bias.zero_()
    east = torch.tensor([[5.0, 0.0]])
    for index, expected in enumerate((0.0, 1.0, 2.0)):  # the same way, across, the other way
        assert loss(east, torch.tensor([index])).item() == expected


def test_what_does_not_matter():
    loss, (embeddings, indices) = make(), batch()
    value = loss(embeddings, indices)
    assert torch.equal(loss(embeddings, indices.int()), value)
    assert torch.equal(loss(embeddings, indices, (indices, indices, indices)), value)  # a miner's tuple


def test_gradients():
    loss = make().double()
    embeddings, indices = batch(dtype=torch.float64)

    def value(x, weight, bias):
        return torch.func.functional_call(loss, {"map.weight": weight, "map.bias": bias}, (x, indices))

    weights = [p.detach().clone().requires_grad_() for p in (loss.map.weight, loss.map.bias)]
    assert torch.autograd.gradcheck(value, (embeddings, *weights))


def test_half_weights_are_computed_with_in_full():
    loss, (embeddings, indices) = make().bfloat16(), batch(dtype=torch.bfloat16)
    value = loss(embeddings, indices)
    assert value.dtype == torch.float32
    exact = copy.deepcopy(loss).double()(embeddings.double(), indices)
    assert value.item() == pytest.approx(exact.item(), abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    loss, (embeddings, indices) = make(table(1)), batch()
    loss.bind(flipped_posets([True, False] * 6))
    value = loss(embeddings, indices)
    for where in ("cpu", "cuda"):
        found = loss.cuda()(embeddings.cuda(), indices.to(where))
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), value)


@pytest.mark.parametrize("seed", range(3))
def test_the_value_by_plain_loops_with_and_without_flips(seed):
    loss, (embeddings, indices) = make(table(1)), batch(seed)
    plain = loss(embeddings, indices)
    assert plain.item() == pytest.approx(by_loops(loss, embeddings, table()[indices]), rel=1e-5)
    flips = [True, False, False, True, True, False, False, True, False, True, False, True]
    loss.bind(flipped_posets(flips))
    targets = np.where(np.array(flips)[:, None], table(1), table())[indices]
    assert loss(embeddings, indices).item() == pytest.approx(by_loops(loss, embeddings, targets), rel=1e-5)
    for each in (loss, make()):  # posets without flips need no mirrored features
        each.bind(flipped_posets([False] * NUM))
        assert torch.equal(each(embeddings, indices), plain)


def test_the_state_is_w_and_b_alone():
    loss, (embeddings, indices) = make(table(1)), batch()
    loss.bind(flipped_posets([True] * NUM))
    shapes = {name: tuple(value.shape) for name, value in loss.state_dict().items()}
    assert shapes == {"map.weight": (WIDE, NARROW), "map.bias": (WIDE,)}
    assert not list(loss.buffers())
    other = FeatureLoss(NARROW, table(), table(1))
    other.bind(flipped_posets([True] * NUM))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(embeddings, indices), loss(embeddings, indices))


def test_the_features_are_its_own():
    features = table()
    loss, (embeddings, indices) = make(features=features), batch()
    before = loss(embeddings, indices)
    features += 1
    assert torch.equal(loss(embeddings, indices), before)
    features.flags.writeable = False  # as those of a memory-mapped file: no warning
    with no_warning():
        make(features=features)


X, ROWS = batch()


def given(*args):
    return lambda: make()(*args)


def bound(posets):
    return lambda: make().bind(posets)


test_bad_input = refuses(
    (given(X, ROWS + 12), ValueError, "dataset indices must be in 0..11, got"),
    (given(X, ROWS - ROWS.min() - 1), ValueError, "dataset indices must be in 0..11, got -1"),
    (given(X, ROWS.float()), TypeError, "dataset indices must be an integer tensor, got torch.float32"),
    (given(X, ROWS[:-1]), ValueError, "dataset indices must have shape (9,), one a sample, got (8,)"),
    (given(X[:, :6], ROWS), ValueError, "must have 7 columns like the loss, its embedding_dim, got (9, 6)"),
    (given(X / torch.arange(9)[:, None], ROWS), ValueError, "NaN or infinity in 1 of 9 rows (first: row 0)"),
    (given(X.long(), ROWS), TypeError, "must be floating point"),
    (given(X, ROWS, None, X, ROWS), ValueError, "takes no ref_emb"),
    (lambda: make(features=np.full((NUM, WIDE), np.nan)), ValueError, "features must be finite, but row 0"),
    (lambda: make(features=table()[0]), ValueError, "features must have shape (N, D)"),
    (lambda: make(table()[:5]), ValueError, "mirrored must have the shape (12, 5)"),
    (lambda: make(embedding_dim=0), ValueError, "embedding_dim must be at least 1"),
    (bound(None), TypeError, "FeatureLoss is bound to Posets, got NoneType"),
    (
        bound(Posets.build(table()[:4], [0, 0, 1, 1])),
        ValueError,
        "the posets have 4 samples, the features 12",
    ),
    (bound(flipped_posets([True] * NUM)), ValueError, "mirror some samples: give FeatureLoss the mirrored"),
)

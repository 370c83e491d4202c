"""FeatureLoss against plain loops, with every dtype, with flips, and inside JointTrainer."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch

from pml_posets.losses.feature import FeatureLoss
from pml_posets.posets import Posets

NUM, WIDE, NARROW = 12, 5, 7  # samples, columns of features, columns of embeddings


def table(seed=0):
    return np.random.default_rng(seed).normal(size=(NUM, WIDE)).astype(np.float32)


def batch(seed=0, size=9, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    embeddings = 3 * torch.randn(size, NARROW, generator=generator)
    return embeddings.to(dtype).requires_grad_(), torch.randint(0, NUM, (size,), generator=generator)


def make(mirrored=None):
    torch.manual_seed(1)
    return FeatureLoss(NARROW, table(), mirrored)


def flipped_posets(flips):
    labels = [0, 1, 2, 3] * 3  # an unassigned sample would get a flip of its own
    return Posets.build(table(), labels, mirrored=table(1), flips=np.array(flips))


def by_loops(loss, embeddings, targets):
    """The mean over samples of 1 - cos(W phi / |phi| + b, f), number by number."""
    weight, bias = loss.map.weight.tolist(), loss.map.bias.tolist()
    total = 0.0
    for row, target in zip(embeddings.tolist(), targets.tolist(), strict=True):
        length = math.sqrt(sum(x * x for x in row))
        told = [
            sum(w * x / length for w, x in zip(weight[k], row, strict=True)) + bias[k] for k in range(WIDE)
        ]
        dot = sum(t * f for t, f in zip(told, target, strict=True))
        norms = math.sqrt(sum(t * t for t in told)) * math.sqrt(sum(f * f for f in target))
        total += 1 - dot / norms
    return total / len(embeddings)


# --- The value


@pytest.mark.parametrize("seed", range(3))
def test_the_value_by_plain_loops(seed):
    loss, (embeddings, indices) = make(), batch(seed)
    assert loss(embeddings, indices).item() == pytest.approx(
        by_loops(loss, embeddings, table()[indices]), rel=1e-5
    )


def test_by_hand():
    loss = FeatureLoss(2, np.float32([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0]]))
    with torch.no_grad():
        loss.map.weight.copy_(torch.eye(2))
        loss.map.bias.zero_()
    east = torch.tensor([[5.0, 0.0]])
    for index, expected in enumerate((0.0, 1.0, 2.0)):  # the same way, across, the other way
        assert loss(east, torch.tensor([index])).item() == expected
    assert loss(east.expand(3, 2), torch.arange(3)).item() == 1.0


def test_what_does_not_matter():
    loss, (embeddings, indices) = make(), batch()
    value = loss(embeddings, indices)
    assert torch.equal(loss(embeddings, indices.int()), value)
    assert torch.equal(loss(embeddings, indices, (indices, indices, indices)), value)  # a miner's tuple


# --- Gradients and dtypes


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


# --- Mirror images


def test_flipped_samples_tell_their_mirrored_features():
    loss, (embeddings, indices) = make(table(1)), batch(3)
    plain = loss(embeddings, indices)
    flips = [True, False, False, True, True, False, False, True, False, True, False, True]
    loss.bind(flipped_posets(flips))
    targets = np.where(np.array(flips)[:, None], table(1), table())[indices]
    assert loss(embeddings, indices).item() == pytest.approx(by_loops(loss, embeddings, targets), rel=1e-5)
    assert loss(embeddings, indices) != plain
    loss.bind(flipped_posets([False] * NUM))  # those of the next round
    assert torch.equal(loss(embeddings, indices), plain)


def test_posets_without_flips_need_no_mirrored_features():
    loss, (embeddings, indices) = make(), batch()
    before = loss(embeddings, indices)
    loss.bind(flipped_posets([False] * NUM))
    assert torch.equal(loss(embeddings, indices), before)


# --- State


def test_the_state_is_w_and_b_alone():
    loss, (embeddings, indices) = make(table(1)), batch()
    loss.bind(flipped_posets([True] * NUM))
    assert {name: tuple(value.shape) for name, value in loss.state_dict().items()} == {
        "map.weight": (WIDE, NARROW),
        "map.bias": (WIDE,),
    }
    assert not list(loss.buffers())
    other = FeatureLoss(NARROW, table(), table(1))
    other.bind(flipped_posets([True] * NUM))
    assert other(embeddings, indices) != loss(embeddings, indices)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(embeddings, indices), loss(embeddings, indices))


def test_the_features_are_its_own():
    features = table()
    loss, (embeddings, indices) = FeatureLoss(NARROW, features), batch()
    before = loss(embeddings, indices)
    features += 1
    assert torch.equal(loss(embeddings, indices), before)
    features.flags.writeable = False  # as those of a memory-mapped file: no warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureLoss(NARROW, features)


# --- Bad input


def test_bad_batches():
    loss, (embeddings, indices) = make(), batch()
    with pytest.raises(
        ValueError, match=r"dataset indices must be in 0\.\.11, got 1 to 12.*\(image, index\)"
    ):
        loss(embeddings, indices.clamp(max=11).index_fill(0, torch.tensor([2]), 12))
    with pytest.raises(ValueError, match=r"dataset indices must be in 0\.\.11, got -1"):
        loss(embeddings, indices - indices.min() - 1)
    with pytest.raises(TypeError, match=r"dataset indices must be an integer tensor, got torch\.float32"):
        loss(embeddings, indices.float())
    with pytest.raises(ValueError, match=r"dataset indices must have shape \(9,\), one a sample, got \(8,\)"):
        loss(embeddings, indices[:-1])
    with pytest.raises(ValueError, match=r"must have 7 columns, the loss's embedding_dim, got \(9, 6\)"):
        loss(embeddings[:, :6], indices)
    with pytest.raises(ValueError, match=r"found NaN or infinity in 1 of 9 rows \(first: row 4\)"):
        loss(embeddings.detach().index_fill(0, torch.tensor([4]), torch.inf), indices)
    with pytest.raises(TypeError, match="must be floating point"):
        loss(embeddings.detach().long(), indices)
    with pytest.raises(ValueError, match="takes no ref_emb"):
        loss(embeddings, indices, None, embeddings, indices)


def test_bad_features():
    broken = table()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3 holds a NaN"):
        FeatureLoss(NARROW, broken)
    with pytest.raises(ValueError, match=r"features must have shape \(N, D\)"):
        FeatureLoss(NARROW, table()[0])
    with pytest.raises(ValueError, match=r"mirrored must have the shape \(12, 5\)"):
        FeatureLoss(NARROW, table(), table()[:5])
    with pytest.raises(ValueError, match="embedding_dim"):
        FeatureLoss(0, table())
    with pytest.raises(TypeError, match="embedding_dim"):
        FeatureLoss(2.5, table())


def test_posets_that_do_not_match():
    loss = make()
    with pytest.raises(ValueError, match="the posets have 4 samples, the features 12"):
        loss.bind(Posets.build(table()[:4], [0, 0, 1, 1]))
    with pytest.raises(ValueError, match="mirror some samples: give FeatureLoss the mirrored features"):
        loss.bind(flipped_posets([True] * NUM))
    with pytest.raises(TypeError, match="Posets"):
        loss.bind(None)

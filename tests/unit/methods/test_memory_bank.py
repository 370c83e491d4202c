"""The memory bank's loss against plain loops, its memory and its state."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from loops import dot, unit
from refusals import refuses

from pml_posets.methods.memory_bank import MemoryBankNCE

NUM, DIM = 20, 5


def make(num_samples=NUM, **options):
    return MemoryBankNCE(num_samples, **{"dim": DIM, "num_negatives": 7, **options})


def batch(seed=0, count=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, DIM, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randperm(NUM, generator=g)[:count]


def drawn(seed, count=7):
    """The samples that the loss draws after this seed."""
    torch.manual_seed(seed)
    found = torch.randint(NUM, (count,))
    torch.manual_seed(seed)
    return found.tolist()


def loop_loss(memory, x, indices, negatives, temperature, log_z=None):
    rows = [unit(row) for row in x.tolist()]
    if log_z is None:
        exps = [math.exp(dot(memory[j], f) / temperature) for f in rows for j in negatives]
        log_z = math.log(len(memory) * sum(exps) / len(exps))
    noise = len(negatives) / len(memory)
    total = 0.0
    for f, i in zip(rows, indices.tolist(), strict=True):
        p = math.exp(dot(memory[i], f) / temperature - log_z)
        total -= math.log(p / (p + noise))
        for j in negatives:
            p = math.exp(dot(memory[j], f) / temperature - log_z)
            total -= math.log(1 - p / (p + noise))
    return total / len(rows), log_z


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_value_by_plain_loops(seed, temperature):
    loss, log_z = make(temperature=temperature), None
    for step in range(3):
        memory, negatives = loss.memory.double().tolist(), drawn(10 * seed + step)
        expected, log_z = loop_loss(memory, *batch(step), negatives, temperature, log_z)
        assert loss(*batch(step)).item() == pytest.approx(expected, rel=1e-6)
    assert loss.get_extra_state()["log_z"] == pytest.approx(log_z, rel=1e-6)


def test_by_hand():
    # All dot products with the random samples are 0: Z is N, and h of a random sample (1/N) / (1/N + m/N).
    loss = make(num_negatives=3)
    loss._memory[:] = torch.eye(DIM)[0]
    loss._memory[4] = torch.eye(DIM)[1]
    torch.manual_seed(0)
    while 4 in drawn(int(torch.randint(1000, ())), 3):
        pass
    own = math.exp(2.0) / (math.exp(2.0) + 3)
    expected = -math.log(own) - 3 * math.log(1 - 1 / 4)
    assert loss(torch.eye(DIM)[1:2], torch.tensor([4])).item() == pytest.approx(expected, rel=1e-6)


def test_evaluation_changes_nothing():
    loss = make().eval()
    before = copy.deepcopy(loss.get_extra_state())
    values = []
    for _ in range(2):
        torch.manual_seed(0)
        values.append(loss(*batch()))
    assert torch.equal(*values)
    assert torch.equal(loss.memory, before["memory"])
    assert loss.get_extra_state()["log_z"] is None


def test_gradients():
    x, indices = batch()
    loss = make().eval()
    loss._log_z = 3.0  # an estimate has no gradient

    def value(x):
        torch.manual_seed(0)
        return loss(x, indices)

    assert torch.autograd.gradcheck(value, (x.requires_grad_(),))


def test_the_memory_moves_to_the_mean_of_a_sample():
    loss = make(momentum=0.25)
    expected = loss.memory.clone()
    x, _ = batch(dtype=torch.float32, count=3)
    loss(x.requires_grad_(), torch.tensor([4, 9, 4])).backward()
    rows = F.normalize(x.detach())
    for i, row in ((4, (rows[0] + rows[2]) / 2), (9, rows[1])):
        expected[i] = F.normalize(0.25 * expected[i] + 0.75 * row, dim=0)
    torch.testing.assert_close(loss.memory, expected)
    assert not loss.memory.requires_grad


def test_the_start_is_of_the_seed():
    assert torch.equal(make().memory, make().memory)
    assert not torch.equal(make().memory, make(seed=1).memory)
    torch.testing.assert_close(make().memory.norm(dim=1), torch.ones(NUM))
    assert not [*make().parameters(), *make().buffers()]


def test_more_random_samples_than_samples():
    assert make(num_negatives=5 * NUM)(*batch()).isfinite()
    assert make(1)(batch()[0][:1], torch.tensor([0])).isfinite()


def test_the_memory_survives_a_checkpoint(tmp_path):
    loss = make()
    for step in range(3):
        torch.manual_seed(step)
        loss(*batch(step, dtype=torch.float32))
    torch.save(loss.state_dict(), tmp_path / "state.pt")
    other = make(seed=3)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    values = []
    for part in (loss, other):
        torch.manual_seed(9)
        values.append(part(*batch(5, dtype=torch.float32)))
    assert torch.equal(*values)
    assert torch.equal(loss.memory, other.memory)
    other.load_state_dict(loss.state_dict())
    other(*batch(6, dtype=torch.float32))
    assert not torch.equal(loss.memory, other.memory)  # not shared


X, ROWS = batch()


def made(*args, **options):
    return lambda: make(*args, **options)


def called(x, indices):
    return lambda: make()(x, indices)


test_bad_input = refuses(
    (called(X, ROWS + 20), ValueError, "dataset indices must be in 0..19, got 2"),
    (called(X, ROWS - 1 - ROWS.min()), ValueError, "dataset indices must be in 0..19, got -1"),
    (called(X[:, 1:], ROWS), ValueError, "embeddings must have 5 columns like the memory, got (6, 4)"),
    (called(X, ROWS[1:]), ValueError, "dataset indices must have shape (6,)"),
    (called(X / 0, ROWS), ValueError, "found NaN or infinity in 6 of 6 rows"),
    (made(momentum=1.0), ValueError, "momentum must be in [0, 1), got 1"),
    (made(temperature=0.0), ValueError, "temperature must be above 0, got 0"),
    (made(0), ValueError, "num_samples must be at least 1"),
    (made(num_negatives=0), ValueError, "num_negatives must be at least 1"),
    (
        lambda: make(21).load_state_dict(make().state_dict()),
        ValueError,
        "is (20, 5), samples by width, this one is (21, 5)",
    ),
)

"""What one of several ranks does, without the others: the order of joint batches, random numbers."""

from types import SimpleNamespace

import pytest
import torch

from pml_posets.training import _ranks


class Base:
    def compute_embeddings(self, data):
        return torch.rand(4)


class Rank(_ranks._OverRanks, Base):
    joint = SimpleNamespace(sampler=SimpleNamespace(views=2))


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.setattr(_ranks, "world_size", lambda: 3)

    def become(number):
        monkeypatch.setattr(_ranks, "rank", lambda: number)

    return become


def test_a_joint_batch_lies_view_after_view(ranks, monkeypatch):
    shares = [torch.from_numpy(_ranks.rank_positions(12, 2, number, 3)) for number in range(3)]
    monkeypatch.setattr(_ranks, "gather_with_gradient", lambda share: torch.cat(shares))
    assert Rank()._joint(shares[0]).tolist() == list(range(12))


def test_ranks_draw_differently_for_their_images_and_alike_afterwards(ranks, monkeypatch):
    monkeypatch.setattr(Rank, "_joint", lambda self, share: share)
    drawn, after = [], []
    for number in range(3):
        ranks(number)
        torch.manual_seed(7)
        drawn.append(tuple(Rank().compute_embeddings(None).tolist()))
        after.append(float(torch.rand(())))
    assert len(set(drawn)) == 3
    assert len(set(after)) == 1

"""Rounds on several ranks: each embeds its share of every joint batch, and all compute its loss alike.

The embeddings of all ranks are gathered, with gradients, in the order of the joint batch. From there on every
rank does what one process would. The gradients of all weights are then averaged over the ranks.

What differs from one process:

- batch norm takes the statistics of a rank's share (on GPUs `torch.nn.SyncBatchNorm.convert_sync_batchnorm`
  takes those of the joint batch); its running means are those of rank 0 from every checkpoint and y-step on;
- what trunk and embedder draw at random is drawn by each rank for its share: dropout, and the augmentation of
  a `BatchAugmentation` in the trunk;
- augmentation in the dataset is the same, except where a dataset augments a whole batch at once
  (`__getitems__`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.trainers import MetricLossOnly

from .._random import derive_seeds, seed_everything
from ..distributed.process_group import (
    all_gather_equal,
    all_gather_objects,
    all_reduce_sum,
    broadcast_object,
    broadcast_tensors,
    is_main,
    rank,
    world_size,
)
from ..distributed.sharing import from_main, shared_work
from ..posets import Posets

__all__ = [  # of the old `parallel`
    "broadcast_groups",
    "broadcast_weights",
    "check_splittable",
    "rank_positions",
    "shared_groups",
    "trainer_over_ranks",
]


def rank_positions(
    batch_size: int, views: int = 1, number: int | None = None, ranks: int | None = None
) -> np.ndarray:
    """Positions of a rank's share in the joint batch: the same share of each of its views."""
    number, ranks = rank() if number is None else number, world_size() if ranks is None else ranks
    if batch_size % (views * ranks):
        what = "the number of ranks" if views == 1 else f"the number of ranks times {views} views"
        wanted = f"a multiple of {what}, {views * ranks}"
        raise ValueError(f"batches are split evenly: batch_size must be {wanted}, got {batch_size}")
    return np.arange(batch_size).reshape(views, ranks, -1)[:, number].reshape(-1)


def check_splittable(
    sampler: Any, trainer_class: type[Any], mining_funcs: Iterable[str], objectives: Any
) -> None:
    """Check that a run can be done by several ranks, if there are several."""
    if world_size() == 1:
        return
    rank_positions(sampler.batch_size, getattr(sampler, "views", 1))
    if not issubclass(trainer_class, MetricLossOnly):
        raise TypeError(
            f"several ranks need MetricLossOnly or a subclass of it, got {trainer_class.__name__}"
        )
    if "subset_batch_miner" in mining_funcs:
        raise ValueError("a subset_batch_miner picks from the share of one rank: use a tuple_miner")
    if objectives:
        raise ValueError(f"objectives would see the share of one rank alone: {objectives} need one process")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(x)
        return all_gather_equal(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows] * world_size()


def gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, as many on each, for a loss that every rank computes of all of them alike.

    The gradient of this rank's rows is that of the loss, times the world size. So the mean over the ranks of
    the gradients of weights, `average_gradients`, is the gradient of the loss of the joint batch, both for
    the weights before this function (each rank knows its share) and for those after it (each knows all).
    torch's own differentiable gathering sums the gradients of the ranks' losses, by an exchange more.
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x) if x.requires_grad else all_gather_equal(x)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace gradients by their mean over the ranks; where a rank has none, it counts as 0."""
    if world_size() == 1:
        return
    groups: dict[Any, list[torch.nn.Parameter]] = {}
    for parameter in dict.fromkeys(parameters):
        if parameter.requires_grad:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            groups.setdefault((dtype, parameter.device), []).append(parameter)
    for (dtype, device), weights in groups.items():
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        counts = torch.tensor([w.grad is not None for w in weights], device=device).to(dtype)
        summed = all_reduce_sum(torch.cat([counts, *(grad.reshape(-1).to(dtype) for grad in grads)]))
        counts, *sums = summed.split([len(weights), *(w.numel() for w in weights)])
        for weight, count, total in zip(weights, counts.tolist(), sums, strict=True):
            if count:  # else no rank has one
                weight.grad = torch.empty_like(weight) if weight.grad is None else weight.grad
                weight.grad.copy_((total / world_size()).reshape(weight.shape))


class _OverRanks:
    """A mixin for PML trainer classes."""

    def calculate_loss(self, curr_batch: Any) -> None:
        """The loss of the joint batch, of which `curr_batch` is this rank's share."""
        images, indices = curr_batch
        super().calculate_loss((images, self._joint(torch.as_tensor(indices))))  # type: ignore[misc]

    def compute_embeddings(self, data: Any) -> torch.Tensor:
        """(B, D) of the joint batch."""
        seed = torch.initial_seed()  # of the step, the same on all ranks
        if rank():
            seed_everything(derive_seeds(seed % 2**63, rank())[0])
        embeddings = super().compute_embeddings(data)  # type: ignore[misc]
        seed_everything(seed)  # what comes after is drawn alike
        return self._joint(embeddings)

    def _joint(self, share: torch.Tensor) -> torch.Tensor:
        joint = gather_with_gradient(share)
        views = getattr(self.joint.sampler, "views", 1)  # type: ignore[attr-defined]
        if views == 1:
            return joint
        order = np.concatenate([rank_positions(len(joint), views, r) for r in range(world_size())])
        return joint[torch.from_numpy(np.argsort(order)).to(joint.device)]

    def backward(self) -> None:
        """Gradients of one process with the joint batch."""
        super().backward()  # type: ignore[misc]
        modules: Mapping[str, torch.nn.Module] = {**self.models, **self.loss_funcs}  # type: ignore[attr-defined]
        average_gradients(weight for module in modules.values() for weight in module.parameters())


def trainer_over_ranks(trainer_class: type[Any]) -> type[Any]:
    """A PML trainer class of the same name whose losses are those of the joint batch of all ranks."""
    if world_size() == 1:
        return trainer_class
    return type(trainer_class.__name__, (_OverRanks, trainer_class), {})


def broadcast_weights(modules: Iterable[torch.nn.Module]) -> None:
    """Give weights and buffers the values they have on rank 0."""
    broadcast_tensors(t for module in modules for t in (*module.parameters(), *module.buffers()))


def shared_groups(sampler: Any) -> Posets:
    """The posets of a sampler; the ranks share the work of the first grouping if none has done it yet."""
    grouped = all_gather_objects(getattr(sampler, "is_grouped", True))
    if world_size() == 1:
        return sampler.posets
    if any(grouped):  # these will not take part
        from_main(lambda: sampler.posets.num_classes)
    else:
        with shared_work():
            _ = sampler.posets
    broadcast_groups(sampler)
    return sampler.posets


def broadcast_groups(sampler: Any) -> None:
    """Give the sampler the posets of rank 0, as another machine may group the same features otherwise."""
    if world_size() > 1:
        state = broadcast_object(sampler.state_dict() if is_main() else None)
        if not is_main():
            sampler.load_state_dict(state)

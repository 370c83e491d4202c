"""PML's loss wrappers for PosetLoss: they accept losses by class name alone, so each needs a subclass."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.losses import CrossBatchMemory, SelfSupervisedLoss

from .poset import PosetLoss

__all__ = ["PosetCrossBatchMemory", "PosetSelfSupervisedLoss"]


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, PosetLoss):
        raise TypeError(
            f"loss must be a PosetLoss, got {type(loss).__name__}: PML's own wrapper takes PML's losses"
        )


class PosetCrossBatchMemory(CrossBatchMemory):
    """`CrossBatchMemory` for `PosetLoss`: the representatives are the medoids of the classes in the memory.

    The memory holds the embeddings (detached) and class ids of the last `memory_size` samples, the batch
    among them. Its medoids are recomputed at each step; no gradient reaches them. Unassigned samples are kept
    too, but never become representatives.

    Args:
        loss: a `PosetLoss`.
        embedding_size: D.
        memory_size: samples in the memory, at least a batch. Default 1024.
        miner: None (default: the loss finds the medoids), or a `NearestMedoidMiner` that is **not** bound to
            posets (the memory holds class ids, no dataset indices).
        **kwargs: of PML's `CrossBatchMemory`.

    Raises:
        TypeError: if `loss` is no `PosetLoss`.
        ValueError: for a batch larger than the memory, and for an indices_tuple: the positives lie in the
            memory, where a tuple mined on the batch would point at the wrong samples.

    Source: "Cross-Batch Memory for Embedding Learning" (CVPR 2020), PML's implementation.
    Differs from the paper: a sample's pair with its own copy in the memory stays (a medoid is its own
    positive).

    Example:
        >>> memory = PosetCrossBatchMemory(PosetLoss(), embedding_size=8, memory_size=64)
        >>> labels = torch.tensor([0, 0, 1, 1, -1])
        >>> generator = torch.Generator().manual_seed(0)
        >>> losses = [memory(torch.randn(5, 8, generator=generator), labels) for _ in range(3)]
        >>> memory.queue_idx
        15
    """

    def __init__(
        self, loss: PosetLoss, embedding_size: int, memory_size: int = 1024, miner: Any = None, **kwargs: Any
    ) -> None:
        _check_loss(loss)
        super().__init__(loss, embedding_size, memory_size=memory_size, miner=miner, **kwargs)

    @staticmethod
    def supported_losses() -> list[str]:
        """What PML's allow-list says; subclasses of `PosetLoss` pass too."""
        return ["PosetLoss"]

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Nothing: `__init__` has looked at the loss itself, not at its name."""

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any = None,
        enqueue_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of the batch against the memory, which takes the batch up first."""
        if indices_tuple is not None:
            raise ValueError(
                "indices_tuple must be None, got one: mined on the batch it points at the wrong samples of "
                "the memory; give the miner to PosetCrossBatchMemory(..., miner=...) instead"
            )
        if len(embeddings) > self.memory_size:
            raise ValueError(
                f"a batch must fit into the memory of {self.memory_size}, got {len(embeddings)} embeddings: "
                "raise memory_size"
            )
        return super().forward(embeddings, labels, None, enqueue_mask)

    def create_indices_tuple(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        E_mem: torch.Tensor,
        L_mem: torch.Tensor,
        input_indices_tuple: Any,
        do_remove_self_comparisons: bool,
    ) -> Any:
        """The miner's tuple, or None: then the loss finds the memory's medoids itself."""
        return self.miner(embeddings, labels, E_mem, L_mem) if self.miner else None


class PosetSelfSupervisedLoss(SelfSupervisedLoss):
    """`SelfSupervisedLoss` for `PosetLoss`: two views of an image are a class, its medoid one of them.

    Args:
        loss: a `PosetLoss` with anchors="all".
        symmetric: True (default): both views are anchors, the first view represents the class. False: the
            second view represents, the first are anchors.
        **kwargs: of PML's `SelfSupervisedLoss`.

    Raises:
        TypeError: if `loss` is no `PosetLoss`.
        ValueError: if its anchors are the unassigned alone: here there are none.

    Source: PML's implementation. Differs from the paper: the paper has no views; nothing of it is used but
    Eq. 4.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> first, second = torch.randn(2, 16, 8, generator=generator)
        >>> loss = PosetSelfSupervisedLoss(PosetLoss(sigma=0.3))
        >>> bool(loss(first, first + 0.01 * second) < loss(first, second))
        True
    """

    def __init__(self, loss: PosetLoss, symmetric: bool = True, **kwargs: Any) -> None:
        _check_loss(loss)
        if loss.anchors != "all":
            raise ValueError(
                f'loss must have anchors="all", got {loss.anchors!r}: here every sample is assigned'
            )
        super().__init__(loss, symmetric=symmetric, **kwargs)

    @staticmethod
    def supported_losses() -> list[str]:
        """What PML's allow-list says; subclasses of `PosetLoss` pass too."""
        return ["PosetLoss"]

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Nothing: `__init__` has looked at the loss itself, not at its name."""

"""PML's loss wrappers for PosetLoss: they accept losses by class name alone, so each needs a subclass."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.losses import CrossBatchMemory, SelfSupervisedLoss

from .._batch_checks import check_batch, check_width
from .._validation import as_count
from .poset import PosetLoss

__all__ = ["PosetCrossBatchMemory", "PosetSelfSupervisedLoss"]


class _ForPosetLoss:
    """Replaces PML's list of class names by a check of the loss itself."""

    @staticmethod
    def supported_losses() -> list[str]:
        """The name that PML's list would have; subclasses of `PosetLoss` pass too."""
        return ["PosetLoss"]

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Nothing: `__init__` has looked at the loss itself, not at its name."""

    def __init__(self, loss: PosetLoss, *args: Any, **kwargs: Any) -> None:
        if not isinstance(loss, PosetLoss):
            found = type(loss).__name__
            raise TypeError(f"loss must be a PosetLoss, got {found}: PML's own wrapper takes PML's losses")
        super().__init__(loss, *args, **kwargs)  # type: ignore[call-arg]


class PosetCrossBatchMemory(_ForPosetLoss, CrossBatchMemory):
    """`CrossBatchMemory` for `PosetLoss`: the representatives are the medoids of the classes in the memory.

    The memory holds the embeddings (detached) and class ids of the last `memory_size` samples, the batch
    among them. Its medoids are recomputed at each step; no gradient reaches them. Unassigned samples are kept
    too, but never become representatives. A batch that raises an error does not change the memory.

    Args:
        loss: a `PosetLoss`.
        embedding_size: D.
        memory_size: samples in the memory, at least a batch. Default 1024.
        miner: None (default: the loss finds the medoids), or a `NearestMedoidMiner` that is **not** bound to
            posets (the memory holds class ids, not dataset indices).
        **kwargs: of PML's `CrossBatchMemory`.

    Raises:
        TypeError, ValueError: for another loss, a bound miner, a batch that does not fit, an indices_tuple.

    Source: "Cross-Batch Memory for Embedding Learning" (CVPR 2020), PML's implementation.
    Differs from the paper: a sample's pair with its own copy stays (a medoid is its own positive).

    Example:
        >>> memory = PosetCrossBatchMemory(PosetLoss(), embedding_size=8, memory_size=64)
        >>> labels = torch.tensor([0, 0, 1, 1, -1])
        >>> generator = torch.Generator().manual_seed(0)
        >>> losses = [memory(torch.randn(5, 8, generator=generator), labels) for _ in range(3)]
        >>> memory.queue_idx
        15
    """

    queue_idx: int
    has_been_filled: bool

    def __init__(
        self, loss: PosetLoss, embedding_size: int, memory_size: int = 1024, miner: Any = None, **kwargs: Any
    ) -> None:
        if getattr(miner, "posets", None) is not None:
            advice = "the memory holds class ids, not dataset indices: give NearestMedoidMiner(), or None"
            raise ValueError(f"miner must not be bound to posets, {advice}")
        width, size = as_count(embedding_size, "embedding_size"), as_count(memory_size, "memory_size")
        super().__init__(loss, width, memory_size=size, miner=miner, **kwargs)

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any = None,
        enqueue_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of the batch against the memory, which takes the batch up first."""
        if indices_tuple is not None:
            advice = "the positives are in the memory, so give the miner to PosetCrossBatchMemory(miner=)"
            raise ValueError(f"indices_tuple must be None, got one: {advice}")
        if labels is None:
            raise ValueError("labels must be given, got None: pass class ids, or -1")
        check_batch(embeddings, labels)
        count, mask = len(embeddings), enqueue_mask
        check_width("embeddings", embeddings, self.embedding_size, "the memory, its embedding_size")
        if count > self.memory_size:
            room = f"the memory of {self.memory_size}"
            raise ValueError(f"a batch must fit into {room}, got {count} embeddings: raise memory_size")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != labels.shape):
            found = f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"enqueue_mask must be bool of shape ({count},), one a sample, got {found}")
        start: int = self.queue_idx
        filled: bool = self.has_been_filled
        rows = torch.arange(start, start + count) % self.memory_size
        kept = [memory[rows] for memory in (self.embedding_memory, self.label_memory)]
        try:
            return super().forward(embeddings, labels, None, enqueue_mask)
        except BaseException:  # of the loss or the miner: the batch goes out of the memory again
            self.queue_idx, self.has_been_filled = start, filled
            for memory, old in zip((self.embedding_memory, self.label_memory), kept, strict=True):
                memory[rows] = old.to(memory)
            raise

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


class PosetSelfSupervisedLoss(_ForPosetLoss, SelfSupervisedLoss):
    """`SelfSupervisedLoss` for `PosetLoss`: two views of an image are a class, its medoid one of them.

    Args:
        loss: a `PosetLoss` with anchors="all", as every sample is assigned here.
        symmetric: True (default): both views are anchors, the first view represents the class. False: the
            second view represents, the first are anchors.
        **kwargs: of PML's `SelfSupervisedLoss`.

    Raises:
        TypeError, ValueError: if `loss` is no such loss, or the two views are not of one shape.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> first, second = torch.randn(2, 16, 8, generator=generator)
        >>> loss = PosetSelfSupervisedLoss(PosetLoss(sigma=0.3))
        >>> bool(loss(first, first + 0.01 * second) < loss(first, second))
        True
    """

    def __init__(self, loss: PosetLoss, symmetric: bool = True, **kwargs: Any) -> None:
        super().__init__(loss, symmetric=symmetric, **kwargs)
        if loss.anchors != "all":
            found = f"got {loss.anchors!r}: here every sample is assigned"
            raise ValueError(f'loss must have anchors="all", {found}')

    def forward(self, embeddings: torch.Tensor, ref_emb: torch.Tensor) -> torch.Tensor:
        """The loss of two views, (B, D) each: row i of both is of one image."""
        check_batch(embeddings, None, ref_emb)
        if embeddings.shape != ref_emb.shape:
            shapes = f"{tuple(embeddings.shape)} and {tuple(ref_emb.shape)}"
            raise ValueError(f"two views of the same images must have one shape, got {shapes}")
        return super().forward(embeddings, ref_emb)

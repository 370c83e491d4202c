"""ConCURL ("Representation Learning for Clustering via Building Consensus", 2021), with `MemoryBankNCE`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from .._random import derive_seeds
from .._validation import as_count, as_real, check_option
from ._networks import at_least_float32, check_floats, check_images, no_images, pooled_features
from ._random_spaces import RandomDiagonals, RandomProjections
from .memory_bank import MemoryBankNCE

__all__ = ["ConcurlObjective", "ConsensusLoss", "SpaceKind", "sinkhorn"]

SpaceKind = Literal["projection", "diagonal"]

_PROTOTYPES = 0  # what the derived seed is for; 1 is for the random spaces


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float = 0.05, num_iterations: int = 3) -> torch.Tensor:
    """Soft assignments of samples to prototypes that give each prototype about the same share.

    q = exp(scores / epsilon), its columns and then its rows divided by their sums, `num_iterations` times.

    Args:
        scores: (B, K) floating point, cosines of samples and prototypes.
        epsilon: above 0; the smaller, the harder the assignments. Default 0.05, the published value.
        num_iterations: at least 1. Default 3, the published value.

    Returns:
        (B, K) in [0, 1], rows sum to 1, columns to about B / K; at least 32 bits, no gradient.

    Raises:
        TypeError, ValueError: for scores of another shape, options out of range.

    Example:
        >>> scores = torch.tensor([[1.0, 0.9], [0.9, 0.7]])
        >>> scores.argmax(dim=1).tolist(), sinkhorn(scores).argmax(dim=1).tolist()  # one each
        ([0, 0], [1, 0])
    """
    check_floats(scores, "scores", "B", "K")
    if not scores.shape[1]:
        raise ValueError(f"scores must have a column a prototype, got shape {tuple(scores.shape)}")
    log_q = at_least_float32(scores) / as_real(epsilon, "epsilon", low=0, open_low=True)  # (B, K)
    for _ in range(as_count(num_iterations, "num_iterations")):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


class ConsensusLoss(nn.Module):
    """Two views of the samples predict each other's clusters, as they are and in M random spaces.

        q      = sinkhorn(s),  s = normalize(z) C^T       for each view, without gradient
        L_pop  = 1/2 [ H(q2, softmax(s1 / t)) + H(q1, softmax(s2 / t)) ]
        L_cons = mean over m of  1/2 [ H(q2, p1_m) + H(q1, p2_m) ]
        p_m    = softmax( normalize(z A_m^T) normalize(C A_m^T)^T / t )
        L      = alpha L_pop + gamma L_cons

    with z the projections of a view, C the K prototypes (unit rows, detached in p_m), A_m the random
    transforms, H(q, p) = -mean_i sum_k q_ik log p_ik. Only L_pop teaches the prototypes: with alpha = 0, as
    in the published commands and by default, they stay at their random start.

    Args:
        num_prototypes: K, at least 2 (10, 15 and 20 in the paper, for as many classes).
        dim: d, the width of z. Default 256, the published value.
        num_transforms: M. Default 64 (the paper: 1 to 64).
        transform: "projection" (default): `RandomProjections`; "diagonal": `RandomDiagonals`.
        transform_dim: d' of the projections (88 to 152 in the paper). Default None: d / 2.
        temperature: t, above 0. Default 0.1, the published value.
        epsilon, num_iterations: of `sinkhorn`. Default 0.05 and 3, the published values.
        alpha: weight of L_pop, from 0. Default 0, the published value.
        gamma: weight of L_cons, from 0. Default 1, the published value.
        train_prototypes: True makes them parameters, of unit length in training mode; it needs alpha above 0.
            Default False.
        redraw_every: draw new transforms before every n-th call in training mode. Default None: they stay.
        seed: of prototypes and transforms, from 0. Default 0.

    Attributes:
        values: {"population": L_pop, "consensus": L_cons} of the last call, detached, weight 0 left out.

    Shapes: first, second (B, d) floating point, not normalized -> a scalar of at least 32 bits; without
    samples 0, with a gradient path. Half precision and autocast are computed in float32.

    Raises:
        TypeError, ValueError: for invalid options, or views that do not match or are one tensor.

    Differs from the paper: the published code has an option to redraw its transforms that has no effect; here
    redraw_every does.

    Example:
        >>> loss = ConsensusLoss(num_prototypes=4, dim=16, num_transforms=3)
        >>> first, second = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
        >>> bool(loss(first, first + 0.01 * second) < loss(first, second))
        True
    """

    prototypes: torch.Tensor

    def __init__(
        self,
        num_prototypes: int,
        dim: int = 256,
        num_transforms: int = 64,
        transform: SpaceKind = "projection",
        transform_dim: int | None = None,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        num_iterations: int = 3,
        alpha: float = 0.0,
        gamma: float = 1.0,
        train_prototypes: bool = False,
        redraw_every: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_prototypes = as_count(num_prototypes, "num_prototypes", least=2)
        self.dim = as_count(dim, "dim")
        self.transform = check_option(transform, "transform", SpaceKind)
        self.temperature = as_real(temperature, "temperature", low=0, open_low=True)
        self.epsilon = as_real(epsilon, "epsilon", low=0, open_low=True)
        self.alpha, self.gamma = as_real(alpha, "alpha", low=0), as_real(gamma, "gamma", low=0)
        if self.alpha == self.gamma == 0:
            raise ValueError("alpha and gamma are both 0: nothing would be learned")
        if train_prototypes and self.alpha == 0:
            raise ValueError("only L_pop teaches the prototypes: train_prototypes needs alpha above 0")
        self.num_iterations = as_count(num_iterations, "num_iterations")
        self.train_prototypes = bool(train_prototypes)
        self.redraw_every = None if redraw_every is None else as_count(redraw_every, "redraw_every")
        generator = torch.Generator().manual_seed(derive_seeds(as_count(seed, "seed", 0), _PROTOTYPES)[0])
        prototypes = F.normalize(torch.randn(self.num_prototypes, self.dim, generator=generator))  # (K, d)
        if self.train_prototypes:
            self.prototypes = nn.Parameter(prototypes)
        else:
            self.register_buffer("prototypes", prototypes)
        self.spaces: RandomProjections = RandomDiagonals(self.dim, num_transforms, seed)
        if transform == "projection":
            reduced = max(1, self.dim // 2) if transform_dim is None else transform_dim
            self.spaces = RandomProjections(self.dim, reduced, num_transforms, seed)
        elif transform_dim is not None:
            raise ValueError(f'transform_dim goes with transform="projection", got {transform_dim}')
        self.num_calls = 0
        self.values: dict[str, torch.Tensor] = {}

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The weighted sum for the projections of two views of the same samples."""
        self._check_views(first, second)
        if self.training:
            self._begin_step()
        with torch.autocast(first.device.type, enabled=False):
            views = at_least_float32(first), at_least_float32(second)  # (B, d)
            if not len(first):
                return views[0].sum() + views[1].sum()
            prototypes = F.normalize(self.prototypes.to(views[0]))  # (K, d)
            scores = [F.normalize(z) @ prototypes.T for z in views]  # (B, K)
            targets = [sinkhorn(s, self.epsilon, self.num_iterations) for s in scores]
            terms = {}
            if self.alpha:
                terms["population"] = self._swapped(scores, targets)
            if self.gamma:
                fixed = F.normalize(self.spaces(prototypes.detach()), dim=2)  # (M, K, d')
                each = [F.normalize(self.spaces(z), dim=2) @ fixed.mT for z in views]  # (M, B, K)
                terms["consensus"] = self._swapped(each, targets)
        self.values = {name: value.detach() for name, value in terms.items()}
        weights = {"population": self.alpha, "consensus": self.gamma}
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    def _swapped(self, scores: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        """1/2 [H(q2, p1) + H(q1, p2)] of (..., B, K) scores, the mean over the leading dimensions."""
        terms = [
            -(target * F.log_softmax(score / self.temperature, dim=-1)).sum(dim=-1).mean()
            for score, target in zip(scores, reversed(targets), strict=True)
        ]
        return (terms[0] + terms[1]) / 2

    @torch.no_grad()
    def _begin_step(self) -> None:
        if self.train_prototypes:
            # Not in place: a loss that was called before in this step still has to go backward.
            self.prototypes.data = F.normalize(self.prototypes.data)
        if self.redraw_every is not None and self.num_calls and self.num_calls % self.redraw_every == 0:
            self.spaces.redraw()
        self.num_calls += 1

    def _check_views(self, first: torch.Tensor, second: torch.Tensor) -> None:
        for name, view in (("first", first), ("second", second)):
            check_floats(view, f"the {name} view", "B", str(self.dim))
        if first.shape[1] != self.dim or second.shape != first.shape:
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise ValueError(f"two views must have one shape (B, {self.dim}), got {shapes}")
        if second is first:
            raise ValueError("two views are needed, got one tensor twice: augment the images twice")

    def get_extra_state(self) -> dict[str, int]:
        return {"num_calls": self.num_calls}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        self.num_calls = int(state["num_calls"])

    def extra_repr(self) -> str:
        names = ("num_prototypes", "temperature", "epsilon", "alpha", "gamma", "train_prototypes")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class ConcurlObjective(nn.Module):
    """Two views of the batch: each image distinguished from all others, and in the same cluster in both.

        L = beta L_ex + alpha L_pop + gamma L_cons

    with L_ex of `MemoryBankNCE` on the first view, and alpha L_pop + gamma L_cons of `ConsensusLoss` on both.
    The clusters are those of a projection of the trunk's pooled features: Linear, BatchNorm, ReLU, Linear.

    Called as objective(images, indices, models) with images (B, C, H, W), dataset indices (B,) and models
    {"trunk": ..., "embedder": ...}. Returns a scalar of at least 32 bits; 0 without images.

    Args:
        feature_dim: width of the trunk's output, pooled if it is maps.
        consensus: a `ConsensusLoss`; its dim is the width of the projection.
        bank: a `MemoryBankNCE`; its dim is the width of the embedding. None only with beta 0.
        nce_head: from the pooled features to the embedding of L_ex, such as Linear(feature_dim, 128). Default
            None: the embedder.
        hidden_dim: of the projection. Default 2048, the published value.
        beta: weight of L_ex, from 0. Default 1, the published value.
        views: 1 (default): the trunk sees the batch twice and must augment it each time, as
            `pml_posets.BatchAugmentation` does in training mode. 2: the batch holds two views, one after
            another, as samplers with views=2 draw it.

    Attributes:
        values: {"exemplar": L_ex, "population": ..., "consensus": ...} of the last call, detached.

    Raises:
        TypeError, ValueError: for invalid options, or a batch that does not hold two views.

    Differs from the paper: both views pass through the network in one batch, which batch normalization sees.

    Example:
        >>> from pml_posets import BatchAugmentation
        >>> trunk = nn.Sequential(BatchAugmentation(), nn.Flatten(), nn.Linear(192, 16))
        >>> models = {"trunk": trunk, "embedder": nn.Linear(16, 128)}
        >>> consensus = ConsensusLoss(num_prototypes=4, num_transforms=3)
        >>> objective = ConcurlObjective(16, consensus, MemoryBankNCE(50, num_negatives=20), hidden_dim=32)
        >>> objective(torch.rand(8, 3, 8, 8), torch.arange(8), models).backward()
        >>> sorted(objective.values)
        ['consensus', 'exemplar']
    """

    def __init__(
        self,
        feature_dim: int,
        consensus: ConsensusLoss,
        bank: MemoryBankNCE | None,
        nce_head: nn.Module | None = None,
        hidden_dim: int = 2048,
        beta: float = 1.0,
        views: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(consensus, ConsensusLoss):
            raise TypeError(f"consensus must be a ConsensusLoss, got {type(consensus).__name__}")
        if not isinstance(bank, MemoryBankNCE | None):
            raise TypeError(f"bank must be a MemoryBankNCE, got {type(bank).__name__}")
        beta = as_real(beta, "beta", low=0)
        if beta and bank is None:
            raise ValueError("L_ex needs a bank: give MemoryBankNCE(num_samples), or beta=0")
        if views not in (1, 2):
            choice = "1 (the trunk augments) or 2 (the batch holds both views)"
            raise ValueError(f"views must be {choice}, got {views}")
        width, hidden = as_count(feature_dim, "feature_dim"), as_count(hidden_dim, "hidden_dim")
        self.consensus, self.bank, self.nce_head = consensus, bank, nce_head
        self.projection = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, consensus.dim)
        )
        self.beta, self.views = beta, views
        self.values: dict[str, torch.Tensor] = {}
        self._seen_two_views = False

    def forward(self, images: torch.Tensor, indices: torch.Tensor, models: Mapping[str, Any]) -> torch.Tensor:
        """The loss of the batch."""
        check_images(images, indices, models)
        if not len(images):
            return no_images(self, images)
        if self.views == 1:
            images, indices = torch.cat([images, images]), torch.cat([indices, indices])  # (2B, C, H, W)
        count = len(images) // 2
        if len(images) % 2 or not torch.equal(indices[:count], indices[count:]):
            raise ValueError(
                f"with views=2 a batch must be two views of the same samples, one after another, got "
                f"{len(indices)} images whose halves differ: give the sampler views=2, or views=1 here"
            )
        features = models["trunk"](images)
        if self.training and self.views == 1 and not self._seen_two_views:
            if torch.equal(features[:count], features[count:]):
                raise ValueError(
                    "there is only one view: the trunk gave the same features for both passes. Let it begin "
                    "with BatchAugmentation, in training mode, or give batches of two views, and views=2"
                )
            self._seen_two_views = True
        pooled = pooled_features(features)  # (2B, D)
        first, second = self.projection(pooled).split(count)  # (B, d)
        loss = self.consensus(first, second)
        values = dict(self.consensus.values)
        if self.beta and self.bank is not None:
            embedder = models.get("embedder") if self.nce_head is None else self.nce_head
            if not isinstance(embedder, nn.Module):
                raise TypeError('models must have a module "embedder" for L_ex, or give a nce_head')
            embeddings = embedder((features if self.nce_head is None else pooled)[:count])  # (B, D')
            exemplar = self.bank(embeddings, indices[:count])
            values["exemplar"] = exemplar.detach()
            loss = loss + self.beta * exemplar
        self.values = values
        return loss

    def extra_repr(self) -> str:
        return f"beta={self.beta}, views={self.views}"

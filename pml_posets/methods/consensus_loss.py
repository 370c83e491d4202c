"""Consensus clustering (ConCURL): two views of an image are in one cluster, in many random spaces alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .._random import derive_seeds
from .._validation import as_count, check_option
from ._networks import at_least_float32

__all__ = ["ConsensusLoss", "RandomDiagonals", "RandomProjections", "SpaceKind", "sinkhorn"]

SpaceKind = Literal["projection", "diagonal"]

_PROTOTYPES, _SPACES = range(2)  # what a derived seed is for


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float = 0.05, num_iterations: int = 3) -> torch.Tensor:
    """Soft assignments of samples to prototypes that give each prototype about the same share.

    q = exp(scores / epsilon), its columns and then its rows divided by their sums, `num_iterations` times. It
    is computed in logarithms, so that nothing overflows.

    Args:
        scores: (B, K) floating point, cosines of samples and prototypes; half precision and autocast are
            computed in float32.
        epsilon: above 0, in units of the scores; the smaller, the harder the assignments. Default 0.05, the
            published value.
        num_iterations: at least 1. Default 3, the published value.

    Returns:
        (B, K) in [0, 1], rows sum to 1, columns to about B / K; of at least 32 bits, without gradient. With
        fewer samples than prototypes no sample belongs to a single prototype.

    Raises:
        TypeError, ValueError: for scores of another shape, options out of range.

    Source: "Representation Learning for Clustering via Building Consensus" (2021).
    Differs from the paper: in nothing known.

    Example:
        >>> scores = torch.tensor([[1.0, 0.9], [0.9, 0.7]])
        >>> scores.argmax(dim=1).tolist(), sinkhorn(scores).argmax(dim=1).tolist()  # one each
        ([0, 0], [1, 0])
    """
    if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
        found = scores.dtype if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise TypeError(f"scores must be a floating point tensor, got {found}")
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise ValueError(f"scores must have shape (B, K) with K from 1, got {tuple(scores.shape)}")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and above 0, got {epsilon}")
    log_q = at_least_float32(scores) / epsilon  # (B, K)
    for _ in range(as_count(num_iterations, "num_iterations")):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


class _RandomSpaces(nn.Module):
    """Random matrices that are a function of (seed, draw); the state is these two numbers."""

    matrices: torch.Tensor

    def __init__(self, shape: tuple[int, ...], scale: float, seed: int) -> None:
        super().__init__()
        self.shape, self.scale = shape, scale
        self.seed, self.draw = as_count(seed, "seed", least=0), 0
        self.register_buffer("matrices", self._drawn(), persistent=False)

    def redraw(self) -> None:
        """Draw new ones; they replace those before."""
        self.draw += 1
        self.matrices = self._drawn().to(self.matrices)

    def _drawn(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seeds(self.seed, _SPACES, self.draw)[0])
        return torch.randn(self.shape, generator=generator) * self.scale

    def _check(self, x: torch.Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.shape[-1]:
            raise ValueError(f"x must have shape (N, {self.shape[-1]}), got {tuple(x.shape)}")

    def get_extra_state(self) -> dict[str, int]:
        """What the matrices are drawn from."""
        return {"seed": self.seed, "draw": self.draw}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Draw the matrices of that state again."""
        self.seed, self.draw = int(state["seed"]), int(state["draw"])
        self.matrices = self._drawn().to(self.matrices)

    def extra_repr(self) -> str:
        """What the module's repr says beside its parts."""
        return f"shape={self.shape}, seed={self.seed}, draw={self.draw}"


class RandomProjections(_RandomSpaces):
    """M random projections x A_m^T to d' dimensions, the entries of A_m drawn from N(0, 1/d').

    Args:
        dim: d.
        transform_dim: d'.
        num_transforms: M.
        seed: from 0. Default 0.

    Attributes:
        matrices: (M, d', d) float32. No gradient reaches them, and no state dict holds them: they are drawn
            again from its (seed, draw).
        draw: how often they were drawn anew.

    Shapes: (N, d) -> (M, N, d').

    Raises:
        TypeError, ValueError: for sizes that are no counts, x of another width.

    Source: "Representation Learning for Clustering via Building Consensus" (2021).
    Differs from the paper: in nothing known.

    Example:
        >>> spaces = RandomProjections(dim=8, transform_dim=3, num_transforms=5)
        >>> spaces(torch.ones(4, 8)).shape
        torch.Size([5, 4, 3])
    """

    def __init__(self, dim: int, transform_dim: int, num_transforms: int, seed: int = 0) -> None:
        counts = {"dim": dim, "transform_dim": transform_dim, "num_transforms": num_transforms}
        d, reduced, num = (as_count(value, name) for name, value in counts.items())
        super().__init__((num, reduced, d), reduced**-0.5, seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, d) to (M, N, d')."""
        self._check(x)
        return x @ self.matrices.mT.to(x)


class RandomDiagonals(_RandomSpaces):
    """M random diagonal matrices: each dimension is scaled by a number drawn from N(0, 1).

    Args:
        dim: d.
        num_transforms: M.
        seed: from 0. Default 0.

    Attributes:
        matrices: (M, d) float32, the diagonals; see `RandomProjections`.
        draw: how often they were drawn anew.

    Shapes: (N, d) -> (M, N, d).

    Raises:
        TypeError, ValueError: for sizes that are no counts, x of another width.

    Source: "Representation Learning for Clustering via Building Consensus" (2021).
    Differs from the paper: the distribution of the entries is not known to us.

    Example:
        >>> RandomDiagonals(dim=8, num_transforms=5)(torch.ones(4, 8)).shape
        torch.Size([5, 4, 8])
    """

    def __init__(self, dim: int, num_transforms: int, seed: int = 0) -> None:
        super().__init__((as_count(num_transforms, "num_transforms"), as_count(dim, "dim")), 1.0, seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, d) to (M, N, d)."""
        self._check(x)
        return x * self.matrices[:, None].to(x)


class ConsensusLoss(nn.Module):
    """Two views of the samples predict each other's clusters, as they are and in M random spaces.

        q      = sinkhorn(s),  s = normalise(z) C^T       for each view, without gradient
        L_pop  = 1/2 [ H(q2, softmax(s1 / t)) + H(q1, softmax(s2 / t)) ]
        L_cons = mean over m of  1/2 [ H(q2, p1_m) + H(q1, p2_m) ]
        p_m    = softmax( normalise(z A_m^T) normalise(C A_m^T)^T / t )
        L      = alpha L_pop + gamma L_cons

    with z the projections of a view, C the K prototypes (unit rows, detached in p_m), A_m the random
    transforms, H(q, p) = -mean_i sum_k q_ik log p_ik. The targets q are those of the space as it is.

    **The prototypes.** Only L_pop can teach them. The published commands have alpha = 0, which leaves them at
    their random start, and so does the default here: alpha 0 and train_prototypes False, the recipe that
    the published figures go with. K random directions in 256 dimensions are nearly orthogonal, and Sinkhorn
    hands each of them its share of the samples: they are fixed names of clusters. With train_prototypes=True
    they are parameters, brought back to unit length at each call in training mode; give alpha above 0 then.

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
        train_prototypes: see above. Default False.
        redraw_every: draw the transforms anew before each so many-th call in training mode. Default None:
            they stay.
        seed: of prototypes and transforms, from 0. Default 0.

    Attributes:
        values: {"population": L_pop, "consensus": L_cons} of the last call, detached and unweighted, those of
            weight 0 left out.

    Shapes: first, second (B, d) floating point, not normalised -> a scalar of at least 32 bits; without
    samples 0, with a gradient path. Half precision and autocast are computed in float32.

    Raises:
        TypeError, ValueError: for options out of range, fewer than two prototypes, trained prototypes without
            alpha, views that do not match or are one and the same tensor.

    Source: "Representation Learning for Clustering via Building Consensus" (2021).
    Differs from the paper: the published code does not redraw its transforms though it has an option to;
    here redraw_every does.

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
        for name, value in (("temperature", temperature), ("epsilon", epsilon)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value}")
        for name, value in (("alpha", alpha), ("gamma", gamma)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if alpha == gamma == 0:
            raise ValueError("alpha and gamma are both 0: nothing would be learned")
        if train_prototypes and alpha == 0:
            raise ValueError("only L_pop teaches the prototypes: train_prototypes needs alpha above 0")
        self.temperature, self.epsilon = float(temperature), float(epsilon)
        self.num_iterations = as_count(num_iterations, "num_iterations")
        self.alpha, self.gamma = float(alpha), float(gamma)
        self.train_prototypes = bool(train_prototypes)
        self.redraw_every = None if redraw_every is None else as_count(redraw_every, "redraw_every")
        generator = torch.Generator().manual_seed(derive_seeds(as_count(seed, "seed", 0), _PROTOTYPES)[0])
        prototypes = F.normalize(torch.randn(self.num_prototypes, self.dim, generator=generator))  # (K, d)
        if self.train_prototypes:
            self.prototypes = nn.Parameter(prototypes)
        else:
            self.register_buffer("prototypes", prototypes)
        self.spaces: RandomProjections | RandomDiagonals
        if transform == "projection":
            reduced = max(1, self.dim // 2) if transform_dim is None else transform_dim
            self.spaces = RandomProjections(self.dim, reduced, num_transforms, seed)
        elif transform_dim is not None:
            raise ValueError(f'transform_dim goes with transform="projection", got {transform_dim}')
        else:
            self.spaces = RandomDiagonals(self.dim, num_transforms, seed)
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
        """1/2 [H(q2, p1) + H(q1, p2)] of (..., B, K) scores, the mean over what stands before."""
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
            if not isinstance(view, torch.Tensor) or not view.is_floating_point():
                found = view.dtype if isinstance(view, torch.Tensor) else type(view).__name__
                raise TypeError(
                    f"the {name} view must be a floating point tensor (B, {self.dim}), got {found}"
                )
        if first.ndim != 2 or first.shape[1] != self.dim or second.shape != first.shape:
            raise ValueError(
                f"two views of the same samples must have one shape (B, {self.dim}), got "
                f"{tuple(first.shape)} and {tuple(second.shape)}"
            )
        if second is first:
            raise ValueError("two views are needed, got one tensor twice: augment the images twice")

    def get_extra_state(self) -> dict[str, int]:
        """How often it was called in training mode."""
        return {"num_calls": self.num_calls}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Take it back."""
        self.num_calls = int(state["num_calls"])

    def extra_repr(self) -> str:
        """What the module's repr says beside its parts."""
        names = ("num_prototypes", "temperature", "epsilon", "alpha", "gamma", "train_prototypes")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

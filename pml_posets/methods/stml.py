"""STML ("Self-Taught Metric Learning without Labels", CVPR 2022): soft labels from a moving average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._networks import device_of
from .._validation import as_count, as_real, check_shape
from ..data.augmentation import BatchAugmentation
from ..training.averaging import moving_average
from ._networks import at_least_float32, check_floats, check_images, pooled_features

__all__ = [
    "STMLObjective",
    "contextual_similarity",
    "relation_divergence",
    "relaxed_contrastive_loss",
    "teacher_similarity",
]

_EPS = 1e-6  # smallest mean distance that is divided by


@torch.no_grad()
def contextual_similarity(teacher: torch.Tensor, k: int = 10) -> torch.Tensor:
    """How much the mutual neighbors of two samples have in common.

        R(i)   = { j : j among the k nearest of i, and i among the k nearest of j }, i its own nearest
        W~_ij  = |R(i) & R(j)| / |R(i)| if j is in R(i), else 0
        W^_ij  = mean of W~_lj over the k/2 nearest l of i
        W_C    = (W^ + W^T) / 2

    Args:
        teacher: (N, D) floating point, of any length; their directions are compared.
        k: neighbors, the sample itself included, in 2..N; k/2 is rounded down. Default 10.

    Returns:
        (N, N) in [0, 1], symmetric, at least 32 bits, no gradient. Of equal distances the lower index counts.

    Raises:
        TypeError, ValueError: for embeddings of another shape, k out of range.

    Differs from the paper: in nothing known; the division by the size of R(i) is from memory.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> contextual_similarity(x, k=2).tolist()
        [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    check_floats(teacher, "teacher", "N", "D")
    return _contextual(_distances(F.normalize(at_least_float32(teacher))), k)


@torch.no_grad()
def teacher_similarity(teacher: torch.Tensor, k: int = 10, sigma: float = 3.0) -> torch.Tensor:
    """The soft labels of the pairs of a batch: how alike they are to the teacher.

        W = 1/2 [ exp(-d_T^2 / sigma) + W_C ]

    with d_T the distance of the normalized embeddings and W_C of `contextual_similarity`.

    Args:
        teacher: (N, D) floating point, of any length.
        k: as in `contextual_similarity`. Default 10.
        sigma: above 0, in units of the squared distance. Default 3, the published value.

    Returns:
        (N, N) in [0, 1], symmetric, at least 32 bits, no gradient.

    Example:
        >>> round(teacher_similarity(torch.eye(2), k=2)[0, 1].item(), 4)  # d^2 = 2, W_C = 1
        0.7567
    """
    check_floats(teacher, "teacher", "N", "D")
    sigma = as_real(sigma, "sigma", low=0, open_low=True)
    distances = _distances(F.normalize(at_least_float32(teacher)))  # (N, N)
    return (torch.exp(-distances.square() / sigma) + _contextual(distances, k)) / 2


def relaxed_contrastive_loss(
    embeddings: torch.Tensor, similarity: torch.Tensor, delta: float = 1.0
) -> torch.Tensor:
    """Pull pairs together by their similarity, push them apart by what is missing of it.

        L_RC = mean over i != j of  W_ij d_ij^2 + (1 - W_ij) max(0, delta - d_ij)^2

    with d_ij = |z_i - z_j| / mean_l |z_i - z_l|: distances relative to the row's mean (its own 0 counted), so
    that the embeddings need no fixed length and cannot all shrink.

    Args:
        embeddings: z, (N, D) floating point; half precision and autocast are computed in float32.
        similarity: W, (N, N) in [0, 1], of `teacher_similarity` or other soft labels; the diagonal is not
            used. No gradient flows to it.
        delta: the margin, above 0, in mean distances. Default 1, the published value.

    Returns:
        A scalar of at least 32 bits; with fewer than two rows 0, with a gradient path.

    Raises:
        TypeError, ValueError: for shapes that do not match, a similarity out of range, delta out of range.

    Source: "Embedding Transfer with Label Relaxation for Improved Metric Learning" (CVPR 2021).

    Example:
        >>> z = torch.tensor([[0.0], [1.0]])  # each row's mean distance is 1/2, the relative distance 2
        >>> relaxed_contrastive_loss(z, torch.full((2, 2), 0.25)).item()
        1.0
    """
    check_floats(embeddings, "embeddings", "N", "D")
    delta = as_real(delta, "delta", low=0, open_low=True)
    count = len(embeddings)
    check_shape(similarity, "similarity", (count, count), " to match the embeddings")
    z = at_least_float32(embeddings)
    if count < 2:
        return z[:0].sum()
    weight = _off_diagonal(similarity.detach().to(z))  # (N, N - 1)
    if not torch.compiler.is_compiling():
        low, high = (float(value) for value in torch.aminmax(weight))
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"similarity must be in [0, 1], got {low:g} to {high:g}")
    distance = _off_diagonal(_relative(z))  # (N, N - 1)
    return (weight * distance.square() + (1 - weight) * F.relu(delta - distance).square()).mean()


def relation_divergence(
    embeddings: torch.Tensor, target: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """How far the relations between embeddings are from those between others of the same samples.

        L_KL = mean_i KL( softmax_j(-d'_ij / t) || softmax_j(-d_ij / t) ),  j != i

    with d and d' the relative distances of `embeddings` and `target` (see `relaxed_contrastive_loss`).

    Args:
        embeddings: (N, D) floating point; half precision and autocast are computed in float32.
        target: (N, D') floating point. No gradient flows to it.
        temperature: t, above 0, in mean distances. Default 1.

    Returns:
        A scalar from 0, of at least 32 bits; with fewer than two rows 0, with a gradient path.

    Raises:
        TypeError, ValueError: for shapes that do not match, a temperature out of range.

    Differs from the paper: direction, temperature and the stopped gradient are not known to us.

    Example:
        >>> z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        >>> abs(relation_divergence(z, 7 * z).item()) < 1e-6  # only relations count
        True
    """
    check_floats(embeddings, "embeddings", "N", "D")
    check_floats(target, "target", "N", "D")
    temperature = as_real(temperature, "temperature", low=0, open_low=True)
    if len(target) != len(embeddings):
        found = tuple(target.shape)
        raise ValueError(f"target must have {len(embeddings)} rows like the embeddings, got {found}")
    if len(embeddings) < 2:
        return at_least_float32(embeddings)[:0].sum()
    far = [_off_diagonal(_relative(at_least_float32(x))) for x in (embeddings, target.detach())]  # (N, N - 1)
    ours, theirs = (F.log_softmax(-d / temperature, dim=1) for d in far)
    return F.kl_div(ours, theirs.to(ours), reduction="batchmean", log_target=True)


class STMLObjective(nn.Module):
    """Self-taught metric learning: the student learns the similarities that its own moving average sees.

        L = 1/2 [ L_RC(f, W) + L_RC(g, W) ] + w L_KL(f, g)

    The student has two heads on the trunk: the embedder, f, which is used in the end, and a wide linear one,
    g. The teacher is a moving average of the trunk and the wide head; W is `teacher_similarity` of its
    embeddings. Batches must hold neighbors and several views, such as those of `NeighborBatches`.

    Called as objective(images, indices, models) with images (B, C, H, W) and models {"trunk": ...,
    "embedder": ...}; in training mode it moves the teacher towards the student first. Returns a scalar of at
    least 32 bits. The teacher is part of the state dict.

    Args:
        models: {"trunk": ...}, copied for the teacher, on its device already.
        feature_dim: D, the width of the trunk's output, pooled if it is maps.
        wide_dim: of the wide head. Default 1024.
        k, sigma: of `teacher_similarity`. Default 10, at most B, and 3.
        delta: of `relaxed_contrastive_loss`. Default 1.
        divergence_weight: w, from 0. Default 1.
        temperature: of `relation_divergence`. Default 1.
        decay: of the moving average, in [0, 1). Default 0.999, the published value.
        same_view: True (default): the teacher sees the student's augmented images, if the trunk draws from
            torch's generator of the CPU to augment and not before. False: it sees them as they are.
        augmenting: classes of the trunk's submodules that augment. Default: `BatchAugmentation`.

    Raises:
        TypeError, ValueError: for options out of range, another trunk than the teacher's, too few images.

    Differs from the paper: the decay rises to its final value over the first updates (see `moving_average`).
    Which head the teacher has, the mean of the two L_RC and w are not known to us for certain.

    Example:
        >>> trunk, embedder = nn.Sequential(nn.Flatten(), nn.Linear(48, 16)), nn.Linear(16, 4)
        >>> models = {"trunk": trunk, "embedder": embedder}
        >>> objective = STMLObjective(models, feature_dim=16, wide_dim=32, k=4)
        >>> loss = objective(torch.rand(8, 3, 4, 4), torch.arange(8), models)
        >>> loss.backward()
        >>> loss.ndim
        0
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        feature_dim: int,
        wide_dim: int = 1024,
        k: int = 10,
        sigma: float = 3.0,
        delta: float = 1.0,
        divergence_weight: float = 1.0,
        temperature: float = 1.0,
        decay: float = 0.999,
        same_view: bool = True,
        augmenting: tuple[type[nn.Module], ...] = (BatchAugmentation,),
    ) -> None:
        super().__init__()
        if not isinstance(models, Mapping) or not isinstance(models.get("trunk"), nn.Module):
            raise TypeError('models must be a mapping with a module "trunk", the start of the teacher')
        self.k = as_count(k, "k", least=2)
        self.sigma = as_real(sigma, "sigma", low=0, open_low=True)
        self.delta = as_real(delta, "delta", low=0, open_low=True)
        self.temperature = as_real(temperature, "temperature", low=0, open_low=True)
        self.divergence_weight = as_real(divergence_weight, "divergence_weight", low=0)
        self.same_view, self.augmenting = same_view, augmenting
        self.wide = nn.Linear(as_count(feature_dim, "feature_dim"), as_count(wide_dim, "wide_dim"))
        self.wide.to(device_of(models["trunk"]))
        self.decay = as_real(decay, "decay", low=0, high=1, open_high=True)
        student = {"trunk": models["trunk"], "wide": self.wide}
        self._averages = {name: moving_average(model, decay) for name, model in student.items()}
        self.teacher = nn.ModuleDict({name: mean.module for name, mean in self._averages.items()})

    def train(self, mode: bool = True) -> STMLObjective:
        """As of any module, but the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: torch.Tensor, indices: torch.Tensor, models: Mapping[str, Any]) -> torch.Tensor:
        """The loss of the batch; the indices are not looked at."""
        check_images(images, indices, models)
        trunk, embedder = models["trunk"], models.get("embedder")
        if not isinstance(embedder, nn.Module):
            raise TypeError('models must have a module "embedder", the head that is used in the end')
        if len(images) < self.k:
            raise ValueError(f"a batch must hold at least k={self.k} images, got {len(images)}: lower k")
        if self.training:
            self._follow(trunk)
        state = torch.get_rng_state()
        features = trunk(images)
        narrow, wide = embedder(features), self.wide(pooled_features(features))  # (B, D), (B, wide_dim)
        similarity = teacher_similarity(self._taught(images, trunk, state), self.k, self.sigma)
        first, second = (relaxed_contrastive_loss(z, similarity, self.delta) for z in (narrow, wide))
        divergence = relation_divergence(narrow, wide, self.temperature)
        return (first + second) / 2 + self.divergence_weight * divergence

    def _follow(self, trunk: nn.Module) -> None:
        """Move the teacher towards the student."""
        try:
            self._averages["trunk"].update_parameters(trunk)
            self._averages["wide"].update_parameters(self.wide)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the trunk is not the one that the teacher was copied from: {error}") from error

    @torch.no_grad()
    def _taught(self, images: torch.Tensor, trunk: nn.Module, state: torch.Tensor) -> torch.Tensor:
        """(B, wide_dim) the teacher's embeddings; `state` is that of the generator before the student's."""
        teacher = self.teacher["trunk"]
        with torch.random.fork_rng(devices=[], enabled=self.same_view):
            if self.same_view:
                torch.set_rng_state(state)
                for theirs, ours in zip(teacher.modules(), trunk.modules(), strict=True):
                    if isinstance(theirs, self.augmenting):
                        theirs.train(ours.training)
            try:
                return self.teacher["wide"](pooled_features(teacher(images)))
            finally:
                self.teacher.eval()

    def get_extra_state(self) -> dict[str, Any]:
        return {"num_updates": int(self._averages["wide"].n_averaged) - 1}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        for mean in self._averages.values():
            mean.n_averaged.fill_(int(state["num_updates"]) + 1)

    def extra_repr(self) -> str:
        names = ("decay", "k", "sigma", "delta", "divergence_weight", "temperature", "same_view")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _contextual(distances: torch.Tensor, k: int) -> torch.Tensor:
    """W_C of (N, N) distances."""
    k = as_count(k, "k", least=2)
    count = len(distances)
    if k > count:
        raise ValueError(f"k must be at most the number of samples, got k={k} for {count}: lower k")
    with torch.autocast(distances.device.type, enabled=False):
        own = distances.clone().fill_diagonal_(-1)  # each is its own nearest
        nearest = own.argsort(dim=1, stable=True)[:, :k]  # (N, k)
        near = torch.zeros_like(distances).scatter_(1, nearest, 1)
        mutual = near * near.T  # (N, N), 1 for j in R(i)
        shared = mutual * (mutual @ mutual) / mutual.sum(dim=1, keepdim=True)  # W~
        half = torch.zeros_like(distances).scatter_(1, nearest[:, : k // 2], 1 / (k // 2))
        spread = half @ shared  # W^
        return (spread + spread.T) / 2


def _distances(x: torch.Tensor) -> torch.Tensor:
    """Euclidean, (N, D) to (N, N), by plain differences."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _relative(x: torch.Tensor) -> torch.Tensor:
    """Distances divided by the mean of their row."""
    distances = _distances(x)
    return distances / distances.mean(dim=1, keepdim=True).clamp_min(_EPS)


def _off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    """(N, N) to (N, N - 1): each row without its own entry."""
    count = len(matrix)
    return matrix.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)

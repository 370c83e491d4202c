"""Systems beside posets: UDML-SS, TAC-CCL (reconstructed), ConCURL, STML."""

from ._random_spaces import RandomDiagonals, RandomProjections
from .concurl import ConcurlObjective, ConsensusLoss, SpaceKind, sinkhorn
from .contrastive_clustering import CenterForm, ContrastiveClusteringLoss
from .memory_bank import MemoryBankNCE
from .stml import (
    STMLObjective,
    contextual_similarity,
    relation_divergence,
    relaxed_contrastive_loss,
    teacher_similarity,
)
from .tac_ccl import (
    AttentionConsistencyObjective,
    attention_consistency_loss,
    cross_attention,
    random_affines,
)
from .udml_ss import RotationHead, RotationObjective, rotate_images, rotation_cross_entropy

__all__ = [
    "AttentionConsistencyObjective",
    "CenterForm",
    "ConcurlObjective",
    "ConsensusLoss",
    "ContrastiveClusteringLoss",
    "MemoryBankNCE",
    "RandomDiagonals",
    "RandomProjections",
    "RotationHead",
    "RotationObjective",
    "STMLObjective",
    "SpaceKind",
    "attention_consistency_loss",
    "contextual_similarity",
    "cross_attention",
    "random_affines",
    "relation_divergence",
    "relaxed_contrastive_loss",
    "rotate_images",
    "rotation_cross_entropy",
    "sinkhorn",
    "teacher_similarity",
]

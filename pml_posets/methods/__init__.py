"""Systems beside posets, one file each: UDML-SS, TAC-CCL (reconstructed), ConCURL, STML."""

from .concurl import ConcurlObjective
from .consensus_loss import ConsensusLoss, RandomDiagonals, RandomProjections, SpaceKind, sinkhorn
from .contrastive_clustering import CentreForm, ContrastiveClusteringLoss
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
    "CentreForm",
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

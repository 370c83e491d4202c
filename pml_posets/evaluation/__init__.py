"""How good are features? Measures as plain functions on arrays.

`postures`: the retrieval protocol of the Olympic Sports benchmark. `pose`: PCP, PCKh, and poses copied from
the nearest image, over the joints of `skeletons`. `retrieval`: recall@k, R-precision, MAP@R.
`clustering`: NMI, AMI, ARI and accuracy of clusters. `calculator`: the last two for the testers of
pytorch-metric-learning, which is loaded only when `RetrievalCalculator` is asked for.
"""

from typing import TYPE_CHECKING, Any

from .clustering import (
    ClusteringScores,
    adjusted_mutual_information,
    adjusted_rand_index,
    clustering_accuracy,
    clustering_scores,
    normalized_mutual_information,
)
from .pose import CopiedPoses, PoseScore, copy_poses, head_box_size, head_neck_distance, pckh, pcp
from .postures import (
    FPR_STEPS,
    RetrievalCurve,
    RetrievalLabels,
    RetrievalResult,
    Similarity,
    mean_interpolated_roc,
    retrieval_auc,
    retrieval_report,
    retrieval_roc,
)
from .retrieval import RetrievalScores, retrieval_scores
from .skeletons import LSP_SKELETON, MPII_SKELETON, Skeleton, Stick, mirror_joints
from .voting import Votes, knn_vote

if TYPE_CHECKING:
    from .calculator import RetrievalCalculator

__all__ = [
    "FPR_STEPS",
    "LSP_SKELETON",
    "MPII_SKELETON",
    "ClusteringScores",
    "CopiedPoses",
    "PoseScore",
    "RetrievalCalculator",
    "RetrievalCurve",
    "RetrievalLabels",
    "RetrievalResult",
    "RetrievalScores",
    "Similarity",
    "Skeleton",
    "Stick",
    "Votes",
    "adjusted_mutual_information",
    "adjusted_rand_index",
    "clustering_accuracy",
    "clustering_scores",
    "copy_poses",
    "head_box_size",
    "head_neck_distance",
    "knn_vote",
    "mean_interpolated_roc",
    "mirror_joints",
    "normalized_mutual_information",
    "pckh",
    "pcp",
    "retrieval_auc",
    "retrieval_report",
    "retrieval_roc",
    "retrieval_scores",
]


def __getattr__(name: str) -> Any:
    if name != "RetrievalCalculator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .calculator import RetrievalCalculator

    return RetrievalCalculator

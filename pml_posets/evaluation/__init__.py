"""How good are features? Measures as plain functions on arrays.

`retrieval`: recall@k, R-precision, MAP@R. `clustering`: NMI, AMI, ARI and accuracy of clusters.
`label_free`: which of two embeddings is better, without labels.
`calculator`: both for the testers of pytorch-metric-learning; loaded only when `RetrievalCalculator` is used.
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
from .label_free import LabelFreeScore, label_free_score
from .retrieval import RetrievalScores, retrieval_scores

if TYPE_CHECKING:
    from .calculator import RetrievalCalculator

__all__ = [
    "ClusteringScores",
    "LabelFreeScore",
    "RetrievalCalculator",
    "RetrievalScores",
    "adjusted_mutual_information",
    "adjusted_rand_index",
    "clustering_accuracy",
    "clustering_scores",
    "label_free_score",
    "normalized_mutual_information",
    "retrieval_scores",
]

_GONE = {
    "anchors": "RetrievalLabels",
    "copied": "CopiedPoses copy_poses",
    "pose": "PoseScore head_box_size head_neck_distance pckh pcp",
    "postures": "FPR_STEPS RetrievalCurve RetrievalResult mean_interpolated_roc retrieval_report "
    "retrieval_roc",
    "skeletons": "LSP_SKELETON MPII_SKELETON Skeleton Stick mirror_joints",
    "voting": "Votes knn_vote",
}  # measures of version 0.1.0 that know files and splits of the benchmarks


def __getattr__(name: str) -> Any:
    for module, names in _GONE.items():
        if name in names.split():  # `from ... import` hides the text of an AttributeError
            raise ImportError(f"{__name__}.{name} is benchmark code now: see benchmarks/measures/{module}.py")
    if name != "RetrievalCalculator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .calculator import RetrievalCalculator

    return RetrievalCalculator

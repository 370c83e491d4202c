"""How good are features? Measures as plain functions on arrays.

`postures` is the retrieval protocol of the Olympic Sports benchmark.
"""

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

__all__ = [
    "FPR_STEPS",
    "RetrievalCurve",
    "RetrievalLabels",
    "RetrievalResult",
    "Similarity",
    "mean_interpolated_roc",
    "retrieval_auc",
    "retrieval_report",
    "retrieval_roc",
]

"""From features to surrogate classes: surrogate grouping, the relaxed assignment (y-step), k-means."""

from typing import Any

from . import kmeans as _kmeans
from .kmeans import KMeansGrouping
from .relaxed_assignment import RelaxedAssignment
from .surrogate import SurrogateGrouping

__all__ = [
    "KMeansGrouping",
    "RelaxedAssignment",
    "SurrogateGrouping",
]


def __getattr__(name: str) -> Any:
    if name == "KMeans":  # the old name, which warns
        return getattr(_kmeans, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""From features to surrogate classes: two groupings, the relaxed assignment (y-step), k-means."""

from typing import Any

from . import kmeans as _kmeans
from .confident import ConfidentGrouping
from .kmeans import KMeansGrouping
from .relaxed_assignment import RelaxedAssignment
from .surrogate import SurrogateGrouping

__all__ = [
    "ConfidentGrouping",
    "KMeansGrouping",
    "RelaxedAssignment",
    "SurrogateGrouping",
]


def __getattr__(name: str) -> Any:
    if name == "KMeans":  # the old name, which warns
        return getattr(_kmeans, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

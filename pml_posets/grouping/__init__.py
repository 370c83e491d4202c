"""From features to surrogate classes: surrogate grouping, the relaxed assignment (y-step), k-means."""

from .kmeans import KMeans
from .relaxed_assignment import RelaxedAssignment
from .surrogate import SurrogateGrouping

__all__ = [
    "KMeans",
    "RelaxedAssignment",
    "SurrogateGrouping",
]

"""From features to surrogate classes: two groupings, the relaxed assignment (y-step), k-means."""

from .._moved import old_names
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

__getattr__ = old_names(__name__, {"KMeans": "grouping.KMeansGrouping"})

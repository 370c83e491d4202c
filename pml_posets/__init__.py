"""Visual similarity without labels, as a plugin for pytorch-metric-learning.

The system of "Deep Unsupervised Similarity Learning using Partially Ordered Sets" (CVPR 2017). Every public
name below is loaded when it is first used, so that importing the package stays cheap.
"""

from importlib import import_module
from typing import Any

from ._moved import install as _install
from ._moved import old_names as _old_names

__version__ = "0.2.0.dev0"

_HOMES = {
    "BatchAugmentation": "data",
    "ConfidentGrouping": "grouping",
    "Embedder": "embedder",
    "Gallery": "gallery",
    "HOGLDA": "features",
    "ImageStore": "data",
    "IndexedDataset": "data",
    "InstanceLDA": "features",
    "JointTrainer": "training",
    "KMeansGrouping": "grouping",
    "MotionHOG": "features",
    "NearestMedoidMiner": "miners",
    "PosetCrossBatchMemory": "losses",
    "PosetLoss": "losses",
    "PosetSelfSupervisedLoss": "losses",
    "Posets": "posets",
    "PseudoLabelLoss": "losses",
    "PseudoLabelMiner": "losses",
    "PseudoLabelSampler": "samplers",
    "RelaxedAssignment": "grouping",
    "SurrogateGrouping": "grouping",
    "WithViews": "data",
    "extract": "features",
    "search": "neighbors",
}

__all__ = sorted(_HOMES)

_by_old_name = _old_names(__name__, {"KMeans": "grouping.KMeansGrouping"})
_install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        return _by_old_name(name)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

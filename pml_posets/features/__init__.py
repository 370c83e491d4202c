"""Features of images, one row a sample in dataset order: HOG, HOG-LDA, InstanceLDA, any network."""

from .hog_lda import HOGLDA
from .instance_lda import InstanceLDA
from .network import NetworkFeatures, extract
from .reduction import combine, principal_components
from .saving import load, save

__all__ = [
    "HOGLDA",
    "InstanceLDA",
    "NetworkFeatures",
    "combine",
    "extract",
    "load",
    "principal_components",
    "save",
]

"""Features of images, one row a sample in dataset order: HOG, HOG-LDA, InstanceLDA, any network."""

from .hog_lda import HOGLDA
from .instance_lda import InstanceLDA
from .network import extract, similarity
from .reduction import principal_components

__all__ = [
    "HOGLDA",
    "InstanceLDA",
    "extract",
    "principal_components",
    "similarity",
]

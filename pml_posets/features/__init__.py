"""Features of images, one row a sample in dataset order: HOG, HOG-LDA, InstanceLDA, any network."""

from .hog_lda import HOGLDA
from .instance_lda import InstanceLDA
from .motion_hog import MotionHOG
from .neighbor_whitening import NeighborWhitening
from .network import NetworkFeatures, extract
from .pooled import LayerOutputs, PartialWhitening, choose_layers
from .reduction import combine, principal_components
from .saving import load, save

__all__ = [
    "HOGLDA",
    "InstanceLDA",
    "LayerOutputs",
    "MotionHOG",
    "NeighborWhitening",
    "NetworkFeatures",
    "PartialWhitening",
    "choose_layers",
    "combine",
    "extract",
    "load",
    "principal_components",
    "save",
]

"""Images: data sets that know their index, decoded stores, augmentation, caches on disk."""

from .augmentation import BatchAugmentation
from .cache import FeatureCache
from .datasets import (
    ImageList,
    IndexedDataset,
    UnreadableImageError,
    WithMirrorImages,
    WithViews,
    image_files,
)
from .image_store import ImageStore

__all__ = [
    "BatchAugmentation",
    "FeatureCache",
    "ImageList",
    "ImageStore",
    "IndexedDataset",
    "UnreadableImageError",
    "WithMirrorImages",
    "WithViews",
    "image_files",
]

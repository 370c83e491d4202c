"""Images: data sets that know their index, decoded stores, augmentation, caches on disk."""

from .augmentation import BatchAugmentation
from .cache import FeatureCache
from .datasets import IndexedDataset, SeededDataset, WithMirrorImages, WithViews
from .identity import data_identity
from .image_list import ImageList, image_files
from .image_store import ImageStore
from .images import UnreadableImageError, as_image, check_pixels, mirror, scale_pixels

__all__ = [
    "BatchAugmentation",
    "FeatureCache",
    "ImageList",
    "ImageStore",
    "IndexedDataset",
    "SeededDataset",
    "UnreadableImageError",
    "WithMirrorImages",
    "WithViews",
    "as_image",
    "check_pixels",
    "data_identity",
    "image_files",
    "mirror",
    "scale_pixels",
]

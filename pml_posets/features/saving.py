"""Feature steps, and whole scikit-learn pipelines of them, in one file that holds numbers and no code."""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError

from .._io import read_npz, write_npz
from .._validation import kind_of

__all__ = ["load", "save"]

_Self = TypeVar("_Self", bound="Saved")

_FORMAT = 2
_CLASSES = {
    "HOGLDA": "pml_posets.features.hog_lda",
    "InstanceLDA": "pml_posets.features.instance_lda",
    "NeighborWhitening": "pml_posets.features.neighbor_whitening",
    "NetworkFeatures": "pml_posets.features.network",
    "FeatureUnion": "sklearn.pipeline",
    "Normalizer": "sklearn.preprocessing",
    "PCA": "sklearn.decomposition",
    "PartialWhitening": "pml_posets.features.pooled",
    "Pipeline": "sklearn.pipeline",
    "StandardScaler": "sklearn.preprocessing",
    "TruncatedSVD": "sklearn.decomposition",
}
_CHILDREN = {"Pipeline": "steps", "FeatureUnion": "transformer_list"}


def save(step: Any, path: str | os.PathLike[str]) -> None:
    """Write a step or a pipeline to one .npz file, whole or not at all.

    Args:
        step: HOGLDA, InstanceLDA, NeighborWhitening, PartialWhitening, NetworkFeatures (without its network),
            scikit-learn's PCA, TruncatedSVD, Normalizer or StandardScaler, or a Pipeline or FeatureUnion of
            these, fitted or not.
        path: the file, replaced if it exists.

    Raises:
        TypeError: for another kind of step, or a parameter that is no plain value: use joblib for these.
        OSError: if the folder is missing, full or not writable; an older file stays as it was.

    Example:
        >>> import tempfile
        >>> from sklearn.decomposition import PCA
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(PCA(3, whiten=True).fit(np.random.rand(9, 5)), f"{folder}/pca.npz")
        ...     load(f"{folder}/pca.npz").transform(np.zeros((1, 5))).shape
        (1, 3)
    """
    arrays: dict[str, np.ndarray] = {}
    tree = _tree(step, arrays)
    write_npz(path, {**arrays, "steps": np.array(json.dumps({"format": _FORMAT, "tree": tree}))})


def load(path: str | os.PathLike[str], network: Any = None) -> Any:
    """Read what `save` wrote.

    Args:
        path: the file.
        network: the module of a saved NetworkFeatures, with the weights it had.

    Returns:
        The step or pipeline.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or holds something else, or a network is wanted and not given.
    """
    arrays = read_npz(path)
    try:
        found = json.loads(str(arrays["steps"]))
        if found["format"] != _FORMAT:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no feature steps in the format that this version reads") from None
    return _step(found["tree"], arrays, path, network)


class Saved:
    """Mixin of fitted steps: `save` and `load` on themselves."""

    mean_: np.ndarray | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings and fitted values to one .npz file, see `features.save`.

        Raises:
            NotFittedError: before `fit`.
        """
        if self.mean_ is None:
            raise NotFittedError(f"there is nothing to save: fit the {type(self).__name__} first")
        save(self, path)

    @classmethod
    def load(cls: type[_Self], path: str | os.PathLike[str]) -> _Self:
        """Read what `save` wrote; raises like `features.load`."""
        loaded = load(path)
        if not isinstance(loaded, cls):
            raise ValueError(f"{path} holds {kind_of(loaded)}, no {cls.__name__}: read it by features.load")
        return loaded


class ImageStep(Saved, TransformerMixin, BaseEstimator):
    """Base of steps whose input is images, not rows of numbers."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # images
        tags.no_validation = True
        return tags


def _tree(step: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Class, parameters and fitted values of a step; its arrays go into `arrays`."""
    if step is None or isinstance(step, str):
        return step
    name = type(step).__name__
    if not type(step).__module__.startswith(_CLASSES.get(name, "no module")):
        raise TypeError(f"cannot save {kind_of(step)}: save one of {', '.join(_CLASSES)}, or use joblib")
    params = step.get_params(deep=False)
    children = params.pop(_CHILDREN.get(name, ""), [])
    params.pop("network", None)
    fitted: dict[str, Any] = {}
    for key, value in vars(step).items():
        if not key.endswith("_") or value is None:
            continue
        if isinstance(value, np.ndarray):
            fitted[key] = f"array {len(arrays)}"
            arrays[fitted[key]] = value
        else:
            fitted[key] = _plain(value, name, key)
    return {
        "class": name,
        "params": {key: _plain(value, name, key) for key, value in params.items()},
        "fitted": fitted,
        "children": [[key, _tree(child, arrays)] for key, child in children],
    }


def _step(tree: Any, arrays: dict[str, np.ndarray], path: Any, network: Any) -> Any:
    if tree is None or isinstance(tree, str):
        return tree
    name = tree["class"]
    if name not in _CLASSES:
        raise ValueError(f"{path} holds a {name}, which this version does not know")
    kind = getattr(import_module(_CLASSES[name]), name)
    params = {
        key: tuple(value) if isinstance(value, list) else value for key, value in tree["params"].items()
    }
    if name in _CHILDREN:
        params[_CHILDREN[name]] = [
            (key, _step(child, arrays, path, network)) for key, child in tree["children"]
        ]
    if name == "NetworkFeatures":
        if network is None:
            raise ValueError(f"{path} holds features of a network: give load(path, network=...)")
        params["network"] = network
    step = kind(**params)
    for key, value in tree["fitted"].items():
        setattr(step, key, arrays[value] if isinstance(value, str) and value in arrays else value)
    if hasattr(step, "_check_loaded"):
        step._check_loaded(path)
    return step


def _plain(value: Any, name: str, key: str) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    try:
        json.dumps(value)
    except TypeError:
        raise TypeError(f"cannot save the {key} of {name}, {kind_of(value)}: use joblib") from None
    return value

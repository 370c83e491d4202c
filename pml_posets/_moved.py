"""Module paths and names of version 0.1.0: they still work, and warn where things are now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]

MOVED = {
    "assignment": "grouping.relaxed_assignment",
    "augmentation": "data.augmentation",
    "averaging": "training.averaging",
    "cache": "data.cache",
    "checkpoints": "training.checkpoints",
    "clustering": "grouping.kmeans",
    "datasets": "data.datasets",
    "hog": "features.hog",
    "hoglda": "features.hog_lda",
    "image_store": "data.image_store",
    "instance_lda": "features.instance_lda",
    "losses.attention_consistency": "methods.tac_ccl",
    "losses.concurl": "methods.concurl",
    "losses.consensus_loss": "methods.concurl",
    "losses.contrastive_clustering": "methods.contrastive_clustering",
    "losses.feature_loss": "losses.feature",
    "losses.memory_bank": "methods.memory_bank",
    "losses.poset_loss": "losses.poset",
    "losses.passes": "methods._networks",
    "losses.relaxed_contrastive": "methods.stml",
    "losses.rotation_loss": "methods.udml_ss",
    "neighbor_batches": "samplers.neighbor_batches",
    "objectives": "training.objectives",
    "parallel": "training._ranks",
    "pseudo_labels": "losses.pseudo_label",
    "representatives": "_medoids",
    "sharing": "distributed.sharing",
    "trainers": "training.joint",
}
"""Old module -> new module, both below the package."""

GONE = {
    f"evaluation.{name}": f"benchmarks/measures/{name}.py"
    for name in ("pose", "postures", "skeletons", "voting")
}
"""Old module -> where its code is now, outside of the package."""


class _Moved(MetaPathFinder, Loader):
    """Finds the old paths; each becomes a module that hands on the names of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = fullname.partition(".")
        if package == _PACKAGE and old in GONE:
            raise ModuleNotFoundError(f"{fullname} is benchmark code now: see {GONE[old]}", name=fullname)
        return ModuleSpec(fullname, self) if package == _PACKAGE and old in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = f"{_PACKAGE}.{MOVED[module.__name__.partition('.')[2]]}"
        warnings.warn(f"{module.__name__} has moved: import from {new}", DeprecationWarning, stacklevel=2)
        found = import_module(new)

        def hand_on(name: str) -> Any:
            return getattr(found, name)

        module.__getattr__ = hand_on  # type: ignore[method-assign]
        module.__dict__.update({name: getattr(found, name) for name in getattr(found, "__all__", ())})


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module that hands on old names, each with its path below the package now."""

    def hand_on(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].rpartition(".")
        warnings.warn(f"{name} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(f"{_PACKAGE}.{home}"), new)

    return hand_on


def install() -> None:
    """Let the old paths be imported, for as long as this process runs."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())

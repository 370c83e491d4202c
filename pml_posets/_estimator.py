"""The parameter handling of scikit-learn's estimators, without importing scikit-learn."""

from __future__ import annotations

from inspect import signature
from typing import Any, TypeVar

_Self = TypeVar("_Self", bound="Estimator")


class Estimator:
    """Base of classes whose constructor only stores its arguments, under their own names.

    Example:
        >>> class Nothing(Estimator):
        ...     def __init__(self, size=3):
        ...         self.size = size
        >>> Nothing().set_params(size=5)
        Nothing(size=5)
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name; `deep` is there for scikit-learn and changes nothing."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def set_params(self: _Self, **params: Any) -> _Self:
        """Set some of them.

        Raises:
            ValueError: for a name the constructor does not have.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known)}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: given.default for name, given in signature(type(self)).parameters.items()}
        changed = (
            f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name]
        )
        return f"{type(self).__name__}({', '.join(changed)})"

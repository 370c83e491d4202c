"""Networks, losses, optimizers and schedulers of a run; what hangs on the number of classes is made anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .._random import derive_seeds, preserved_randomness, seed_everything

__all__ = ["TrainingParts"]


class TrainingParts:
    """The dicts a PML trainer is made of, under PML's names, and their state.

    A model or loss may be given as a function num_classes -> module, called for each new set of classes. Its
    optimizer must then be given as a function parameters -> optimizer. When the module is made anew, the
    optimizer stays the same object, with its learning rate and schedule, and forgets what it knew of the old
    parameters (momentum).

    Args:
        models: modules or functions by name.
        loss_funcs: modules or functions by name.
        optimizers: optimizers, or functions parameters -> optimizer, by name ("trunk_optimizer").
        lr_schedulers: schedulers, or functions optimizer -> scheduler, by name
            ("trunk_scheduler_by_iteration"; also _by_epoch and _by_plateau).
        adapt: applied to every loss before it goes into `loss_funcs`.

    Attributes:
        models, loss_funcs, optimizers, lr_schedulers: what is there now; these dicts never change places.

    Raises:
        TypeError, ValueError: for names that go with nothing, or things that are neither.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        loss_funcs: Mapping[str, Any],
        optimizers: Mapping[str, Any],
        lr_schedulers: Mapping[str, Any],
        adapt: Callable[[str, torch.nn.Module], torch.nn.Module],
    ) -> None:
        self.models: dict[str, torch.nn.Module] = {}
        self.loss_funcs: dict[str, torch.nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.lr_schedulers: dict[str, Any] = {}
        self._adapt = adapt
        self._given_optimizers, self._given_schedulers = dict(optimizers), dict(lr_schedulers)
        self._functions: dict[str, Any] = {}
        self._check_names({*models, *loss_funcs})
        for name, given in {**models, **loss_funcs}.items():
            if isinstance(given, torch.nn.Module):
                self._place(name, given, self.models if name in models else self.loss_funcs)
            elif callable(given) and not isinstance(given, type):
                self._functions[name] = (given, self.models if name in models else self.loss_funcs)
            else:
                raise TypeError(
                    f"{name} must be a torch.nn.Module or a function num_classes -> module, got {given!r}"
                )

    @property
    def made_anew(self) -> list[str]:
        """Names of the models and losses that are given as functions."""
        return list(self._functions)

    def fit(self, num_classes: int, seed: int, device: torch.device) -> None:
        """Make what is given as a function for this number of classes, with weights drawn from the seed."""
        for i, (name, (function, where)) in enumerate(self._functions.items()):
            with preserved_randomness():
                seed_everything(derive_seeds(seed, i)[0])
                module = function(num_classes)
            if not isinstance(module, torch.nn.Module):
                raise TypeError(f"the function for {name} must return a module, got {type(module).__name__}")
            self._place(name, module.to(device), where)

    def _check_names(self, names: set[str]) -> None:
        for key in self._given_optimizers:
            if key.removesuffix("_optimizer") not in names or not key.endswith("_optimizer"):
                allowed = ", ".join(f"{name}_optimizer" for name in sorted(names))
                raise ValueError(f"optimizers has the key {key!r}, which goes with nothing: use {allowed}")
        for key in self._given_schedulers:
            name, _, kind = key.partition("_scheduler_by_")
            if name not in names or kind not in ("iteration", "epoch", "plateau"):
                raise ValueError(
                    f"lr_schedulers has the key {key!r}, which goes with nothing: use for example "
                    f"{min(names)}_scheduler_by_iteration (or _by_epoch, _by_plateau)"
                )
            if f"{name}_optimizer" not in self._given_optimizers:
                raise ValueError(f"lr_schedulers has {key!r}, but optimizers no {name}_optimizer")

    def _place(self, name: str, module: torch.nn.Module, where: dict[str, torch.nn.Module]) -> None:
        where[name] = module if where is self.models else self._adapt(name, module)
        key, parameters = f"{name}_optimizer", list(module.parameters())
        given = self._given_optimizers.get(key)
        if isinstance(given, torch.optim.Optimizer):
            if name in self._functions:
                raise TypeError(f"{name} is made anew, so {key} must be a function parameters -> optimizer")
            optimizer = given
        elif callable(given):
            optimizer = given(parameters)
        elif given is None:
            if name in self._functions and any(p.requires_grad for p in parameters):
                raise ValueError(f"{name} has weights to learn: optimizers needs {key}, a function")
            return
        else:
            raise TypeError(
                f"{key} must be an optimizer or a function parameters -> optimizer, got {given!r}"
            )
        if key not in self.optimizers:
            self.optimizers[key] = optimizer
            self._schedule(name, optimizer)
            return
        old = self.optimizers[key]
        old.state.clear()
        for group, fresh in zip(old.param_groups, optimizer.param_groups, strict=True):
            group["params"] = fresh["params"]

    def _schedule(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        for key, given in self._given_schedulers.items():
            if key.partition("_scheduler_by_")[0] == name:
                is_function = isinstance(given, type) or not hasattr(given, "step")
                self.lr_schedulers[key] = given(optimizer) if is_function else given

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        groups: list[Mapping[str, Any]] = [self.models, self.loss_funcs, self.optimizers, self.lr_schedulers]
        states = [{name: part.state_dict() for name, part in group.items()} for group in groups]
        return {
            **dict(zip(("models", "loss_funcs", "optimizers", "lr_schedulers"), states, strict=True)),
            "memories": [(memory.queue_idx, memory.has_been_filled) for memory in self._memories()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back into the same parts; `fit` must have made the others before."""
        for group in ("models", "loss_funcs", "optimizers", "lr_schedulers"):
            parts = getattr(self, group)
            if sorted(state[group]) != sorted(parts):
                raise ValueError(f"it has the {group} {sorted(state[group])}, here are {sorted(parts)}")
            for name, part in parts.items():
                part.load_state_dict(state[group][name])
        for memory, (queue_idx, filled) in zip(self._memories(), state["memories"], strict=True):
            memory.queue_idx, memory.has_been_filled = queue_idx, filled

    def forget_memories(self) -> None:
        """Empty PML's cross-batch memories: class ids of one round mean nothing in the next."""
        for memory in self._memories():
            memory.reset_queue()

    def _memories(self) -> list[Any]:
        modules = [module for loss in self.loss_funcs.values() for module in loss.modules()]
        return [
            module for module in modules if hasattr(module, "reset_queue") and hasattr(module, "queue_idx")
        ]

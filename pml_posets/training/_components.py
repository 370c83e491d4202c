"""Networks, losses, optimizers and schedulers of a run; class heads follow the classes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from .._networks import device_of
from .._random import derive_seeds, seeded
from ._heads import carry_rows, carry_state, class_axes, class_axis, num_outputs
from ._identity import describe
from .averaging import moving_average
from .objectives import PML_LOSSES

_GROUPS = ("models", "loss_funcs", "optimizers", "lr_schedulers")
_PML_NAMES = ("trunk", "embedder", "classifier", "metric_loss", "classifier_loss")


class Components:
    """The dicts a PML trainer is made of, under PML's names, and their state; the dicts stay the same.

    A model or loss may be given as a function num_classes -> module, called for each new set of classes. Its
    optimizer must then be given as a function parameters -> optimizer. The weights of classes that go on, and
    what the optimizer knows of them (momentum), are carried over; the optimizer stays the same object, with
    its learning rate and schedule. `adapt` is applied to every loss before it goes into `loss_funcs`.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        loss_funcs: Mapping[str, Any],
        optimizers: Mapping[str, Any],
        lr_schedulers: Mapping[str, Any],
        adapt: Callable[[str, torch.nn.Module], torch.nn.Module],
        frozen: tuple[str, ...] = (),
    ) -> None:
        self.models: dict[str, torch.nn.Module] = {}
        self.loss_funcs: dict[str, torch.nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.lr_schedulers: dict[str, Any] = {}
        self._adapt, self._frozen = adapt, frozen
        self._given_optimizers, self._given_schedulers = dict(optimizers), dict(lr_schedulers)
        self._functions: dict[str, Callable[[int], Any]] = {}
        self._modules: dict[str, torch.nn.Module] = {}  # losses before `adapt`
        self._warned: set[str] = set()
        self._is_model = {name: name in models for name in (*models, *loss_funcs)}
        if both := sorted({*models} & {*loss_funcs}):
            raise ValueError(f"models and loss_funcs both have the name {both[0]!r}: give the loss another")
        self._check_names()
        for name, given in {**models, **loss_funcs}.items():
            if isinstance(given, torch.nn.Module):
                self._insert(name, given)
            elif callable(given) and not isinstance(given, type):
                self._functions[name] = given
            else:
                wanted = "a torch.nn.Module or a function num_classes -> module"
                raise TypeError(f"{name} must be {wanted}, got {given!r}")
        self._check_weights()

    @property
    def device(self) -> torch.device:
        """Where the trunk is."""
        return device_of(self.models["trunk"])

    def averages(self, decay: float | None) -> dict[str, AveragedModel]:
        """Moving averages of the networks that make embeddings; none without a decay."""
        if decay is None:
            return {}
        named = [name for name in ("trunk", "embedder") if name in self.models]
        return {name: moving_average(self.models[name], decay) for name in named}

    # --- The number of classes

    def fit(
        self, num_classes: int, seed: int, device: torch.device, matches: np.ndarray | None = None
    ) -> None:
        """Make what is given as a function for this number of classes, with weights drawn from the seed.

        With the (C,) `matches` of `match_classes`, what is known of these classes is carried over, also in
        class heads that are given as modules.
        """
        if matches is not None:
            self._reorder(matches)
        for i, name in enumerate(self._functions):
            make = partial(self._made, name, seed=derive_seeds(seed, i)[0])
            module, old = make(num_classes).to(device), self._modules.get(name)
            optimizer, states = self.optimizers.get(f"{name}_optimizer"), {}
            if matches is not None and old is not None and old is not module:
                axes = class_axes(make, module, num_classes)
                if axes is None:
                    self._warn(
                        f"the classes have changed, and {name} begins again with new weights: to find their "
                        f"rows its function must return a module for {num_classes + 1} classes too"
                    )
                else:
                    states = carry_state(old, module, optimizer, axes, matches)
            self._insert(name, module)
            if optimizer is not None:
                optimizer.state.update(states)
        self._check_weights()

    def _made(self, name: str, num_classes: int, seed: int) -> torch.nn.Module:
        """What is given as a function, with weights drawn from the seed."""
        with seeded(seed):
            return _as_module(name, self._functions[name](num_classes))

    def for_classes(self, num_classes: int) -> dict[str, torch.nn.Module]:
        """Classifier and losses as they would be for this number of classes; nothing changes."""
        made = {name: _as_module(name, make(num_classes)) for name, make in self._functions.items()}
        modules = {**self._modules, **made}
        return {
            name: module if self._is_model[name] else self._adapt(name, module)
            for name, module in modules.items()
            if name in PML_LOSSES or name == "classifier"
        }

    def _reorder(self, matches: np.ndarray) -> None:
        """Move the rows of heads that are given as modules to where their classes have gone."""
        for name, layer, outputs in self._fixed_heads():
            if len(matches) > outputs:
                continue  # refused by `check_outputs`
            order = np.pad(matches, (0, outputs - len(matches)), constant_values=-1)
            order[order < 0] = np.setdiff1d(np.arange(outputs), matches)
            if (order == np.arange(outputs)).all():
                continue
            axes = class_axis(layer, outputs)
            if not axes:
                advice = "give it as a function num_classes -> module"
                self._warn(f"classes have other numbers now, and the rows of {name} do not follow: {advice}")
            for key, (axis, rows) in axes.items():
                weight = layer.get_parameter(key)
                known = (o.state[weight] for o in self.optimizers.values() if weight in o.state)
                state: dict[str, Any] = next(known, {})  # of the optimizer that holds it, if one does
                for tensor in (weight.data, *state.values()):
                    if isinstance(tensor, torch.Tensor) and tensor.shape == weight.shape:
                        carry_rows(tensor.clone(), tensor, axis, rows, order)

    def _fixed_heads(self) -> Iterator[tuple[str, torch.nn.Module, int]]:
        """Name, layer and number of outputs of each class head that is given as a module."""
        for name, module in self._modules.items():
            if name in self._functions:
                continue
            heads = [(layer, count) for layer in module.modules() if (count := num_outputs(layer, name))]
            if heads and (name == "classifier" or not self._is_model[name]):
                yield name, *heads[-1]

    def check_outputs(self, num_classes: int) -> None:
        """Raise a ValueError for a class head given as a module that has too few outputs."""
        for name, _, outputs in self._fixed_heads():
            if outputs < num_classes:
                advice = "give it as a function num_classes -> module, its optimizer as one of parameters"
                raise ValueError(f"the {name} has {outputs} outputs for {num_classes} classes: {advice}")

    # --- Names and weights

    def _check_names(self) -> None:
        names = set(self._is_model)
        for key in self._given_optimizers:
            if key.removesuffix("_optimizer") not in names or not key.endswith("_optimizer"):
                allowed = ", ".join(f"{name}_optimizer" for name in sorted(names))
                raise ValueError(f"optimizers has the key {key!r}, which belongs to nothing: use {allowed}")
        for key in self._given_schedulers:
            name, _, kind = key.partition("_scheduler_by_")
            if name not in names or kind not in ("iteration", "epoch", "plateau"):
                advice = f"use for example {min(names)}_scheduler_by_iteration (or _by_epoch, _by_plateau)"
                raise ValueError(f"lr_schedulers has the key {key!r}, which belongs to nothing: {advice}")
            if f"{name}_optimizer" not in self._given_optimizers:
                raise ValueError(f"lr_schedulers has {key!r}, but optimizers no {name}_optimizer")

    def _check_weights(self) -> None:
        """Check that optimizers hold the weights that are to learn, and no others."""
        ours = {p for module in self._modules.values() for p in module.parameters()}
        held: set[torch.nn.Parameter] = set()
        for key, optimizer in self.optimizers.items():
            weights = set(_weights_of(optimizer))
            if foreign := len(weights - ours):
                text = (
                    f"{foreign} of the {len(weights)} weights in {key} are in no model and no loss: was it "
                    "made for another network, or before this one was copied or replaced? Give it as a "
                    "function parameters -> optimizer"
                )
                if foreign == len(weights):
                    raise ValueError(text)
                self._warn(text)
            held |= weights
        frozen = {p for name, m in self._modules.items() if name in self._frozen for p in m.parameters()}
        for name, module in self._modules.items():
            named = module.named_parameters()
            learning = {key: p for key, p in named if p.requires_grad and p not in frozen}
            missing = [key for key, p in learning.items() if p not in held]
            if missing and len(missing) == len(learning):
                what = name if name in _PML_NAMES else f"the objective {name}"
                needed = f"{name}_optimizer{', a function' if name in self._functions else ''}"
                advice = f"optimizers needs {needed}, or freeze them by requires_grad_(False) or freeze_these"
                raise ValueError(f"{what} has weights to learn: {advice}=({name!r},)")
            if missing:
                count = f"{len(missing)} of {len(learning)} weights of {name}"
                self._warn(f"no optimizer holds {count} (the first is {missing[0]}): these do not learn")
        if not self._functions and not any(p.requires_grad for p in ours - frozen):
            raise ValueError("no weight of the models and losses requires a gradient, so nothing can learn")

    def totals(self) -> dict[str, torch.Tensor]:
        """A number of each weight that an optimizer holds, which changes with it."""
        return {
            key: torch.stack([w.detach().double().sum() for w in _weights_of(optimizer)])
            for key, optimizer in self.optimizers.items()
        }

    def check_moved(self, before: Mapping[str, torch.Tensor], round_number: int) -> None:
        """Warn of optimizers that have moved nothing since `totals` gave `before`."""
        if still := [key for key, now in self.totals().items() if torch.equal(now, before[key])]:
            self._warn(
                f"no weight of {', '.join(still)} has changed in round {round_number}: is the learning rate "
                "0, or the gradient (no pair to learn from, embeddings that are all equal, dead units)?"
            )

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=5)

    def _insert(self, name: str, module: torch.nn.Module) -> None:
        self._modules[name] = module
        if self._is_model[name]:
            self.models[name] = module
        else:
            self.loss_funcs[name] = self._adapt(name, module)
        key, parameters = f"{name}_optimizer", list(module.parameters())
        given = self._given_optimizers.get(key)
        if given is None:
            return
        is_function = not isinstance(given, torch.optim.Optimizer)
        if not callable(given) and is_function:
            wanted = "an optimizer or a function parameters -> optimizer"
            raise TypeError(f"{key} must be {wanted}, got {given!r}")
        if name in self._functions and not is_function:
            raise TypeError(f"{name} is a function, so {key} must be a function parameters -> optimizer")
        optimizer = given(parameters) if is_function else given
        _check_optimizer(key, optimizer)
        if key not in self.optimizers:
            self.optimizers[key] = optimizer
            for kind, scheduler in self._given_schedulers.items():
                if kind.partition("_scheduler_by_")[0] == name:
                    made = isinstance(scheduler, type) or not hasattr(scheduler, "step")
                    self.lr_schedulers[kind] = scheduler(optimizer) if made else scheduler
                    _check_scheduler(kind, self.lr_schedulers[kind], optimizer)
            return
        old = self.optimizers[key]
        old.state.clear()
        for group, fresh in zip(old.param_groups, optimizer.param_groups, strict=True):
            group["params"] = fresh["params"]

    # --- State

    def settings(self) -> dict[str, Any]:
        """The settings of all components, flat, before they have learned."""
        things = {**self._modules, **self.optimizers, **self.lr_schedulers}
        things |= {f"{name} function": function for name, function in self._functions.items()}
        return {
            f"{name} {key}": value for name, thing in things.items() for key, value in describe(thing).items()
        }

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        states = {
            group: {name: part.state_dict() for name, part in getattr(self, group).items()}
            for group in _GROUPS
        }
        memories = [(memory.queue_idx, memory.has_been_filled) for memory in self._memories()]
        return {**states, "memories": memories}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back into the same components; `fit` must have made the others before."""
        for group in _GROUPS:
            own = getattr(self, group)
            if sorted(state[group]) != sorted(own):
                raise ValueError(f"it has the {group} {sorted(state[group])}, here are {sorted(own)}")
            for name, part in own.items():
                part.load_state_dict(state[group][name])
        for memory, (queue_idx, filled) in zip(self._memories(), state["memories"], strict=True):
            memory.queue_idx, memory.has_been_filled = queue_idx, filled

    def forget_memories(self) -> None:
        """Empty PML's cross-batch memories: class ids of one round mean nothing in the next."""
        for memory in self._memories():
            memory.reset_queue()

    def _memories(self) -> list[Any]:
        modules = [module for loss in self.loss_funcs.values() for module in loss.modules()]
        return [m for m in modules if hasattr(m, "reset_queue") and hasattr(m, "queue_idx")]


def _weights_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _check_optimizer(key: str, optimizer: Any) -> None:
    kind = type(optimizer).__name__
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(f"the function for {key} must return an optimizer, got {kind}")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(f"{key} is {kind}, whose step needs a closure: use one that does not, such as Adam")


def _check_scheduler(key: str, scheduler: Any, optimizer: Any) -> None:
    if not hasattr(scheduler, "step"):
        raise TypeError(f"the function for {key} must return a scheduler, got {type(scheduler).__name__}")
    if getattr(scheduler, "optimizer", optimizer).param_groups is not optimizer.param_groups:
        advice = "give it as a function optimizer -> scheduler"
        raise ValueError(f"{key} is the scheduler of another optimizer, whose rates nobody uses: {advice}")


def _as_module(name: str, made: Any) -> torch.nn.Module:
    if not isinstance(made, torch.nn.Module):
        raise TypeError(f"the function for {name} must return a module, got {type(made).__name__}")
    return made

"""The networks of the benchmarks, each a trunk with an embedder: how they are made, cut and given weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.core.alexnet import AlexNetEmbedder, AlexNetTrunk
from benchmarks.core.architectures import AlexNetConfig, Architecture, HogConfig, TrunkConfig, architecture
from benchmarks.core.hog_trunk import HogTrunk
from pml_posets._networks import hooked, in_eval_mode
from pml_posets._random import preserved_randomness, seed_everything
from pml_posets.training.checkpoints import load_checkpoint
from pml_posets.training.finetune import freeze_batch_norm

FILES = {  # torchvision's ImageNet weights, for messages
    "alexnet": "alexnet-owt-7be5be79.pth",
    "googlenet": "googlenet-1378be20.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
}
_COUNTERS = ".num_batches_tracked"  # which older files do not have


class PooledTrunk(nn.Module):
    """A convolutional network and the mean over its maps: (B, 3, S, S) -> (B, D).

    Attributes:
        features: the network; its output are the last maps, (B, D, H, W), or already (B, D).
        dim: D.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.features = _function(config)() if config.function else _torchvision(config)
        # GoogLeNet's weights are for pixels in [-1, 1], not for those normalized by ImageNet's statistics.
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        google = config.trunk == "googlenet"
        self.register_buffer("scale", 2 * std if google else torch.ones(3), persistent=False)
        self.register_buffer("shift", 2 * mean - 1 if google else torch.zeros(3), persistent=False)
        self.eval()
        with torch.no_grad():
            self.dim = int(self(torch.zeros(1, 3, config.image_size, config.image_size)).shape[1])
        self.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalized images -> (B, D)."""
        images = images * self.scale[:, None, None] + self.shift[:, None, None]
        maps = self.features(images.contiguous(memory_format=torch.channels_last))  # faster on a CPU
        return maps if maps.ndim == 2 else maps.mean(dim=(2, 3))


def build(config: Architecture, seed: int, dropout: float = 0.5) -> dict[str, nn.Module]:
    """A new network with random weights, as the models of a PML trainer.

    Args:
        config: the shapes.
        seed: of the weights (He's initialization of the convolutions, torch's default of the rest). A
            function has the weights it comes with.
        dropout: before AlexNet's fc6 and fc7, or the linear embedder of the others; in [0, 1).

    Returns:
        {"trunk": (B, 3, S, S) -> (B, D), "embedder": (B, D) -> (B, fc_dim)}. The trunk's weights depend on
        nothing but the seed and its shapes. Torch's global generator stays as it was.

    Raises:
        ValueError: for dropout out of its range, or a function that does not exist or returns no such module.
        ImportError: without the packages of the extra "pretrained", for efficientnet-lite0.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in 0..1, below 1, got {dropout}: try 0.5")
    with preserved_randomness(accelerators=False):
        seed_everything(seed, accelerators=False)
        kinds: dict[Any, Any] = {AlexNetConfig: AlexNetTrunk, HogConfig: HogTrunk, TrunkConfig: PooledTrunk}
        trunk = kinds[type(config)](config)
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d) and not getattr(config, "function", ""):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(config, AlexNetConfig):
            embedder: nn.Module = AlexNetEmbedder(config, dropout)
        else:
            embedder = nn.Sequential(nn.Dropout(dropout), nn.Linear(trunk.dim, config.fc_dim))
    return {"trunk": trunk.to(memory_format=torch.channels_last), "embedder": embedder}


def up_to(models: Mapping[str, nn.Module], layer: str) -> nn.Module:
    """The network cut after a layer, sharing the weights of the models.

    Args:
        models: of `build`.
        layer: "pooled", the trunk's output (AlexNet's pool5), "embedding", the embedder's (AlexNet's fc7
            before its ReLU), or of AlexNet "pool5", "fc6" (after its ReLU), "fc7".

    Returns:
        A module, images (B, 3, S, S) -> (B, D) features.

    Raises:
        ValueError: for a layer that the network does not have.
    """
    if layer in ("pooled", "pool5"):
        return models["trunk"]
    if layer in ("embedding", "fc7"):
        return nn.Sequential(models["trunk"], models["embedder"])
    if layer == "fc6" and hasattr(models["embedder"], "fc6"):
        return nn.Sequential(models["trunk"], models["embedder"].get_submodule("fc6"))
    raise ValueError(f"layer must be pooled, embedding or of AlexNet pool5, fc6, fc7, got {layer!r}")


def freeze(trunk: nn.Module, patterns: tuple[str, ...]) -> None:
    """Let parameters whose names match a pattern stay as they are, and statistics of batch norm beside them.

    Raises:
        ValueError: for a pattern that no parameter matches.
    """
    named = dict(trunk.named_parameters())
    for pattern in patterns:
        found = [parameter for name, parameter in named.items() if fnmatch(name, pattern)]
        if not found:
            raise ValueError(f"--freeze {pattern} matches none of {', '.join(list(named)[:4])}, ...")
        for parameter in found:
            parameter.requires_grad_(False)
    for layer in trunk.modules() if patterns else ():
        weights = list(layer.parameters(recurse=False))
        if weights and not any(weight.requires_grad for weight in weights):
            freeze_batch_norm(layer)


# --- Weights from files


def load_imagenet(models: Mapping[str, nn.Module], config: Architecture, path: str | Path) -> None:
    """Put ImageNet weights, from a local file, into the trunk (of AlexNet the embedder too).

    Args:
        models: of `build` with this config; they stay as they were if the file does not fit.
        config: the shapes: torchvision's.
        path: a state_dict as torchvision publishes it, whose part for the thousand classes is left out; for
            a trunk of yours one of its module.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is no file of weights, or one of another architecture.
    """
    if isinstance(config, HogConfig):
        raise ValueError("--init is for networks that have ImageNet weights: --trunk hog begins as HOG")
    name = "alexnet" if isinstance(config, AlexNetConfig) else config.trunk
    file = FILES.get(name, "a state_dict of it")
    state = read_weights(path, f"torchvision's {name} ({file})")
    if isinstance(config, AlexNetConfig):
        parts = {
            "trunk": {key: value for key, value in state.items() if key.startswith("features.")},
            "embedder": {
                key.replace(theirs, ours, 1): value
                for key, value in state.items()
                for ours, theirs in (("fc6.1.", "classifier.1."), ("fc7.1.", "classifier.4."))
                if key.startswith(theirs)
            },
        }
        hint = "torchvision's weights need --image-size 227, --fc-dim 4096 and no batch norm"
    else:
        heads = () if config.function else ("fc.", "aux1.", "aux2.")
        parts = {"trunk": {f"features.{k}": v for k, v in state.items() if not k.startswith(heads)}}
        hint = f"give its weights ({file})"
        hint += ", which need --image-size 64 or more" if config.small_stem else ""
    if wrong := _misfits(models, parts):
        raise ValueError(f"{path} does not fit {name} at {', '.join(wrong[:4])}: {hint}")
    for key, part in parts.items():
        models[key].load_state_dict(part)


def read_weights(path: str | Path, whose: str) -> dict[str, torch.Tensor]:
    """A state_dict from a local file.

    Raises:
        FileNotFoundError: if the file does not exist; the message says `whose` it should be.
        ValueError: if it is damaged or no file of weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ImageNet weights at {path}: give the local file of {whose}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged or no file of weights ({reason}): download it again") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state_dict: give the file as torchvision publishes it")
    return state


def architecture_of(path: str | Path) -> Architecture:
    """The shapes of the network in a checkpoint that a benchmark wrote.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged or holds no network of the benchmarks.
    """
    found = load_checkpoint(path)["settings"]
    trunk = found.get("your trunk", "alexnet")  # older checkpoints do not say
    names = ["image_size", *(("batch_norm", "stem_stride") if trunk == "alexnet" else ()), "fc_dim"]
    missing = [name for name in names if f"your {name}" not in found]
    if missing:
        network = "AlexNet" if trunk == "alexnet" else trunk
        raise ValueError(
            f"the checkpoint {path} is of no benchmark's {network} ({', '.join(missing)} missing): give the "
            "checkpoint.pt of a method that learns, from the --output of a benchmark"
        )
    return architecture(trunk, **{name: found[f"your {name}"] for name in names})


def load_trained(models: Mapping[str, nn.Module], path: str | Path) -> None:
    """Put the weights of a checkpoint into the models: their moving average where the run kept one.

    Args:
        models: of `build`, of the shapes that `architecture_of` says, or a "trunk" alone. They stay as they
            were if the file does not fit.
        path: checkpoint.pt of a run.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged, or of another architecture.
    """
    content = load_checkpoint(path)
    states = (content["average"] or content["parts"])["models"]
    parts = {name: states[name] for name in models}
    if "trunk" in parts:  # it stands behind the augmentation in a checkpoint
        parts["trunk"] = {key[2:]: value for key, value in parts["trunk"].items() if key.startswith("1.")}
    if wrong := _misfits(models, parts):
        theirs = ", ".join(f"{name} {value}" for name, value in architecture_of(path).settings().items())
        raise ValueError(
            f"the checkpoint {path} is of another architecture, it differs at {', '.join(wrong[:3])}: "
            f"its network has {theirs}"
        )
    for name, part in parts.items():
        models[name].load_state_dict(part)


def _misfits(models: Mapping[str, nn.Module], parts: Mapping[str, Mapping[str, torch.Tensor]]) -> list[str]:
    """Names of the weights that one side does not have, or in another shape."""
    wrong = []
    for name, part in parts.items():
        expected, found = (
            {key: tuple(value.shape) for key, value in state.items() if not key.endswith(_COUNTERS)}
            for state in (models[name].state_dict(), part)
        )
        different = [key for key in expected | found if expected.get(key) != found.get(key)]
        wrong += [f"{name} {key}" for key in sorted(different)]
    return wrong


# --- What the methods ask of a network


def feature_dim(models: Mapping[str, nn.Module]) -> int:
    """D, the width of the trunk's output."""
    return next(m.in_features for m in models["embedder"].modules() if isinstance(m, nn.Linear))


def last_maps(trunk: nn.Module, image_size: int) -> tuple[str, int, int]:
    """Name of the submodule whose output are the trunk's last maps of more than one cell (of AlexNet before
    the last max-pooling), and their height and width for images of this size. The trunk stays as it was.

    Raises:
        ValueError: for a trunk without maps.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str, output: Any) -> None:
        sizes.pop(name, None)
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            sizes[name] = output.shape[2], output.shape[3]

    parts = {name: part for name, part in trunk.named_modules() if name}
    if isinstance(trunk, AlexNetTrunk):
        before_pooling = f"features.{len(trunk.features) - 2}"
        parts = {before_pooling: parts[before_pooling]}
    images = torch.zeros(1, 3, image_size, image_size).to(next(trunk.parameters()))
    with in_eval_mode(trunk), hooked(parts, note):
        trunk(images)
    if not sizes:
        raise ValueError(
            "--method tac-ccl needs a --trunk with maps: no module of this one has an output (B, D, H, W) of "
            f"more than one cell for images of {image_size} px"
        )
    name = list(sizes)[-1]
    return name, *sizes[name]


def _torchvision(config: TrunkConfig) -> nn.Sequential:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if config.trunk == "googlenet":
        options |= {"aux_logits": False, "init_weights": False}
    network = getattr(models, config.trunk)(**options)
    if config.small_stem:
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    features = nn.Sequential()
    for name, part in network.named_children():
        if name not in ("avgpool", "dropout", "fc"):
            features.add_module(name, part)
    return features


def _function(config: TrunkConfig) -> Any:
    module, _, function = config.function.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--trunk {config.trunk}: {error}: give module:function, importable from here"
        ) from error

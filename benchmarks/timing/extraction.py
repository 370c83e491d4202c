"""Features of a network of today's shape: `extract` against a bare loop over the same tensors."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.timing.clock import in_turns
from pml_posets import extract

_BATCH = 32


def time_extraction(size: int, num_images: int, seed: int, repeats: int, quiet: bool) -> dict[str, float]:
    """How many times faster `extract` is in the same precision, by the wall and by the processor."""
    torch.manual_seed(seed)
    network = resnet18().eval()
    network.fc = nn.Identity()
    images = torch.rand(num_images, 3, size, size)

    def bare(half: bool) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for batch in images.split(_BATCH):
                network(batch)

    def ours(half: bool) -> None:
        extract(network, images, batch_size=_BATCH, amp=torch.bfloat16 if half else False, progress=False)

    runs = {
        "bare": partial(bare, False),
        "extract": partial(ours, False),
        "bare bfloat16": partial(bare, True),
        "extract bfloat16": partial(ours, True),
    }
    times = in_turns(runs, repeats, f"extraction {size} px", quiet)
    return {
        "of_bare": times.ratio("bare", "extract"),
        "of_bare_cpu": times.ratio("bare", "extract", "cpu"),
        "of_bare_bfloat16": times.ratio("bare bfloat16", "extract bfloat16"),
        "of_bare_bfloat16_cpu": times.ratio("bare bfloat16", "extract bfloat16", "cpu"),
        "images_a_second": num_images / times.seconds("extract"),
        "images_a_second_bfloat16": num_images / times.seconds("extract bfloat16"),
    }

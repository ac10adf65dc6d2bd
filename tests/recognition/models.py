"""A tiny vision transformer with attention sharp enough to choose by, and recognisers of it."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor

from vitrim.recognition.base import Recogniser, recognise

DEPTH, DIM, HEADS, IMAGE, PATCH, CLASSES = 4, 32, 4, 48, 8, 7
PATCHES = (IMAGE // PATCH) ** 2


def vit(**changes: Any) -> VisionTransformer:
    """A random model of 4 blocks and 6 x 6 patches."""
    sizes: dict[str, Any] = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(**sizes | {"num_classes": CLASSES} | changes)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5 if parameter.shape[0] > 1 else 1.0)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def recogniser(spec: str, **changes: Any) -> Recogniser:
    """A recogniser of it, whose classifier does not start at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = recognise(vit(**changes), spec)
        torch.nn.init.normal_(model.head.weight)
    return model


def images(count: int = 3, size: int = IMAGE) -> Tensor:
    """Random images with some structure: a bright square each."""
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))
    for i in range(count):
        x[i, :, 8 * (i % 4) : 8 * (i % 4) + 16, 16:32] += 2.0
    return x

"""Pictures and seeds for the tests of transforms."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def picture(width: int = 48, height: int = 40, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise, so that every operation changes something."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = np.clip(smooth + rng.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)

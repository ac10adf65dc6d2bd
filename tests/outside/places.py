"""Data sets and weights that do not lie in the repository: where they are, or a skip that names them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data(name: str) -> Path:
    """The folder of a data set below ``VITRIM_DATA``, or below ``shared/data`` beside the checkout."""
    for root in (os.environ.get("VITRIM_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if root and (Path(root) / name).is_dir():
            return Path(root) / name
    pytest.skip(f"data set '{name}' is not here: set VITRIM_DATA to the folder that holds it")


def dinov2() -> Path:
    """Weights of DINOv2 ViT-S/14 in timm's names, from ``VITRIM_DINOV2``."""
    path = os.environ.get("VITRIM_DINOV2")
    if path and Path(path).is_file():
        return Path(path)
    pytest.skip("no DINOv2 weights: set VITRIM_DINOV2 to a safetensors file of vit_small_patch14_dinov2 in timm's names")

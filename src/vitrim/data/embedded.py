"""The labelled images that come with vitrim: 2,000 of Fashion-MNIST."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

FASHION_MEAN = 0.2860
FASHION_STD = 0.3530


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with labels, ready for a model.

    Attributes:
        images: ``(N, C, H, W)`` float32, normalised.
        labels: ``(N,)`` int64.
        classes: name of each label.
        pixels: ``(N, H, W)`` or ``(N, H, W, C)`` uint8, the images as they are.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def fashion(limit: int | None = None) -> Labelled:
    """The embedded part of the Fashion-MNIST test set: 200 images of each of 10 classes, 28 x 28 grey levels.

    Args:
        limit: number of images; a smaller one takes the same number of every class, up to one.

    Raises:
        ValueError: when ``limit`` is below 1.
    """
    source = resources.files("vitrim").joinpath("assets/fashion_test_2000.npz")
    with np.load(io.BytesIO(source.read_bytes()), allow_pickle=False) as data:
        pixels, labels, classes = data["images"], data["labels"], [str(c) for c in data["classes"]]
    if limit is not None and limit < len(labels):
        chosen = balanced(labels.tolist(), limit)
        pixels, labels = pixels[chosen], labels[chosen]
    images = (torch.from_numpy(pixels).float().div(255) - FASHION_MEAN) / FASHION_STD
    return Labelled(images.unsqueeze(1), torch.from_numpy(labels).long(), classes, pixels)


def fashion_learned() -> dict[str, Tensor]:
    """Learned parts of the methods that have one, trained on the frozen embedded model for ``keep(rate=0.5)`` at blocks 3, 6, 9.

    By the names of ``model.reduction.state_dict()``; those of different methods do not meet. Made by
    ``examples/train_learned_parts.py``.
    """
    source = resources.files("vitrim").joinpath("assets/fashion_learned.safetensors")
    return {name.removeprefix("reduction."): tensor.float() for name, tensor in load(source.read_bytes()).items()}


def balanced(labels: list[int], limit: int) -> list[int]:
    """Positions of ``limit`` items that are spread evenly over the classes, ascending.

    Raises:
        ValueError: when ``limit`` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is a number of images, 1 or more; got {limit}")
    return sorted(rotation(labels)[:limit])


def rotation(labels: list[int]) -> list[int]:
    """All positions, one of each class in turn, so that any beginning of it is balanced."""
    seen: dict[int, int] = {}
    turns = []
    for position, label in enumerate(labels):
        turn = seen.get(label, 0)
        seen[label] = turn + 1
        turns.append((turn, label, position))
    return [position for _, _, position in sorted(turns)]

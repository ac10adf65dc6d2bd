"""Randomness as a function of where the training is, so that a resumed run repeats it without any stored state."""

from __future__ import annotations

import random
from hashlib import blake2b

import numpy as np
import torch


def seed_of(*place: int | str) -> int:
    """A number of 32 bits from a place, such as ``(seed, "step", 120, rank)``; neighbours have nothing in common."""
    return int.from_bytes(blake2b(repr(place).encode(), digest_size=4).digest(), "little")


def seed_everything(*place: int | str) -> None:
    """Set the generators of Python, NumPy and PyTorch, all devices, by the place."""
    number = seed_of(*place)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def seed_sample(number: int) -> None:
    """Set the generators that transforms use, on the CPU alone: data workers must not touch a GPU."""
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)

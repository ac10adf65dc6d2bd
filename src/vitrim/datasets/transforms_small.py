"""A fast transform for small images, such as the sets of 28 to 64 pixels that whole studies on a CPU are made with."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from vitrim.datasets.transforms import TRANSFORMS, Numbers, Step, Transform, square


@TRANSFORMS.register("small")
class Small(Transform):
    """Shifts and symmetries of the square, for images that have the input's size already (others are resized to it).

    Train: shift by up to ``shift`` pixels in both directions, mirror, turn. Evaluation: nothing.

    Args:
        size: side of the square input in pixels.
        shift: largest shift in pixels; all shifts are equally likely.
        flip: mirror left and right with probability 0.5.
        transpose: all eight symmetries of the square with equal probability (with ``flip``), for pictures without an up.
        border: what is shifted in: ``reflect`` or ``edge``.
        grey: one channel instead of three.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
    """

    def __init__(
        self,
        *,
        size: int = 32,
        shift: int = 3,
        flip: bool = True,
        transpose: bool = False,
        border: str = "reflect",
        grey: bool = False,
        mean: Numbers = 0.5,
        std: Numbers = 0.5,
        stats: str | None = None,
    ) -> None:
        super().__init__(size=size, stats=stats, mean=mean, std=std, grey=grey)
        self.shift = shift
        self.flip = flip
        self.transpose = transpose
        self.border = border
        self._move = ShiftAndFlip(size, shift, flip=flip, transpose=transpose, border=border)

    def train_steps(self) -> list[Step]:
        return [square(self.size), self._move, self.to_tensor()]

    def eval_steps(self) -> list[Step]:
        return [square(self.size), self.to_tensor()]


class ShiftAndFlip:
    """A random shift and symmetry of a square image, as one look-up by rows and columns; Python's generator.

    Args:
        size: side of the images in pixels.
        shift: largest shift in pixels.
        flip: mirror left and right with probability 0.5.
        transpose: mirror up and down, and swap rows with columns, with probability 0.5 each.
        border: ``reflect`` or ``edge``.

    Raises:
        ValueError: for a shift that is no whole number from 0 to size - 1, or another border.
    """

    def __init__(self, size: int, shift: int, *, flip: bool, transpose: bool, border: str) -> None:
        if type(shift) is not int or not 0 <= shift < size:
            raise ValueError(f"shift is a number of pixels from 0 to size - 1; got {shift!r} at size={size}")
        if border not in ("reflect", "edge"):
            raise ValueError(f"border is reflect or edge; got '{border}'")
        self.size = size
        self.shift = shift
        self.flip = flip
        self.transpose = transpose
        padded = np.pad(np.arange(size), shift, mode="reflect" if border == "reflect" else "edge")
        self.lines = [padded[start : start + size] for start in range(2 * shift + 1)]

    def __call__(self, image: Image.Image) -> np.ndarray:
        """From an image of ``(size, size)`` to bytes ``(size, size)`` or ``(size, size, C)``."""
        rows, columns = self.lines[random.randrange(len(self.lines))], self.lines[random.randrange(len(self.lines))]
        if self.flip and random.random() < 0.5:
            columns = columns[::-1]
        pixels = np.asarray(image)
        if self.transpose:
            if random.random() < 0.5:
                rows = rows[::-1]
            if random.random() < 0.5:
                pixels = pixels.swapaxes(0, 1)
        return pixels.take(rows, axis=0).take(columns, axis=1)

    def __repr__(self) -> str:
        return f"ShiftAndFlip({self.size}, shift={self.shift}, flip={self.flip}, transpose={self.transpose})"

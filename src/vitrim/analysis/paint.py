"""The pixels of a panel: an image on its patch grid, with what happened to the patches painted into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image

from vitrim.analysis.boundary import boundary
from vitrim.analysis.sheet import Panel
from vitrim.analysis.view import View

Pixels = npt.NDArray[np.uint8]

_WHITE = np.array([255.0, 255.0, 255.0])
_FUSED = np.array([250.0, 205.0, 130.0])  # pale amber: neither the white of dropped patches nor a usual photograph
_SEEN = 64  # images of fewer pixels are shown as the squares that they are, larger ones smoothly


@dataclass(frozen=True)
class Canvas:
    """An image of a whole number of pixels per patch, and its patch grid.

    Attributes:
        pixels: ``(H, W, 3)`` uint8.
        grid: rows and columns of patches.
    """

    pixels: Pixels
    grid: tuple[int, int]

    @staticmethod
    def of(image: npt.NDArray[Any], grid: tuple[int, int], side: int) -> Canvas:
        """The image with its longer side as near to ``side`` pixels as the grid lets it.

        Raises:
            ValueError: when it is no image of bytes.
        """
        found = image[..., None] if image.ndim == 2 else image
        if found.ndim != 3 or found.shape[2] not in (1, 3) or found.dtype != np.uint8:
            raise ValueError(f"image must be (H, W) or (H, W, 3) uint8, got {image.dtype} {image.shape}; see unnormalise()")
        pixels = np.repeat(found, 3, axis=2) if found.shape[2] == 1 else found
        longest = max(pixels.shape[:2])
        height, width = (max(round(side * s / longest / g), 1) * g for s, g in zip(pixels.shape[:2], grid, strict=True))
        if (height, width) != pixels.shape[:2]:
            way = Image.Resampling.NEAREST if longest < _SEEN else Image.Resampling.BICUBIC
            pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), way))
        return Canvas(pixels, grid)

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One value per patch, to one per pixel."""
        height, width = self.pixels.shape[0] // self.grid[0], self.pixels.shape[1] // self.grid[1]
        return np.repeat(np.repeat(values.reshape(self.grid + values.shape[1:]), height, axis=0), width, axis=1)

    def patch_colours(self) -> npt.NDArray[np.float64]:
        """``(patches, 3)``: the mean colour of each patch."""
        (rows, columns), (height, width) = self.grid, self.pixels.shape[:2]
        blocks = self.pixels.reshape(rows, height // rows, columns, width // columns, 3)
        return blocks.mean(axis=(1, 3), dtype=np.float64).reshape(-1, 3)


def plain(image: npt.NDArray[Any], grid: tuple[int, int], caption: str = "") -> Callable[[int], Panel]:
    """A panel of the image as it is, for any size in pixels."""
    return lambda side: Panel(Canvas.of(image, grid, side).pixels, grid, None, caption)


def tokens(image: npt.NDArray[Any], view: View, caption: str = "") -> Callable[[int], Panel]:
    """A panel of what the tokens of a stage stand for, for any size in pixels.

    Dropped patches fade to white. Patches of a token of several get the mean colour of all of them, or a tint where one token
    takes what the others leave (EViT); tokens of one patch keep the image.
    """
    lines = boundary(view)

    def draw(side: int) -> Panel:
        canvas = Canvas.of(image, view.grid, side)
        pixels = canvas.pixels.astype(np.float64)
        if view.kind == "fuse":
            pixels = _fade(pixels, canvas.spread(view.several), _FUSED, 0.8)
        else:
            means = group_means(canvas.patch_colours(), view.group)
            pixels = np.where(canvas.spread(view.several)[..., None], canvas.spread(means), pixels)
        pixels = _fade(pixels, canvas.spread(view.group < 0), _WHITE, 0.88)
        return Panel(pixels.round().astype(np.uint8), view.grid, lines, caption)

    return draw


def heat(
    values: npt.NDArray[Any],
    grid: tuple[int, int],
    limits: tuple[float, float],
    colours: str,
    *,
    image: npt.NDArray[Any] | None = None,
    caption: str = "",
) -> Callable[[int], Panel]:
    """A panel of one value per patch in a colour map of matplotlib, over a pale grey version of the image when there is one.

    Raises:
        ValueError: for an unknown colour map.
    """
    if colours not in colormaps:
        raise ValueError(f"matplotlib has no colour map '{colours}'; take cividis, viridis or magma")
    low, high = limits
    scaled = ((values - low) / (high - low if high > low else 1.0)).clip(0, 1)
    painted = np.asarray(colormaps[colours](scaled))[:, :3] * 255

    def draw(side: int) -> Panel:
        canvas = Canvas.of(np.zeros((*grid, 3), np.uint8) if image is None else image, grid, side)
        pixels = canvas.spread(painted)
        if image is not None:
            grey = canvas.pixels.mean(axis=2, keepdims=True)
            pixels = 0.75 * pixels + 0.25 * grey
        return Panel(pixels.round().clip(0, 255).astype(np.uint8), grid, None, caption)

    return draw


def group_means(colours: npt.NDArray[np.float64], group: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """``(patches, 3)``: of each patch the mean colour of all patches of its token; its own where it is dropped."""
    there = group >= 0
    counts = np.maximum(np.bincount(group[there], minlength=1), 1)
    means = np.stack([np.bincount(group[there], weights=colours[there, i], minlength=1) / counts for i in range(3)], axis=1)
    return np.where(there[:, None], means[np.maximum(group, 0)], colours)


def _fade(
    pixels: npt.NDArray[np.float64], where: npt.NDArray[Any], colour: npt.NDArray[np.float64], strength: float
) -> npt.NDArray[np.float64]:
    return np.where(where[..., None], pixels * (1 - strength) + colour * strength, pixels)

"""Saliency maps laid over images, in panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from torch import Tensor

from vitrim.analysis.sheet import Page, sheet

COLOURS = "viridis"  # even in lightness, and told apart with every common form of colour blindness


def overlay(
    image: np.ndarray, mask: Tensor | None, *, colours: str = COLOURS, power: float = 1.0, opacity: float = 0.5
) -> np.ndarray:
    """Lay a saliency map over an image: scaled to 0 to 1, resized bilinearly, coloured, blended.

    Args:
        image: ``(H, W, 3)`` uint8.
        mask: ``(height, width)`` over the patch grid; None leaves the image. A constant one is 0 everywhere.
        colours: a colour map of matplotlib; ``jet`` is that of the papers' figures.
        power: exponent of the map before it is scaled; 4 shows the peaks alone.
        opacity: share of the colours.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ValueError: for an unknown colour map, or values that are not numbers.
    """
    if colours not in colormaps:
        raise ValueError(f"matplotlib has no colour map '{colours}'; take viridis, cividis, magma, or jet as in the papers")
    if mask is None:
        return image
    values = mask.detach().double().cpu() ** power
    if not bool(values.isfinite().all()):
        raise ValueError("the saliency map holds values that are not numbers; check the model's output for these images")
    span = values.max() - values.min()
    scaled = (values - values.min()) / torch.where(span > 0, span, 1.0)
    size = (image.shape[0], image.shape[1])
    big = F.interpolate(scaled[None, None], size=size, mode="bilinear", align_corners=False)[0, 0].clamp(0, 1)
    colour = np.asarray(colormaps[colours](big.numpy()))[..., :3] * 255
    return ((1 - opacity) * image + opacity * colour).round().clip(0, 255).astype(np.uint8)


def panels(
    images: Sequence[np.ndarray],
    found: Mapping[str, Tensor | None],
    *,
    colours: str = COLOURS,
    power: float = 1.0,
    size: int = 160,
    title: str = "",
    captions: Sequence[str] = (),
) -> Page:
    """A sheet of overlays: modes in rows, images in columns, the names beside and above.

    Args:
        images: ``(H, W, 3)`` uint8, as the model sees them.
        found: ``(B, height, width)`` for each mode, as :func:`vitrim.analysis.masks.masks` gives them.
        colours: see :func:`overlay`.
        power: see :func:`overlay`.
        size: the shorter side of each picture in pixels; larger images stay as they are.
        title: over everything.
        captions: over the columns.
    """
    pixels = [_enlarge(image, size) for image in images]
    rows = []
    for name, masks in found.items():
        cells = [overlay(p, None if masks is None else masks[i], colours=colours, power=power) for i, p in enumerate(pixels)]
        rows.append(("images" if masks is None else name, cells))
    return sheet(rows, captions, title=title)


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    factor = -(-size // min(image.shape[:2]))
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1) if factor > 1 else image

"""Boxes around selected patches or attended regions, and what is done with them: cut out and enlarged, or blackened.

All on tensors, whatever box each image has: nothing waits for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_boxes(index: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The box around selected patches, as published for GLSim: the last selected row and column are not in it.

    It begins where the first selected row and column begin and ends where the last ones begin, but it is one patch wide and
    high at least.

    Args:
        index: ``(B, k)`` patches, row by row.
        grid: rows and columns of patches.
        size: height and width of the image in pixels.

    Returns:
        ``(B, 4)`` top, left, bottom and right in pixels; bottom and right are outside.
    """
    places = (index.div(grid[1], rounding_mode="floor"), index % grid[1])
    starts: list[Tensor] = []
    stops: list[Tensor] = []
    for place, cells, extent in zip(places, grid, size, strict=True):
        patch = extent // cells
        starts.append(patch * place.amin(dim=1))
        stops.append(torch.maximum(patch * place.amax(dim=1), starts[-1] + patch).clamp_max(extent))
    return torch.stack([*starts, *stops], dim=1)


def attention_boxes(maps: Tensor, size: tuple[int, int], threshold: float | Tensor, padding: float) -> Tensor:
    """The box around where an attention map is high (WS-DAN, CAL).

    Args:
        maps: ``(B, 1, h, w)``.
        size: height and width of the image in pixels.
        threshold: share of the maximum of the map, one number or ``(B,)``.
        padding: what is added on all sides, as a share of the image.

    Returns:
        ``(B, 4)`` top, left, bottom and right in pixels; bottom and right are outside.
    """
    high = attended(maps, size, threshold)[:, 0]
    starts: list[Tensor] = []
    stops: list[Tensor] = []
    for dim, extent in ((2, size[0]), (1, size[1])):
        there = high.any(dim=dim)
        pixels = torch.arange(extent, device=maps.device)
        first = torch.where(there, pixels, extent).amin(dim=1)
        last = torch.where(there, pixels, -1).amax(dim=1)
        starts.append((first - padding * extent).long().clamp_min(0))
        stops.append((last + padding * extent).long().clamp_max(extent))
    return torch.stack([*starts, *stops], dim=1)


def attended(maps: Tensor, size: tuple[int, int], threshold: float | Tensor) -> Tensor:
    """``(B, 1, height, width)`` bool: where the enlarged map ``(B, 1, h, w)`` reaches a share of its maximum."""
    least = maps.amax(dim=(1, 2, 3)) * threshold
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True) >= least.view(-1, 1, 1, 1)


def cut(images: Tensor, boxes: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Cut boxes out and resize them, bilinear with aligned corners.

    Args:
        images: ``(B, channels, height, width)``.
        boxes: ``(B, 4)`` top, left, bottom and right in pixels.
        size: height and width of the result; those of the images when None.
    """
    height, width = size or (images.shape[2], images.shape[3])
    rows = _resampled(images, boxes[:, 0], boxes[:, 2], height)
    return _resampled(rows.transpose(2, 3), boxes[:, 1], boxes[:, 3], width).transpose(2, 3)


def black(images: Tensor, boxes: Tensor) -> Tensor:
    """The images ``(B, channels, height, width)`` with zeros in the boxes ``(B, 4)``."""
    rows = torch.arange(images.shape[2], device=images.device).view(1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, -1)
    top, left, bottom, right = boxes.view(-1, 4, 1, 1).unbind(dim=1)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return images.masked_fill(inside.unsqueeze(1), 0)


def _resampled(x: Tensor, start: Tensor, stop: Tensor, count: int) -> Tensor:
    """Rows ``start (B,)`` to ``stop (B,)`` of ``x (B, c, H, W)`` as ``count`` rows between their centres, ends included."""
    last = (stop - start - 1).clamp_min(0).unsqueeze(1)
    place = torch.arange(count, device=x.device) * (last.float() / max(count - 1, 1))
    lower = torch.minimum(place.long(), last)
    share = (place - lower).to(x.dtype)[:, None, :, None]

    def rows(index: Tensor) -> Tensor:
        index = (index + start.unsqueeze(1)).clamp(0, x.shape[2] - 1)
        return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    return rows(lower) * (1 - share) + rows(torch.minimum(lower + 1, last)) * share

"""How far attention reaches, how even it is, how many directions features take, and how far they lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrim.core.tokenmap import TokenMap


def grid_positions(grid: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """``(height * width, 2)`` float32: row and column of each patch."""
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    return torch.cartesian_prod(rows, columns)


def attention_distance(
    weights: Tensor, grid: tuple[int, int], prefix: int, origin: TokenMap | None = None, mass: Tensor | None = None
) -> Tensor:
    """Mean distance between a patch and what it attends to (Dosovitskiy et al., arXiv:2010.11929, figure 7).

    Tokens without a place (class token, registers, prompts, tokens of a cache) do not count, and the weights of the others are
    normalised again. A merged token lies at the mean of its patches and asks as often as it has patches; dropped ones do not ask.

    Args:
        weights: ``(B, heads, n, n)`` after the softmax.
        grid: rows and columns of patches.
        prefix: leading tokens that are no patches.
        origin: map from the original tokens, prefix included, to these; None when nothing was reduced.
        mass: ``(B, n)`` patches that each token stands for; computed from ``origin`` when None.

    Returns:
        ``(B, heads)`` in patches; times the patch size it is in pixels.

    Raises:
        ValueError: when the tokens are not those of the grid.
    """
    batch, _, n, _ = weights.shape
    place = F.pad(grid_positions(grid, weights.device), (0, 0, prefix, 0)).expand(batch, -1, -1)
    if origin is None:
        origin = TokenMap.identity(batch, place.shape[1], weights.device)
    if origin.n != place.shape[1] or origin.m != n:
        raise ValueError(
            f"{n} tokens of {place.shape[1]} originals, but the map is from {origin.n} to {origin.m}: give the map that belongs "
            "to these tokens"
        )
    mass = patches_of(origin, prefix) if mass is None else mass
    # Where a token is, by what it is made of; a medoid lies where its patch is.
    place = origin.pool(place)
    far = torch.cdist(place, place).to(weights.dtype)
    keys = (mass > 0).to(weights.dtype)
    seen = weights * keys[:, None, None, :]
    reach = (seen * far[:, None]).sum(dim=-1) / seen.sum(dim=-1).clamp_min(torch.finfo(weights.dtype).tiny)
    share = mass.to(weights.dtype)[:, None]
    return (reach * share).sum(dim=-1) / share.sum(dim=-1).clamp_min(torch.finfo(weights.dtype).tiny)


def attention_entropy(weights: Tensor, mass: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """Entropy of the attention rows, averaged over the queries: 0 for one token alone, ``log n`` for all alike.

    Where a token stands for s patches, its weight counts as s equal shares and its row s times, so that merging equal tokens
    changes nothing: the entropy is that of the attention lifted to the patches.

    Args:
        weights: ``(B, heads, n, n)`` after the softmax.
        mass: ``(B, n)`` original tokens that each one stands for; one where it is 0 (tokens of a cache, prompts).
        valid: ``(B, n)`` bool, False for padding.

    Returns:
        ``(B, heads)`` in nats.
    """
    size = torch.ones_like(weights[:, 0, 0]) if mass is None else torch.where(mass > 0, mass, 1.0).to(weights.dtype)
    spread = torch.special.entr(weights) + weights * size.log()[:, None, None, :]
    asks = size if valid is None else size * valid
    return (spread.sum(dim=-1) * asks[:, None]).sum(dim=-1) / asks.sum(dim=-1)[:, None]


def patches_of(origin: TokenMap, prefix: int = 0) -> Tensor:
    """``(B, m)``: how many original tokens behind the first ``prefix`` each token stands for."""
    ones = torch.ones(origin.batch, origin.n, device=origin.device)
    ones[:, :prefix] = 0
    return origin.mass(ones)


def effective_rank(features: Tensor, present: Tensor | None = None, centred: bool = False) -> Tensor:
    """Effective rank of the tokens of each image (Roy and Vetterli, EUSIPCO 2007): exp of the entropy of the singular values.

    From 1 (all tokens on one line) to ``min(n, C)``. Collapsed tokens all share one direction, their mean, which also
    dominates healthy features; ``centred`` takes it away.

    Args:
        features: ``(B, n, C)``.
        present: ``(B, n)`` bool: the tokens that count; all when None.
        centred: subtract the mean over the tokens first.

    Returns:
        ``(B,)`` float64; 0 where all features are zero.
    """
    x = features.double() if features.device.type != "mps" else features.cpu().double()
    if present is not None:
        real = present.to(x.device, x.dtype).unsqueeze(-1)
        x = x * real
        mean = x.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp_min(1)
        x = x - mean * real if centred else x
    elif centred:
        x = x - x.mean(dim=1, keepdim=True)
    small = x @ x.mT if x.shape[1] <= x.shape[2] else x.mT @ x
    # Squares of the singular values: rounding leaves those that are zero at about 1e-16 of the largest, on either side.
    squares = torch.linalg.eigvalsh(small)
    largest = squares[:, -1:].clamp_min(0)
    values = torch.where(squares > 1e-13 * largest, squares, 0.0).sqrt()
    total = values.sum(dim=1, keepdim=True)
    share = values / torch.where(total > 0, total, 1.0)
    return torch.where(total.squeeze(1) > 0, torch.special.entr(share).sum(dim=1).exp(), 0.0)


@dataclass(frozen=True)
class Distances:
    """How far the rows of one batch lie apart.

    Attributes:
        dist: mean Euclidean distance of two different rows.
        dist_norm: the same after the distances were scaled to 0 to 1 (smallest to largest).
        l2_norm: mean length of a row.
    """

    dist: float
    dist_norm: float
    l2_norm: float


def distances(rows: Tensor) -> Distances:
    """Distances and norms of ``(R, C)`` rows; as published, a mean is a sum over its non-zero entries."""
    rows = rows.detach().float()
    # Not by a matrix product, which leaves the distance of a row to itself above zero.
    far = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").double()
    span = far.max() - far.min()
    scaled = (far - far.min()) / torch.where(span > 0, span, 1.0)
    return Distances(_mean_of_some(far), _mean_of_some(scaled), float(rows.double().norm(dim=1).mean()))


def pooled_rows(
    features: Tensor, prefix: int, grid: tuple[int, int], present: Tensor | None = None, side: int = 7, keep: int = 1
) -> Tensor:
    """Features of a batch as rows, the patches averaged over a coarse grid.

    Args:
        features: ``(B, prefix + patches, C)``.
        prefix: leading tokens that are no patches.
        grid: rows and columns of patches.
        present: ``(B, prefix + patches)`` bool: tokens that count in the averages; cells without any give no row.
        side: of the coarse grid.
        keep: how many of the leading tokens are rows themselves.

    Returns:
        ``(R, C)``, ``R = B * (keep + side * side)`` when all tokens are present.
    """
    batch, _, width = features.shape
    head = features[:, : min(keep, prefix)].reshape(-1, width)
    cells = features[:, prefix:].transpose(1, 2).reshape(batch, width, *grid)
    if present is None:
        pooled = F.adaptive_avg_pool2d(cells, side)
        both = torch.cat([features[:, : min(keep, prefix)], pooled.flatten(2).transpose(1, 2)], dim=1)
        return both.reshape(-1, width)
    real = present[:, prefix:].reshape(batch, 1, *grid).to(cells.dtype)
    share = F.adaptive_avg_pool2d(real, side)
    pooled = F.adaptive_avg_pool2d(cells * real, side) / share.clamp_min(torch.finfo(cells.dtype).tiny)
    rows = pooled.flatten(2).transpose(1, 2).reshape(-1, width)
    return torch.cat([head, rows[share.flatten() > 0]])


def pooled_attention_rows(weights: Tensor, side: int = 7) -> Tensor:
    """``(B * side * side, heads)``: attention ``(B, heads, n, n)`` as a picture of ``heads`` channels, averaged coarsely."""
    return F.adaptive_avg_pool2d(weights, side).flatten(2).transpose(1, 2).reshape(-1, weights.shape[1])


def _mean_of_some(values: Tensor) -> float:
    return float(values.sum() / (values != 0).sum().clamp_min(1))

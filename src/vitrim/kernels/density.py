"""Density-peak clustering with k nearest neighbours, and k-medoids, for batches of token sets."""

from __future__ import annotations

import torch
from torch import Tensor


def pairwise(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Euclidean distances ``(B, n, d), (B, m, d) -> (B, n, m)`` in float32 at least."""
    x = x if x.dtype == torch.float64 else x.float()
    y = x if y is None else y.to(x.dtype)
    return torch.cdist(x, y)


def density_peaks(x: Tensor, k: int, neighbors: int, noise: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """DPC-KNN: centres are dense and far from anything denser; every token joins its nearest centre.

    Args:
        x: ``(B, n, d)`` tokens.
        k: number of clusters.
        neighbors: nearest neighbours (the token itself included) that define the density.
        noise: ``(B, n)`` or ``(n,)``, added to the densities to break ties.
        valid: ``(B, n)`` bool; padding is never a centre and does not count as a neighbour.

    Returns:
        ``(B, k)`` centre indices by descending score, and ``(B, n)`` cluster ids.

    Raises:
        ValueError: with fewer tokens than neighbours.
    """
    n = x.shape[1]
    if n < neighbors:
        raise ValueError(f"dpcknn: density from {neighbors} neighbours needs as many tokens, there are {n}; lower k_neighbors")
    distance = pairwise(x) / x.shape[-1] ** 0.5
    if valid is not None:
        # Further away than anything real, so that padding is nobody's neighbour.
        distance = torch.where(valid.unsqueeze(1), distance, distance.amax(dim=(1, 2), keepdim=True) + 1)
    nearest = distance.topk(neighbors, dim=-1, largest=False).values
    density = (-(nearest**2).mean(dim=-1)).exp() + noise
    if valid is not None:
        density = density * valid
    farthest = distance.amax(dim=(1, 2))[:, None, None]
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    gap = torch.where(denser, distance, farthest).amin(dim=-1)
    centres = (gap * density).topk(k, dim=-1).indices
    to_centres = distance.gather(1, centres.unsqueeze(-1).expand(-1, -1, n))
    group = to_centres.argmin(dim=1)
    own = torch.arange(k, device=x.device).expand_as(centres)
    return centres, group.scatter(1, centres, own)


def farthest_first(distance: Tensor, k: int, start: Tensor) -> Tensor:
    """``k`` tokens, each the one with the largest distance to any token chosen before it.

    The official initialisation takes the largest *maximum* distance, not the usual largest minimum.

    Args:
        distance: ``(B, n, n)``.
        k: number of tokens.
        start: ``(B,)`` int64 first token.
    """
    chosen = [start]
    reach = distance.gather(2, start.view(-1, 1, 1).expand(-1, distance.shape[1], 1)).squeeze(2)
    taken = torch.zeros_like(reach, dtype=torch.bool).scatter(1, start.unsqueeze(1), True)
    for _ in range(k - 1):
        nxt = reach.masked_fill(taken, 0.0).argmax(dim=1)
        chosen.append(nxt)
        taken = taken.scatter(1, nxt.unsqueeze(1), True)
        reach = torch.maximum(reach, distance.gather(2, nxt.view(-1, 1, 1).expand(-1, distance.shape[1], 1)).squeeze(2))
    return torch.stack(chosen, dim=1)


def k_medoids(distance: Tensor, centres: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Alternate between assignment and medoids, as the official code does.

    A medoid minimises its weight times its distance to *all* tokens among the members of its cluster; an empty cluster
    falls back to token 0.

    Args:
        distance: ``(B, n, n)``.
        centres: ``(B, k)`` initial medoids.
        weight: ``(B, n)`` weight of each candidate.
        iterations: number of rounds.

    Returns:
        ``(B, k)`` medoids and ``(B, n)`` cluster ids.
    """
    n = distance.shape[1]
    cost = (distance * weight.unsqueeze(-1)).sum(dim=-1)
    ids = torch.arange(centres.shape[1], device=distance.device).view(1, -1, 1)

    def nearest(c: Tensor) -> Tensor:
        return distance.gather(2, c.unsqueeze(1).expand(-1, n, -1)).argmin(dim=-1)

    for _ in range(iterations):
        member = nearest(centres).unsqueeze(1) == ids
        centres = torch.where(member, cost.unsqueeze(1), n * 1e6).argmin(dim=-1)
    return centres, nearest(centres)

"""Density-peak clustering with k nearest neighbours, and k-medoids, for batches of token sets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def pairwise(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Euclidean distances ``(B, n, d), (B, m, d) -> (B, n, m)`` in float32 at least."""
    x = x if x.dtype == torch.float64 else x.float()
    y = x if y is None else y.to(x.dtype)
    return torch.cdist(x, y)


# Up to this many tokens all distances are kept; beyond, blocks of rows are computed whenever they are needed, since a matrix of
# n x n numbers would soon outgrow everything else that a model holds.
_KEPT = 1024
_ROWS = 256


class Distances:
    """Euclidean distances among the tokens ``x (B, n, d)`` of each image, read in blocks of rows."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._whole = pairwise(x) if x.shape[1] <= _KEPT else None

    def blocks(self) -> Iterator[Tensor]:
        """``(B, rows, n)``, from the first row to the last."""
        if self._whole is not None:
            yield self._whole
        else:
            for rows in self.x.split(_ROWS, dim=1):
                yield pairwise(rows, self.x)

    def nearest(self, index: Tensor) -> Tensor:
        """``(B, n)``: for every token, which of the tokens ``index (B, k)`` is nearest."""
        if self._whole is not None:
            return self._whole.gather(1, index.unsqueeze(-1).expand(-1, -1, self.x.shape[1])).argmin(dim=1)
        chosen = _take(self.x, index)
        return torch.cat([pairwise(chosen, rows).argmin(dim=1) for rows in self.x.split(_ROWS, dim=1)], dim=1)

    def row(self, index: Tensor) -> Tensor:
        """``(B, n)``: distances of the tokens ``index (B,)``."""
        if self._whole is not None:
            return self._whole.gather(1, index.view(-1, 1, 1).expand(-1, 1, self.x.shape[1])).squeeze(1)
        return pairwise(_take(self.x, index.unsqueeze(1)), self.x).squeeze(1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def density_peaks(x: Tensor, k: int, neighbors: int, noise: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """DPC-KNN: centres are dense and far from anything denser; every token joins its nearest centre.

    Args:
        x: ``(B, n, d)`` tokens.
        k: number of clusters.
        neighbors: nearest neighbours (the token itself included) that define the density; all tokens where there are fewer.
        noise: ``(B, n)`` or ``(n,)``, added to the densities to break ties.
        valid: ``(B, n)`` bool; padding is never a centre and does not count as a neighbour.

    Returns:
        ``(B, k)`` centre indices by descending score, and ``(B, n)`` cluster ids.

    """
    n, dim = x.shape[1], x.shape[2]
    neighbors = min(neighbors, n)
    distances = Distances(x)
    farthest = _largest([block.amax(dim=(1, 2)) for block in distances.blocks()]) / dim**0.5
    beyond = farthest + 1

    def blocks() -> Iterator[Tensor]:
        for block in distances.blocks():
            scaled = block / dim**0.5
            # Further away than anything real, so that padding is nobody's neighbour.
            yield scaled if valid is None else torch.where(valid.unsqueeze(1), scaled, beyond)

    nearest = torch.cat([block.topk(neighbors, dim=-1, largest=False).values for block in blocks()], dim=1)
    density = (-(nearest**2).mean(dim=-1)).exp() + noise
    if valid is not None:
        density = density * valid
        farthest = farthest + ~valid.all(dim=1).view(-1, 1, 1)
    denser = density.unsqueeze(1)
    gap = torch.cat(
        [
            torch.where(denser > own.unsqueeze(2), block, farthest).amin(dim=-1)
            for block, own in zip(blocks(), density.split(_ROWS if n > _KEPT else n, dim=1), strict=True)
        ],
        dim=1,
    )
    centres = (gap * density).topk(k, dim=-1).indices
    group = distances.nearest(centres)
    if valid is not None:
        group = group * valid  # padding is equally far from all centres
    return centres, group.scatter(1, centres, torch.arange(k, device=x.device).expand_as(centres))


def _largest(values: list[Tensor]) -> Tensor:
    """``(B, 1, 1)`` largest of ``(B,)`` each."""
    return torch.stack(values).amax(dim=0).view(-1, 1, 1)


def farthest_first(distances: Distances, k: int, start: Tensor) -> Tensor:
    """``k`` tokens, each the one with the largest distance to any token chosen before it.

    The official initialisation takes the largest *maximum* distance, not the usual largest minimum.

    Args:
        distances: of all tokens.
        k: number of tokens.
        start: ``(B,)`` int64 first token.

    Returns:
        ``(B, k)`` indices in the order of their choice.
    """
    chosen = [start]
    reach = distances.row(start)
    taken = torch.zeros_like(reach, dtype=torch.bool).scatter(1, start.unsqueeze(1), True)
    for _ in range(k - 1):
        nxt = reach.masked_fill(taken, 0.0).argmax(dim=1)
        chosen.append(nxt)
        taken = taken.scatter(1, nxt.unsqueeze(1), True)
        reach = torch.maximum(reach, distances.row(nxt))
    return torch.stack(chosen, dim=1)


def k_medoids(distances: Distances, centres: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Alternate between assignment and medoids, as the official code does.

    A medoid minimises its weight times its distance to *all* tokens among the members of its cluster; an empty cluster
    falls back to token 0.

    Args:
        distances: of all tokens.
        centres: ``(B, k)`` initial medoids.
        weight: ``(B, n)`` weight of each candidate.
        iterations: number of rounds.

    Returns:
        ``(B, k)`` medoids and ``(B, n)`` cluster ids.
    """
    batch, k = centres.shape
    n = weight.shape[1]
    parts = weight.split(_ROWS if n > _KEPT else n, dim=1)
    blocks = zip(distances.blocks(), parts, strict=True)
    # A token's cost does not depend on its cluster: sort once, then the medoid is the first member in this order.
    order = torch.cat([(block * part.unsqueeze(-1)).sum(dim=-1) for block, part in blocks], dim=1).argsort(dim=1, stable=True)
    place = torch.arange(n, device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, place)
    group = distances.nearest(centres)
    for _ in range(iterations):
        first = rank.new_full((batch, k), n).scatter_reduce(1, group, rank, reduce="amin")
        centres = torch.where(first < n, order.gather(1, first.clamp_max(n - 1)), 0)
        group = distances.nearest(centres)
    return centres, group

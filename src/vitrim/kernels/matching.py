"""Bipartite matching of tokens (ToMe, arXiv:2210.09461): every answer is a group id per token."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unit(metric: Tensor) -> Tensor:
    """Rows of length one, in float32 at least; a zero row stays zero."""
    metric = metric if metric.dtype == torch.float64 else metric.float()
    return metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def bipartite(metric: Tensor, r: int, prefix: int = 0) -> Tensor:
    """Merge ``r`` tokens at even positions into their most similar token at an odd position.

    Prefix tokens neither move nor receive. The new order is: prefix, unmerged even tokens (ascending; by descending
    similarity when there is no prefix, as in the official code), odd tokens.

    Args:
        metric: ``(B, n, d)``, compared by cosine similarity.
        r: tokens to remove, at most ``(n - prefix) // 2``.
        prefix: leading tokens that are protected.

    Returns:
        ``(B, n)`` int64 group ids in ``[0, n - r)``.

    Raises:
        ValueError: when ``r`` is more than half of the tokens.
    """
    batch, n, _ = metric.shape
    if not 0 <= r <= (n - prefix) // 2:
        raise ValueError(f"bipartite matching can remove at most half of the {n - prefix} tokens, not {r}")
    even_prefix, odd_prefix = math.ceil(prefix / 2), prefix // 2
    rows = unit(metric)
    scores = rows[:, ::2] @ rows[:, 1::2].transpose(1, 2)
    if prefix:
        scores[:, :even_prefix] = -math.inf
        scores[:, :, :odd_prefix] = -math.inf
    best, target = scores.max(dim=-1)
    evens, odds = scores.shape[1], scores.shape[2]
    order = best.argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter(1, order, torch.arange(evens, device=metric.device).expand_as(order))
    moved = place < r
    # In the new order, the odd token o comes after all evens that stay.
    odd = torch.arange(evens - r, evens - r + odds, device=metric.device)
    if prefix:
        stay = (~moved).cumsum(dim=1) + (odd_prefix - 1)
        stay[:, :even_prefix] = torch.arange(0, prefix, 2, device=metric.device)
        odd[:odd_prefix] = torch.arange(0, odd_prefix, device=metric.device) * 2 + 1
    else:
        stay = place - r
    even = torch.where(moved, target + (evens - r), stay)
    # Even and odd positions take turns; of an odd number of tokens the last one is even.
    pairs = torch.stack([even[:, :odds], odd.expand(batch, -1)], dim=2).flatten(1)
    return pairs if evens == odds else torch.cat([pairs, even[:, odds:]], dim=1)


def every_kth(metric: Tensor, k: int) -> Tensor:
    """Merge every token into the most similar of the tokens at positions ``k-1, 2k-1, ...``; a remainder is dropped.

    Args:
        metric: ``(B, n, d)``, compared by cosine similarity.
        k: stride of the tokens that stay; 1 or less keeps all.

    Returns:
        ``(B, n)`` int64 group ids in ``[0, n // k)``, -1 for the ``n % k`` trailing tokens.
    """
    batch, n, _ = metric.shape
    if k <= 1:
        return torch.arange(n, device=metric.device).expand(batch, n)
    whole = n - n % k
    rows = unit(metric[:, :whole]).view(batch, n // k, k, -1)
    targets = rows[:, :, -1]
    nearest = (rows[:, :, :-1].flatten(1, 2) @ targets.transpose(1, 2)).argmax(dim=-1)
    own = torch.arange(n // k, device=metric.device).expand(batch, -1)
    group = torch.cat([nearest.view(batch, n // k, k - 1), own.unsqueeze(-1)], dim=-1).flatten(1)
    return torch.nn.functional.pad(group, (0, n - whole), value=-1)


def random_split(metric: Tensor, r: int, noise: Tensor) -> Tensor:
    """Merge ``r`` random tokens into their most similar one among the rest.

    Args:
        metric: ``(B, n, d)``, compared by cosine similarity.
        r: tokens to remove.
        noise: ``(B, n)``; the tokens with the smallest values are removed, the order of the others is that of the noise.

    Returns:
        ``(B, n)`` int64 group ids in ``[0, n - r)``.
    """
    order = noise.argsort(dim=1)
    sources, targets = order[:, :r], order[:, r:]
    rows = unit(metric)

    def take(index: Tensor) -> Tensor:
        return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))

    nearest = (take(sources) @ take(targets).transpose(1, 2)).argmax(dim=-1)
    own = torch.arange(targets.shape[1], device=metric.device).expand_as(targets)
    return torch.empty_like(order).scatter(1, targets, own).scatter(1, sources, nearest)

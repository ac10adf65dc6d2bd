"""What recognisers choose by: products of attention matrices, mutual attention, similarity to the class token.

Choices are discrete and carry no gradient. Of a product of matrices one row is computed where one is asked for: a row vector
goes through the matrices from the last block to the first, in O(n^2) for each, and no two matrices are multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrim.core.tokens import Attention

METRICS = ("cos", "l1", "l2")


@torch.no_grad()
def product(attentions: Sequence[Attention], row: int | None = 0) -> Tensor:
    """The product of the attention matrices, last block first, head by head (TransFG).

    Args:
        attentions: of the blocks, first block first.
        row: the row that is wanted; None for all.

    Returns:
        ``(B, heads, n)``, or ``(B, heads, n, n)`` for all rows.
    """
    with _full_precision(attentions[0]):
        rows, rest = _start(attentions, row)
        for attention in reversed(rest):
            rows = _sum(part @ weights for part, weights in _along(rows, attention))
    return rows if row is None else rows.squeeze(-2)


@torch.no_grad()
def rollout(attentions: Sequence[Attention], row: int | None = 0) -> Tensor:
    """Attention rollout (Abnar and Zuidema, arXiv:2005.00928): half attention, half identity, through the mean over heads.

    Args:
        attentions: of the blocks, first block first.
        row: the row that is wanted; None for all.

    Returns:
        ``(B, n)``, or ``(B, n, n)`` for all rows.
    """
    last = attentions[-1]
    with _full_precision(last):
        rows = torch.eye(last.keys.shape[2], device=last.keys.device).expand(len(last.keys), -1, -1)
        rest = attentions
        if row is not None:
            given = last.from_token(row).float().mean(dim=1, keepdim=True)
            rows, rest = (given + rows[:, row : row + 1]) / (given.sum(dim=-1, keepdim=True) + 1), attentions[:-1]
        for attention in reversed(rest):
            passed = [_mixed(part, weights.mean(dim=1)) for part, weights in _along(rows, attention)]
            rows = _sum(weighted for weighted, _ in passed) + torch.cat([kept for _, kept in passed], dim=-1)
    return rows if row is None else rows.squeeze(-2)


@torch.no_grad()
def parts(attentions: Sequence[Attention], prefix: int = 1) -> Tensor:
    """``(B, heads)``: for every head the patch token that the class token draws most from through all blocks (TransFG)."""
    return product(attentions)[..., prefix:].argmax(dim=-1) + prefix


@torch.no_grad()
def mutual(attention: Attention) -> Tensor:
    """``(B, n)`` mutual attention of each token and the class token (FFVT), the class token included.

    What the class token gives to a token, times the share of what it receives that comes from it, each a mean over heads. The
    second needs the logits of one key alone, with the softmax over the queries.
    """
    with _full_precision(attention):
        given = attention.from_token(0).float().mean(dim=1)
        logits = (attention.queries.float() @ attention.keys[:, :, 0].float().unsqueeze(-1)).squeeze(-1) * attention.scale
        if attention.bias is not None:
            logits = logits + attention.bias[..., 0].float()
        if attention.valid is not None:
            logits = logits.masked_fill(~attention.valid[:, None], -torch.inf)
        return logits.softmax(dim=-1).mean(dim=1) * given


@torch.no_grad()
def similarity(cls: Tensor, patches: Tensor, metric: str = "cos") -> Tensor:
    """``(B, n)`` similarity of patch tokens ``(B, n, C)`` to the class token ``(B, C)``; larger is more alike (GLSim).

    Args:
        cls: class tokens.
        patches: patch tokens.
        metric: ``cos``, or minus the mean absolute (``l1``) or squared (``l2``) difference of the channels.
    """
    cls, patches = cls.float().unsqueeze(1), patches.float()
    if metric == "cos":
        return F.cosine_similarity(cls, patches, dim=-1, eps=1e-8)
    gap = cls - patches
    return -(gap.abs() if metric == "l1" else gap.square()).mean(dim=-1)


def anywhere(batch: int, patches: int, k: int, training: bool, device: torch.device) -> Tensor:
    """``(B, k)`` patch indices at random; in evaluation fixed ones, spread by the golden ratio, for every image."""
    if training:
        return torch.randint(patches, (batch, k), device=device)
    steps = torch.arange(1, k + 1, dtype=torch.float64, device=device) * 0.6180339887498949
    return (torch.frac(steps) * patches).long().expand(batch, k)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens ``index (B, k)`` of ``x (B, n, C)``."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _full_precision(attention: Attention) -> AbstractContextManager[object]:
    return torch.autocast(attention.queries.device.type, enabled=False)


def _start(attentions: Sequence[Attention], row: int | None) -> tuple[Tensor, Sequence[Attention]]:
    """The rows of the last matrix, and the attentions that are left."""
    last = attentions[-1]
    if row is None:
        eye = torch.eye(last.keys.shape[2], device=last.keys.device)
        return eye.expand(*last.keys.shape[:2], -1, -1), attentions
    return last.from_token(row).float().unsqueeze(-2), attentions[:-1]


def _along(rows: Tensor, attention: Attention) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces ``rows (..., r, c)`` and ``weights (B, heads, c, n)`` of as many queries as fit a cache, in float32."""
    q, k = attention.queries.float(), attention.keys.float()
    n = k.shape[2]
    chunk = max(16, min(n, 2**22 // (q.shape[0] * q.shape[1] * n)))
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        bias = attention.bias
        if bias is not None and bias.shape[-2] != 1:
            bias = bias[..., start:stop, :]
        yield rows[..., start:stop], Attention(q[:, :, start:stop], k, k, attention.scale, bias).weights()


def _mixed(part: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """A step of the rollout for some queries: what passes on through attention ``(B, r, n)``, and what stays ``(B, r, c)``."""
    part = part / (mean.sum(dim=-1) + 1).unsqueeze(-2)
    return part @ mean, part


def _sum(pieces: Iterator[Tensor]) -> Tensor:
    total = next(pieces)
    for piece in pieces:
        total = total + piece
    return total

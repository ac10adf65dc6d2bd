"""Attention followed through the blocks: products of attention matrices, roll-out, mutual attention weights.

Everything is computed by rows, a vector times one attention matrix at a time: no two matrices are multiplied unless all rows are
asked for, and of a matrix as many rows stand in memory as a cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention

METRICS = ("cos", "l1", "l2")


@torch.no_grad()
def product(attentions: Sequence[Attention], row: int | None = 0) -> Tensor:
    """The product of the attention matrices, last block first, head by head (TransFG, arXiv:2103.07976).

    Args:
        attentions: of the blocks, first block first.
        row: the row that is wanted; None for all.

    Returns:
        ``(B, heads, n)``, or ``(B, heads, n, n)`` for all rows.
    """
    last = attentions[-1]
    with _full_precision(last.queries):
        if row is None:
            rows = torch.eye(last.keys.shape[2], device=last.keys.device).expand(*last.keys.shape[:2], -1, -1)
            rest = attentions
        else:
            rows, rest = last.from_token(row).float().unsqueeze(-2), attentions[:-1]
        for attention in reversed(rest):
            rows = _sum(rows[..., part] @ weights for part, weights in _rows_of(attention))
    return rows if row is None else rows.squeeze(-2)


@torch.no_grad()
def rollout(
    attentions: Sequence[Attention | Tensor],
    row: int | None = 0,
    steps: Sequence[TokenMap | None] = (),
    masses: Sequence[Tensor | None] = (),
) -> Tensor:
    """Attention roll-out (Abnar and Zuidema, arXiv:2005.00928), across reductions too.

    The product of ``(A + I) / row sum`` over the blocks, A the mean over the heads. At a reduction, a row is handed down from
    each new token to what it was made of, in proportion.

    Args:
        attentions: of the blocks, first block first: what :class:`vitrim.core.tap.Tap` saw, or weights ``(B, heads, n, n)``.
        row: the token asked for, usually the class token; None for all.
        steps: for each block, the map from the tokens in the attention of the block before to those in its own; None where
            they are the same. The first is not read. May be left out when nothing is reduced.
        masses: for each block, ``(B, n)`` patches that its tokens stand for: parts of a mean count by them.

    Returns:
        ``(B, n)`` over the tokens in the attention of the first block, or ``(B, m, n)`` for all rows of the last block. A row
        sums to one, but for the share of tokens that were made of none (those of a cross-layer cache, prompts).

    Raises:
        ValueError: without blocks, or when the tokens of two blocks do not match and no map says why.
    """
    if not attentions:
        raise ValueError("a roll-out needs the attention of one block or more")
    last = _keys_of(attentions[-1])
    with _full_precision(last):
        rows, rest = torch.eye(last.shape[-2], device=last.device).expand(len(last), -1, -1), len(attentions)
        if row is not None:
            # The first step for one row takes no matrix.
            rows, rest = _first_row(attentions[-1], row, rows), rest - 1
        for i in reversed(range(rest)):
            step = steps[i + 1] if i + 1 < min(len(steps), len(attentions)) else None
            n = _keys_of(attentions[i]).shape[-2]
            if step is not None and (step.n, step.m) == (n, rows.shape[-1]):
                rows = _hand_down(rows, step, masses[i + 1] if i + 1 < len(masses) else None)
            if rows.shape[-1] != n:
                raise ValueError(
                    f"the roll-out meets {rows.shape[-1]} tokens after {n}, and no map says what became of them: "
                    "choose blocks between two reductions"
                )
            passed = [_mixed(rows[..., part], weights) for part, weights in _rows_of(attentions[i])]
            rows = _sum(weighted for weighted, _ in passed) + torch.cat([kept for _, kept in passed], dim=-1)
    return rows if row is None else rows.squeeze(-2)


@torch.no_grad()
def mutual(attention: Attention, cls: int = 0, compat: Literal["ffvt", "clca"] = "ffvt") -> Tensor:
    """Mutual attention weights (FFVT, arXiv:2107.02341): what the class token gives to a token, times what that gives back.

    The second factor is a softmax over the *queries* of the logits for the class token. O(n), no attention matrix.

    Args:
        attention: of a block.
        cls: position of the class token.
        compat: ``ffvt`` averages that softmax over the heads, as the paper; ``clca`` averages the logits before it.

    Returns:
        ``(B, n)`` float32, the class token included.
    """
    with _full_precision(attention.queries):
        logits = asked_of(attention, cls)
        back = logits.softmax(dim=-1).mean(dim=1) if compat == "ffvt" else logits.mean(dim=1).softmax(dim=-1)
        return back * attention.from_token(cls).float().mean(dim=1)


def asked_of(attention: Attention, token: int) -> Tensor:
    """``(B, heads, n)`` float32: the logits of every query for one key; ``-inf`` for padding. O(n)."""
    key = attention.keys[:, :, token].float().unsqueeze(-1)
    logits = (attention.queries.float() @ key).squeeze(-1) * attention.scale
    if attention.bias is not None:
        logits = logits + attention.bias.expand(*attention.bias.shape[:-1], attention.keys.shape[2])[..., token].float()
    if attention.valid is not None:
        logits = logits.masked_fill(~attention.valid[:, None], -torch.inf)
    return logits


def similarity(whole: Tensor, patches: Tensor, metric: str = "cos") -> Tensor:
    """``(B, n)`` similarity of patch tokens to one token; larger is more alike (GLSim, arXiv:2407.12891).

    Args:
        whole: ``(B, C)`` the token that stands for the image, usually the class token.
        patches: ``(B, n, C)`` patch tokens.
        metric: ``cos``, or minus the mean absolute (``l1``) or squared (``l2``) difference of the channels.
    """
    whole, patches = whole.float().unsqueeze(1), patches.float()
    if metric == "cos":
        return F.cosine_similarity(whole, patches, dim=-1, eps=1e-8)
    gap = whole - patches
    return -(gap.abs() if metric == "l1" else gap.square()).mean(dim=-1)


def _full_precision(like: Tensor) -> AbstractContextManager[object]:
    return torch.autocast(like.device.type, enabled=False)


def _keys_of(given: Attention | Tensor) -> Tensor:
    """A tensor ``(B, ..., n, any)`` with as many tokens as are attended to."""
    return given.mT if isinstance(given, Tensor) else given.keys


def _rows_of(given: Attention | Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some queries at a time, and their weights ``(B, heads, c, n)`` in float32: as many as fit a cache."""
    if isinstance(given, Tensor):
        yield slice(None), given.float()
        return
    q, k = given.queries.float(), given.keys.float()
    n = k.shape[2]
    chunk = max(16, min(n, 2**22 // (q.shape[0] * q.shape[1] * n)))
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        bias = given.bias
        if bias is not None and bias.shape[-2] != 1:
            bias = bias[..., part, :]
        yield part, Attention(q[:, :, part], k, k, given.scale, bias).weights()


def _first_row(given: Attention | Tensor, row: int, eye: Tensor) -> Tensor:
    """``(B, 1, n)`` a row of ``(A + I) / row sum``."""
    weights = given[:, :, row].float() if isinstance(given, Tensor) else given.from_token(row).float()
    mean = weights.mean(dim=1, keepdim=True)
    return (mean + eye[:, row : row + 1]) / (mean.sum(dim=-1, keepdim=True) + 1)


def _mixed(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """A step of the roll-out for some queries: what passes on through attention ``(B, r, n)``, and what stays ``(B, r, c)``."""
    mean = weights.mean(dim=1)
    rows = rows / (mean.sum(dim=-1) + 1).unsqueeze(-2)
    return rows @ mean, rows


def _hand_down(rows: Tensor, step: TokenMap, mass: Tensor | None) -> Tensor:
    """``(B, r, m)`` over new tokens to ``(B, r, n)`` over what they were made of."""
    parts = step.dense(mass).to(rows.dtype).abs()
    return rows @ (parts / parts.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny))


def _sum(pieces: Iterator[Tensor]) -> Tensor:
    total = next(pieces)
    for piece in pieces:
        total = total + piece
    return total

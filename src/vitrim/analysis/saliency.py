"""Where a vision transformer looks: roll-out, attention of the class token, mutual attention weights, similarity to the whole.

Everything that asks for one token's row is computed by rows: a vector times one attention matrix at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Attention roll-out (Abnar and Zuidema, arXiv:2005.00928): the product of ``(A + I) / row sum`` over the blocks.

    Args:
        weights: of each block in order ``(B, heads, n, n)``, or ``(B, n, n)`` averaged over the heads.

    Returns:
        ``(B, n, n)``: how much of each token of the first block (columns) is in each one after the last (rows).

    Raises:
        ValueError: without blocks, or when their numbers of tokens differ; :func:`rollout_row` crosses reductions.
    """
    total: Tensor | None = None
    for matrix in weights:
        layer = _residual(matrix)
        if total is not None and layer.shape[-1] != total.shape[-2]:
            raise ValueError(
                f"the roll-out meets {layer.shape[-1]} tokens after {total.shape[-2]}: choose blocks between two reductions, or "
                "take rollout_row with the maps between the blocks"
            )
        total = layer if total is None else layer @ total
    if total is None:
        raise ValueError("a roll-out needs the attention of one block or more")
    return total


def rollout_row(
    attentions: Sequence[Attention | Tensor],
    row: int = 0,
    steps: Sequence[TokenMap | None] = (),
    masses: Sequence[Tensor | None] = (),
) -> Tensor:
    """One row of the roll-out, across reductions too: O(n) memory beside one attention matrix.

    From the last block to the first, the row is multiplied with the block's ``(A + I) / row sum``; at a reduction it is handed
    down from each new token to what it was made of, in proportion.

    Args:
        attentions: of the blocks in order: what :class:`vitrim.core.tap.Tap` saw, or weights ``(B, heads, n, n)``.
        row: the token asked for, usually the class token.
        steps: for each block, the map from the tokens in the attention of the block before to those in its own; None where
            they are the same. The first is not read. May be left out when nothing is reduced.
        masses: for each block, ``(B, n)`` patches that its tokens stand for: parts of a mean count by them.

    Returns:
        ``(B, n)`` over the tokens in the attention of the first block. It sums to one, but for the share of tokens that were made
        of none (those of a cross-layer cache, prompts).

    Raises:
        ValueError: without blocks, or when the tokens of two blocks do not match and no map says why.
    """
    found: Tensor | None = None
    step: TokenMap | None = None
    for i in reversed(range(len(attentions))):
        given = attentions[i]
        matrix = _residual(given.weights() if isinstance(given, Attention) else given)
        if found is None:
            found = matrix[:, row]
        else:
            if step is not None and (step.n, step.m) == (matrix.shape[-1], found.shape[-1]):
                found = _hand_down(found, step, masses[i] if i < len(masses) else None)
            if found.shape[-1] != matrix.shape[-1]:
                raise ValueError(
                    f"the roll-out meets {found.shape[-1]} tokens after {matrix.shape[-1]}, and no map says what became of them: "
                    "choose blocks between two reductions"
                )
            found = (found.unsqueeze(1) @ matrix).squeeze(1)
        step = steps[i] if i < len(steps) else None
    if found is None:
        raise ValueError("a roll-out needs the attention of one block or more")
    return found


def dual_rollout(first: Tensor, second: Tensor, row: int = 0) -> Tensor:
    """Roll-out of two blocks that need not be neighbours, for one token: ``(B, 1, n)``; weights as in :func:`rollout`."""
    return rollout_row([first, second], row).unsqueeze(1)


def class_attention(attention: Attention, cls: int | None, prefix: int = 0) -> Tensor:
    """``(B, n)``: attention of the class token, averaged over the heads; without one, the mean that a token receives.

    Args:
        attention: of a block.
        cls: position of the class token, or None.
        prefix: leading tokens that are no patches; not among the queries of the mean.
    """
    if cls is not None:
        return attention.from_token(cls).mean(dim=1)
    weights = attention.weights().mean(dim=1)
    asked = weights[:, prefix:]
    if attention.valid is None:
        return asked.mean(dim=1)
    real = attention.valid[:, prefix:, None].to(weights.dtype)
    return (asked * real).sum(dim=1) / real.sum(dim=1).clamp_min(1)


def maws(attention: Attention, cls: int = 0, compat: Literal["clca", "ffvt"] = "ffvt") -> Tensor:
    """Mutual attention weights (FFVT, arXiv:2107.02341): what the class token gives to a token, times what that gives back.

    The second factor is a softmax over the *queries* of the logits for the class token. O(n), no attention matrix.

    Args:
        attention: of a block.
        cls: position of the class token.
        compat: ``ffvt`` averages that softmax over the heads, as the paper; ``clca`` averages the logits before it.

    Returns:
        ``(B, n)``, the class token included.
    """
    logits = asked_of(attention, cls)
    back = logits.softmax(dim=-1).mean(dim=1) if compat == "ffvt" else logits.mean(dim=1).softmax(dim=-1)
    return attention.from_token(cls).mean(dim=1) * back.to(attention.values.dtype)


def asked_of(attention: Attention, token: int) -> Tensor:
    """``(B, heads, n)`` float32: the logits of every query for one key; ``-inf`` for padding. O(n)."""
    key = attention.keys[:, :, token].unsqueeze(-1)
    logits = ((attention.queries * attention.scale) @ key).squeeze(-1).float()
    if attention.bias is not None:
        logits = logits + attention.bias.expand(*attention.bias.shape[:-1], attention.keys.shape[2])[..., token].float()
    if attention.valid is not None:
        logits = logits.masked_fill(~attention.valid[:, None], -torch.inf)
    return logits


def gls(tokens: Tensor, prefix: int, cls: int | None) -> Tensor:
    """Similarity of the whole and its parts (GLSim, arXiv:2407.12891): ``(B, n - prefix)`` cosines.

    Args:
        tokens: ``(B, n, C)`` after the final norm.
        prefix: leading tokens that are no patches.
        cls: position of the class token; the mean of the patches stands for the whole without one.
    """
    patches = tokens[:, prefix:]
    whole = patches.mean(dim=1) if cls is None else tokens[:, cls]
    return F.cosine_similarity(patches.float(), whole.float().unsqueeze(1), dim=-1)


def _residual(weights: Tensor) -> Tensor:
    """``(A + I) / row sum`` of the mean over the heads, ``(B, n, n)``, in float32 at least."""
    matrix = weights.mean(dim=1) if weights.dim() == 4 else weights
    if matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.float()
    matrix = matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return matrix / matrix.sum(dim=-1, keepdim=True)


def _hand_down(row: Tensor, step: TokenMap, mass: Tensor | None) -> Tensor:
    """``(B, m)`` over new tokens to ``(B, n)`` over what they were made of."""
    parts = step.dense(mass).to(row.dtype).abs()
    parts = parts / parts.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
    return (row.unsqueeze(1) @ parts).squeeze(1)

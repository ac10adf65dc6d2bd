"""What recognisers choose: parts, random patches, and the tokens at chosen places.

Choices are discrete and carry no gradient; what they are made by is in :mod:`vitrim.core.rollout`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrim.core.rollout import product
from vitrim.core.tokens import Attention


@torch.no_grad()
def parts(attentions: Sequence[Attention], prefix: int = 1) -> Tensor:
    """``(B, heads)``: for every head the patch token that the class token draws most from through all blocks (TransFG)."""
    return product(attentions)[..., prefix:].argmax(dim=-1) + prefix


def anywhere(batch: int, patches: int, k: int, training: bool, device: torch.device) -> Tensor:
    """``(B, k)`` patch indices at random; in evaluation fixed ones, spread by the golden ratio, for every image."""
    if training:
        return torch.randint(patches, (batch, k), device=device)
    steps = torch.arange(1, k + 1, dtype=torch.float64, device=device) * 0.6180339887498949
    return (torch.frac(steps) * patches).long().expand(batch, k)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens ``index (B, k)`` of ``x (B, n, C)``."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

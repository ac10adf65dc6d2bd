"""The softmax of the soft methods."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(logits: Tensor, dim: int) -> Tensor:
    """As ``logits.softmax(dim)``; without gradients it overwrites ``logits``.

    The weights of a soft map are the largest tensor of a model on long sequences, and two of them would set its peak memory.
    """
    if torch.is_grad_enabled() or logits.dtype in (torch.float16, torch.bfloat16):
        return logits.softmax(dim=dim)
    logits.sub_(logits.amax(dim=dim, keepdim=True)).exp_()
    return logits.div_(logits.sum(dim=dim, keepdim=True))

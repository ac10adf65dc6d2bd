"""Visual prompt tuning: learned tokens beside the patches."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.registry import TUNERS
from vitrim.core.tuner import Ground, Tuner


@TUNERS.register("vpt")
class VisualPrompts(Tuner):
    """Learned tokens that every block attends to: one set at the first block (shallow), or a new set at each (deep).

    The prompts are behind the other tokens, which attention does not notice, get no position, and are never reduced. What
    they have become is thrown away after the last block (shallow) or after each (deep).

    Args:
        length: number of prompts.
        deep: a new set in every block.
        drop: dropout of deep prompts.
    """

    paper: ClassVar[str] = "Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv:2203.12119"

    def __init__(self, *, length: int = 100, deep: bool = False, drop: float = 0.1) -> None:
        super().__init__()
        check_length(length, "prompts")
        self.length, self.deep, self.drop = length, deep, drop

    def setup(self, ground: Ground) -> None:
        self.prompts = new_prompts(ground, ground.depth if self.deep else 1, self.length)

    def guest_count(self, layer: int) -> int:
        return self.length

    def guests(self, layer: int, left: Tensor | None, batch: int) -> Tensor | None:
        if self.deep:
            return F.dropout(self.prompts[layer].expand(batch, -1, -1), self.drop, self.training)
        return self.prompts[0].expand(batch, -1, -1) if layer == 0 else left


def new_prompts(ground: Ground, sets: int, length: int) -> nn.Parameter:
    """``(sets, length, C)`` uniform in the range of the patch embedding's Xavier start, as the paper has it."""
    projection = next((m for m in ground.model.modules() if isinstance(m, nn.Conv2d)), None)
    inputs = ground.dim if projection is None else projection.weight[0].numel()
    limit = (6.0 / (inputs + ground.dim)) ** 0.5
    return nn.Parameter(torch.empty(sets, length, ground.dim).uniform_(-limit, limit))


def check_length(length: object, what: str) -> None:
    """Refuse a number of tokens that is none."""
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"length is a number of {what}, 1 or more; got {length!r}")

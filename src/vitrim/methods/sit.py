"""SiT: self-slimmed token aggregation."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens
from vitrim.methods._init import init_linear
from vitrim.methods._plans import as_asked
from vitrim.methods._softmax import softmax


@METHODS.register("sit")
class SiT(Reducer):
    """A small network gives every token K logits; each new token is the softmax-weighted average over the tokens."""

    family = "soft"
    site = "before"
    paper = "Zong et al., Self-slimmed Vision Transformer (SiT), ECCV 2022, arXiv:2111.12624"
    official_prefix = "prefix"
    needs = ("parameters", "patch count")

    def setup(self, dim: int, keep: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stage that leaves no token has nothing to draw
            last = nn.Linear(dim // 2, keep)
        self.weight = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU(), last)
        self.scale = nn.Parameter(torch.ones(1, 1, 1))
        init_linear(self)

    def plan(self, course: Course) -> dict[int, int]:
        return as_asked(course)

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        share = softmax(self.scale * self.weight(t.patches), dim=1)
        return TokenMap.soft(share.transpose(1, 2)).with_prefix(t.prefix)

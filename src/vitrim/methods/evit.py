"""EViT: keep the attended tokens, fuse the others into one."""

from __future__ import annotations

import torch

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens


@METHODS.register("evit")
class EViT(Reducer):
    """Keep the K patch tokens with the highest class attention; sum the others, weighted by it, into one fused token.

    The weights are the raw attention values, not normalised over the fused tokens, as in the paper's code. The fused
    token comes last and competes with the patches at the next stage. A stage therefore leaves K + 1 tokens.
    """

    family = "prune"
    paper = "Liang et al., Not All Patches are What You Need (EViT), ICLR 2022, arXiv:2202.07800"
    needs = ("attention", "class token")
    without_cls = "scores and weights are the mean attention that a token receives"

    def plan(self, course: Course) -> dict[int, int]:
        counts: dict[int, int] = {}
        for block, target in course:
            if target < course.left:
                counts[block] = course.left = course.at_least(target) + 1
        return counts

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        score = t.class_attention().mean(dim=1)[:, t.prefix :]
        kept = score.topk(keep - 1, dim=1, sorted=False).indices.sort(dim=1).values
        rank = torch.arange(keep - 1, device=kept.device).expand_as(kept)
        group = torch.full(score.shape, keep - 1, dtype=torch.int64, device=kept.device).scatter(1, kept, rank)
        weight = torch.where(group == keep - 1, score, torch.ones_like(score))
        return TokenMap.merge(group, keep, weight).with_prefix(t.prefix)

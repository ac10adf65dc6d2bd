"""ToMe: merge the most similar pairs of tokens."""

from __future__ import annotations

import torch

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens
from vitrim.kernels.matching import bipartite
from vitrim.methods._metric import metric_of
from vitrim.methods._settings import check_metric


@METHODS.register("tome")
class ToMe(Reducer):
    """Merge the r most similar pairs between tokens at even and at odd positions, by their keys.

    A stage can remove at most half of the tokens. How many it removes follows the *nominal* counts of the schedule, as
    in the published protocol: ``keep(rate=0.25)`` asks for 49, 12, 3 of 196 tokens and gets 98, 61, 52.

    Args:
        proportional: add log-sizes to the attention logits of later blocks.
        metric: what similarity compares: ``keys`` (averaged over heads) or ``tokens``.
    """

    family = "merge"
    weighted = True
    paper = "Bolya et al., Token Merging (ToMe), ICLR 2023, arXiv:2210.09461"
    needs = ("attention",)

    def __init__(self, *, proportional: bool = True, metric: str = "keys") -> None:
        super().__init__()
        self.proportional = proportional
        self.metric = check_metric(metric)

    @property
    def reads_attention(self) -> bool:
        return self.metric == "keys"

    def plan(self, course: Course) -> dict[int, int]:
        counts: dict[int, int] = {}
        for block, target in course:
            removed = min(course.reference - target, course.left // 2)
            if removed > 0:
                course.left -= removed
                counts[block] = course.left
        return counts

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        with torch.no_grad():
            group = bipartite(metric_of(t, self.metric), t.x.shape[1] - t.prefix - keep, t.prefix)
        return TokenMap.merge(group, keep + t.prefix)

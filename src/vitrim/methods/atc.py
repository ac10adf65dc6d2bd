"""ATC: agglomerative token clustering."""

from __future__ import annotations

from torch import Tensor

from vitrim.core.reducer import Clusterer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course, R
from vitrim.core.tokens import Tokens
from vitrim.kernels.clustering import LINKAGES, agglomerative
from vitrim.methods._metric import metric_of
from vitrim.methods._settings import check_compat, check_metric


@METHODS.register("atc")
class ATC(Clusterer):
    """Merge tokens bottom-up by hierarchical clustering of their keys until K are left.

    Args:
        linkage: distance of two clusters: single, complete or average.
        proportional: add log-sizes to the attention logits of later blocks.
        weighted: average by token sizes; without it every stage starts with sizes of one, as the published DeiT models do
            when proportional attention is off.
        metric: what distances compare (cosine): ``keys`` (averaged over heads) or ``tokens``.
        compat: ``official`` removes only r - 1 tokens a block under an ``r`` schedule on models with a class token, as
            the published off-the-shelf code does.
    """

    paper = "Haurum et al., Agglomerative Token Clustering (ATC), ECCV 2024, arXiv:2409.11923"
    needs = ("attention",)

    def __init__(
        self,
        *,
        linkage: str = "average",
        proportional: bool = True,
        weighted: bool = True,
        metric: str = "keys",
        compat: str = "paper",
    ) -> None:
        super().__init__()
        if linkage not in LINKAGES:
            raise ValueError(f"linkage must be one of {', '.join(LINKAGES)}; got {linkage!r}")
        self.linkage = linkage
        self.proportional = proportional
        self.weighted = weighted
        self.metric = check_metric(metric)
        self.compat = check_compat(compat)

    @property
    def reads_attention(self) -> bool:
        return self.metric == "keys"

    def plan(self, course: Course) -> dict[int, int]:
        if self.compat != "official" or not isinstance(course.schedule, R):
            return super().plan(course)
        counts: dict[int, int] = {}
        removals = course.schedule.removals(course.depth)
        for block, _ in course:
            if removals[block] > 1:
                counts[block] = course.left = course.left + 1 - min(removals[block], course.left)
        return counts

    def features(self, t: Tokens) -> Tensor:
        return metric_of(t, self.metric)[:, t.prefix :]

    def assign(self, features: Tensor, k: int) -> Tensor:
        return agglomerative(features, k, linkage=self.linkage)

"""K-Medoids: cluster tokens and keep the medoids."""

from __future__ import annotations

import torch

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens
from vitrim.kernels.density import Distances, farthest_first, k_medoids
from vitrim.methods._settings import check_compat


@METHODS.register("kmedoids")
class KMedoids(Reducer):
    """Cluster tokens around medoids and keep the medoids as they are, one per cluster.

    Medoids start at the tokens that received most attention in the block before, and candidates are weighted by it.

    Args:
        iterations: rounds of assignment and medoid update.
        equal_weight: ignore attention: start from a random token and continue with far ones.
        compat: ``official`` draws that random token from NumPy's global generator.
    """

    family = "merge"
    site = "before"
    fewest = 1
    paper = "Marin et al., Token Pooling in Vision Transformers, WACV 2023, arXiv:2110.03860"
    needs = ("attention",)
    without_cls = "the same; it uses the attention received from all tokens"

    def __init__(self, *, iterations: int = 3, equal_weight: bool = False, compat: str = "paper") -> None:
        super().__init__()
        self.iterations = iterations
        self.equal_weight = equal_weight
        self.compat = check_compat(compat)

    @property
    def reads_attention(self) -> bool:
        return not self.equal_weight

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        x = t.patches
        batch, n, _ = x.shape
        with torch.no_grad():
            distances = Distances(x)
            if self.equal_weight:
                weight = torch.ones(batch, n, device=x.device)
                centres = farthest_first(distances, keep, self._start(t, n).expand(batch))
            else:
                weight = t.attention.received().sum(dim=1)[:, t.prefix :].float()
                centres = weight.topk(keep, dim=1).indices
            centres, group = k_medoids(distances, centres, weight, self.iterations)
        return TokenMap.select(centres, n, group=group).with_prefix(t.prefix)

    def _start(self, t: Tokens, n: int) -> torch.Tensor:
        """One random token, the same for all images of the batch."""
        if self.compat == "official":
            import numpy as np

            return torch.tensor([int(np.random.choice(np.arange(n), 1)[0])], device=t.x.device)
        return (t.uniform(1) * n).long()

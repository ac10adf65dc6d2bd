"""DPC-KNN: density-peak clustering."""

from __future__ import annotations

import torch
from torch import nn

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens
from vitrim.kernels.density import density_peaks
from vitrim.methods._init import init_linear
from vitrim.methods._settings import check_compat


@METHODS.register("dpcknn")
class DPCKNN(Reducer):
    """Cluster tokens around density peaks and average each cluster with learned weights.

    Args:
        k_neighbors: nearest neighbours that define the density.
        equal_weight: average with equal weights instead of learned ones; no parameters then.
        compat: ``official`` draws the tie-breaking noise (1e-6) of the densities from the global generator, also in
            evaluation; ``paper`` uses the same noise for every image and every run.
    """

    family = "merge"
    site = "before"
    fewest = 1
    paper = "Zeng et al., Token Clustering Transformer, CVPR 2022, arXiv:2204.08680; Du et al., DPC-KNN, 2016"
    carriers = "protected"
    official_prefix = "prefix"
    needs = ("parameters",)

    def __init__(self, *, k_neighbors: int = 5, equal_weight: bool = False, compat: str = "paper") -> None:
        super().__init__()
        self.k_neighbors = k_neighbors
        self.equal_weight = equal_weight
        self.compat = check_compat(compat)

    def setup(self, dim: int, keep: int) -> None:
        if not self.equal_weight:
            self.score = nn.Linear(dim, 1)
            init_linear(self)

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        x = t.patches
        batch, n, _ = x.shape
        with torch.no_grad():
            noise = torch.rand(batch, n, device=x.device) if self.compat == "official" else t.uniform(n)
            valid = None if t.valid is None else t.valid[:, t.prefix :]
            # Tokens that are each other's nearest often tie in float32; float64 settles most of the choices as published.
            features = x.double() if self.compat == "official" else x
            _, group = density_peaks(features, keep, self.k_neighbors, noise * 1e-6, valid)
        raw = x.new_ones(batch, n) if self.equal_weight else self.score(x).squeeze(-1).exp()
        exact = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
        total = exact.new_zeros(batch, keep).scatter_add(1, group, exact) + 1e-6
        weight = exact / total.gather(1, group)
        return TokenMap.merge(group, keep, weight).with_prefix(t.prefix)

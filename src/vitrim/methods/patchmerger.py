"""PatchMerger: learned queries attend to the tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens
from vitrim.methods._plans import as_asked
from vitrim.methods._softmax import softmax


@METHODS.register("patchmerger")
class PatchMerger(Reducer):
    """K learned queries attend to the layer-normalised tokens; the new tokens are their averages."""

    family = "soft"
    site = "before"
    paper = "Renggli et al., Learning to Merge Tokens in Vision Transformers (PatchMerger), arXiv:2202.12015"
    official_prefix = "prefix"
    needs = ("parameters", "patch count")

    def setup(self, dim: int, keep: int) -> None:
        self.queries = nn.Parameter(torch.randn(keep, dim))
        self.norm = nn.LayerNorm(dim)

    def plan(self, course: Course) -> dict[int, int]:
        return as_asked(course)

    def value(self, patches: Tensor) -> Tensor:
        return self.norm(patches)

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        logits = self.queries @ self.norm(t.patches).transpose(1, 2)
        return TokenMap.soft(softmax(logits, dim=-1)).with_prefix(t.prefix)

"""Top-K: keep the tokens that the class token attends to most."""

from __future__ import annotations

from torch import Tensor

from vitrim.core.reducer import Scorer
from vitrim.core.registry import METHODS
from vitrim.core.tokens import Tokens


@METHODS.register("topk")
class TopK(Scorer):
    """Keep the K patch tokens with the highest attention from the class token, averaged over heads."""

    paper = "Haurum et al., Which Tokens to Use?, ICCVW 2023, arXiv:2308.04657"
    needs = ("attention", "class token")
    without_cls = "scores by the mean attention that a token receives"

    def score(self, t: Tokens) -> Tensor:
        return t.class_attention().mean(dim=1)[:, t.prefix :]

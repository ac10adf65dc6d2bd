"""Bilinear pooling of projected tokens."""

from __future__ import annotations

from torch import Tensor, nn

from vitrim.core.cache import Place
from vitrim.core.registry import HEADS
from vitrim.heads.blp import BilinearPooling


@HEADS.register("lrblp")
class LowRankBilinearPooling(BilinearPooling):
    """Bilinear pooling (``blp``) of the tokens after a linear projection to ``dim`` channels.

    Args:
        dim: channels after the projection; ``dim`` squared features reach the classifier.
    """

    paper = "Kong and Fowlkes, Low-rank Bilinear Pooling for Fine-Grained Classification, CVPR 2017, arXiv:1611.05109"

    def __init__(self, *, dim: int = 64) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is 1 or more; got {dim}")
        self.dim = dim

    def setup(self, place: Place) -> None:
        super().setup(place)
        self.reduce = nn.Linear(place.dim, self.dim)

    def channels(self, dim: int) -> int:
        return self.dim

    def project(self, x: Tensor) -> Tensor:
        return self.reduce(x)

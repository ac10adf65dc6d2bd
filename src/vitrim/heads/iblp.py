"""Bilinear pooling with a matrix square root."""

from __future__ import annotations

from torch import Tensor

from vitrim.core.registry import HEADS
from vitrim.heads._roots import second_moment_root
from vitrim.heads.blp import BilinearPooling


@HEADS.register("iblp")
class ImprovedBilinearPooling(BilinearPooling):
    """Bilinear pooling (``blp``) with the matrix square root of the second moment before the signed roots.

    The root is in float32 whatever the precision of the model, and on the smaller side of the token matrix.

    Args:
        steps: Newton-Schulz steps.
    """

    paper = "Lin and Maji, Improved Bilinear Pooling with CNNs, BMVC 2017, arXiv:1707.06772"

    def __init__(self, *, steps: int = 10) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps is 1 or more; got {steps}")
        self.steps = steps

    def moment(self, x: Tensor) -> Tensor:
        return second_moment_root(x, self.steps)

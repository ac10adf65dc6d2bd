"""Nothing added: the head, and other parts of the model that are named, are trained."""

from __future__ import annotations

from vitrim.core.registry import TUNERS
from vitrim.core.tuner import Tuner


@TUNERS.register("linear")
class Linear(Tuner):
    """A frozen model: what is trained are the parts that ``vitrim.tune(train=...)`` names, the head and the class token.

    With ``train=["head"]`` this is the linear probe, which needs no backward pass through the blocks.
    """

    works_in_blocks = False
    mergeable = True

    def merge(self, ground: object) -> None:
        pass

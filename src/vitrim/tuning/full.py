"""Full fine-tuning, as a row of the same table."""

from __future__ import annotations

from vitrim.core.parts import parameters_of
from vitrim.core.registry import TUNERS
from vitrim.core.tuner import Ground, Tuner


@TUNERS.register("full")
class Full(Tuner):
    """Everything is trained."""

    works_in_blocks = False
    mergeable = True

    def trained(self, ground: Ground) -> set[str]:
        return parameters_of(ground, "all")

    def merge(self, ground: Ground) -> None:
        pass

"""BitFit: train the biases."""

from __future__ import annotations

from typing import ClassVar

from vitrim.core.parts import parameters_of
from vitrim.core.registry import TUNERS
from vitrim.core.tuner import Ground, Tuner


@TUNERS.register("bitfit")
class BitFit(Tuner):
    """All biases of the model are trained."""

    paper: ClassVar[str] = "Ben Zaken et al., BitFit, ACL 2022, arXiv:2106.10199"
    works_in_blocks = False
    mergeable = True

    def trained(self, ground: Ground) -> set[str]:
        return parameters_of(ground, "biases")

    def merge(self, ground: Ground) -> None:
        pass

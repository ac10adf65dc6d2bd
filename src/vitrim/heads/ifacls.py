"""The aggregation of the class token over all blocks (IFA)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from vitrim.core.cache import Place
from vitrim.core.registry import HEADS
from vitrim.heads.cla import CrossLayerAggregation


@HEADS.register("ifacls")
class IntermediateFeatureAggregation(CrossLayerAggregation):
    """Classify by one learned mixture of the class token after every block, ReLU, layer norm and a linear classifier.

    The older cross-layer head, ``cla(groups=0)``, with all blocks in place of those that reduce. The final norm is not run.
    """

    paper = "Rios et al., Down-Sampling Inter-Layer Adapter (ILA), ECCV Workshops 2024, arXiv:2409.11051 (classifier ifacls)"

    def __init__(self) -> None:
        super().__init__(groups=0)

    def setup(self, place: Place) -> None:
        super().setup(replace(place, locations=range(place.depth)))
        self.norm = nn.LayerNorm(place.dim, eps=1e-12)

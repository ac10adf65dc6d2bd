"""The cross-layer aggregation head of CLCA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.cache import Head, Place
from vitrim.core.registry import HEADS, SpecError


@HEADS.register("cla")
class CrossLayerAggregation(Head):
    """Classify by the class token after every reducing block and after the last one, mixed per channel.

    Batch norm, a depth-wise convolution over the blocks, batch norm, GELU and a linear classifier; in place of the model's
    final norm and head. Training needs batches of two images or more.

    Args:
        groups: outputs per channel of the depth-wise convolution; 0 gives the older head: a linear mix over the blocks, ReLU,
            layer norm and a linear classifier.
    """

    paper = "Rios et al., Cross-Layer Cache Aggregation for Token Reduction (CLCA), ICASSP 2025, arXiv:2501.00243"

    def __init__(self, *, groups: int = 2) -> None:
        super().__init__()
        if not isinstance(groups, int) or groups < 0:
            raise ValueError(f"groups is a number of outputs per channel, 0 or more; got {groups!r}")
        self.groups = groups

    def setup(self, place: Place) -> None:
        if place.cls is None:
            raise SpecError("cla reads the class token, which this model does not have")
        if not place.classes:
            raise SpecError("cla replaces a classifier, and this model has none; create it with num_classes=...")
        self.taps = sorted({*place.locations, place.depth - 1})
        dim, taps = place.dim, len(self.taps)
        if self.groups:
            self.norm = nn.BatchNorm1d(dim)
            self.mix = nn.Conv1d(dim, dim * self.groups, taps, stride=taps, groups=dim)
            self.norm2 = nn.BatchNorm1d(dim * self.groups)
            self.classifier = nn.Conv1d(dim * self.groups, place.classes, 1)
        else:
            self.mix = nn.Linear(taps, 1)
            self.norm = nn.LayerNorm(dim)
            self.classifier = nn.Linear(dim, place.classes)

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(taps), dim=-1)
        if not self.groups:
            return self.norm(F.relu(self.mix(stacked).squeeze(-1)))
        if self.training and len(stacked) < 2:
            raise ValueError("cla normalises over the batch: train with batches of two images or more, also the last one")
        return F.gelu(self.norm2(self.mix(self.norm(stacked)))).squeeze(-1)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(features.unsqueeze(-1)).squeeze(-1) if self.groups else self.classifier(features)

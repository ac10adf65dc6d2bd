"""The mean of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitrim.core.cache import Place
from vitrim.core.registry import HEADS
from vitrim.heads._patches import PatchHead


@HEADS.register("pool")
class MeanPooling(PatchHead):
    """Classify by the mean of the normed patch tokens with one linear layer."""

    paper = "the mean of all tokens, in place of the class token"

    def setup(self, place: Place) -> None:
        super().setup(place)
        self.classifier = nn.Linear(place.dim, place.classes)

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        x, share = self.read(taps)
        return (x * share).sum(dim=1).to(x.dtype)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)

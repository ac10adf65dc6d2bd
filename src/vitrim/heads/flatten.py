"""All tokens side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitrim.core.cache import Place
from vitrim.core.registry import HEADS, SpecError
from vitrim.heads._patches import PatchHead


@HEADS.register("flatten")
class Flatten(PatchHead):
    """Classify by all normed patch tokens side by side with one linear layer: tokens times width times classes parameters.

    It needs the same number of tokens for every image: one image size, and no method that keeps another number for each.

    Args:
        tokens: patch tokens after the last block; None for those of the model's patch grid, which is right where nothing is
            reduced.
    """

    paper = "all tokens side by side, in place of the class token"

    def __init__(self, *, tokens: int | None = None) -> None:
        super().__init__()
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens is 1 or more; got {tokens}")
        self.tokens = tokens

    def setup(self, place: Place) -> None:
        super().setup(place)
        if self.tokens is None and place.grid is None:
            raise SpecError(
                "flatten has parameters for one number of tokens, and this model takes any: write flatten(tokens=196)"
            )
        self.count = self.tokens or (place.grid[0] * place.grid[1] if place.grid else 0)
        self.classifier = nn.Linear(place.dim * self.count, place.classes)

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        x, _ = self.read(taps)
        if x.shape[1] != self.count:
            raise ValueError(f"flatten has parameters for {self.count} tokens and got {x.shape[1]}: flatten(tokens={x.shape[1]})")
        return x.flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)

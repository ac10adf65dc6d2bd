"""Bilinear pooling of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.cache import Place
from vitrim.core.registry import HEADS
from vitrim.heads._patches import PatchHead
from vitrim.heads._roots import full, precise, signed_sqrt


@HEADS.register("blp")
class BilinearPooling(PatchHead):
    """Classify by the second moment of the patch tokens: mean outer product, signed square root, unit length, linear classifier.

    The classifier has width squared inputs: 118 million parameters for 200 classes of a ViT-B. ``lrblp`` is the small form.
    """

    paper = "Lin et al., Bilinear CNN Models for Fine-grained Visual Recognition, ICCV 2015, arXiv:1504.07889"

    def setup(self, place: Place) -> None:
        super().setup(place)
        self.classifier = nn.Linear(self.channels(place.dim) ** 2, place.classes)

    def channels(self, dim: int) -> int:
        """Channels of the tokens that are multiplied, for a model of width ``dim``."""
        return dim

    def project(self, x: Tensor) -> Tensor:
        """The tokens that are multiplied, ``(B, n, channels)``."""
        return x

    def moment(self, x: Tensor) -> Tensor:
        """``(B, channels, channels)`` of tokens ``(B, n, channels)`` that are weighted by the roots of their shares."""
        return x.mT @ x

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        x, share = self.read(taps)
        x = self.project(x)
        with precise(x):
            z = signed_sqrt(self.moment(full(x) * share.sqrt()).flatten(1))
            return F.normalize(z, dim=-1).to(x.dtype)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)

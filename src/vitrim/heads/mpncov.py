"""MPN-COV: the square root of the covariance of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.cache import Place
from vitrim.core.registry import HEADS
from vitrim.heads._patches import PatchHead
from vitrim.heads._roots import covariance, full, precise, trace_root


@HEADS.register("mpncov")
class MatrixPowerCovariance(PatchHead):
    """Classify by the matrix square root of the covariance of the patch tokens, projected to ``dim`` channels.

    Linear projection, batch norm, ReLU, covariance over the tokens, ``steps`` Newton-Schulz steps, the upper triangle, a linear
    classifier. Covariance and root are in float32 whatever the precision of the model.

    Args:
        dim: channels after the projection; ``dim * (dim + 1) / 2`` features reach the classifier.
        steps: Newton-Schulz steps, 2 or more.
    """

    paper = "Li et al., Towards Faster Training of Global Covariance Pooling Networks (iSQRT-COV), CVPR 2018, arXiv:1712.01034"

    def __init__(self, *, dim: int = 64, steps: int = 5) -> None:
        super().__init__()
        if dim < 1 or steps < 2:
            raise ValueError(f"dim is 1 or more and steps 2 or more; got dim={dim}, steps={steps}")
        self.dim, self.steps = dim, steps

    def setup(self, place: Place) -> None:
        super().setup(place)
        self.project = nn.Conv1d(place.dim, self.dim, 1, bias=False)
        nn.init.kaiming_normal_(self.project.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm1d(self.dim)
        self.classifier = nn.Linear(self.dim * (self.dim + 1) // 2, place.classes)

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        x, share = self.read(taps)
        y = F.relu(self.norm(self.project(x.mT))).mT
        with precise(y):
            root = trace_root(covariance(full(y), share), self.steps)
        rows, columns = torch.triu_indices(self.dim, self.dim, device=root.device)
        return root[:, rows, columns].to(x.dtype)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)

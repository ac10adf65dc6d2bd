"""Several labels per image: the asymmetric loss, mAP, and F1 per class and overall."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.tasks.base import LOSSES, TASKS, Metric, State, Task, full
from vitrim.tasks.classify import check_counts


@LOSSES.register("asymmetric")
class Asymmetric(nn.Module):
    """Asymmetric loss (Ridnik et al., ICCV 2021): easy negatives count less, and very easy ones not at all.

    The sum over images and classes, as published, so that it grows with the batch; gradients flow through the weights too.

    Args:
        negative: focusing exponent of absent labels.
        positive: focusing exponent of present labels.
        clip: probability below which an absent label costs nothing.
        eps: smallest probability whose logarithm is taken.
        reduction: ``sum``, or ``mean`` over the images of the batch (still a sum over classes).
    """

    reads = ("labels",)

    def __init__(
        self, *, negative: float = 4.0, positive: float = 0.0, clip: float = 0.05, eps: float = 1e-8, reduction: str = "sum"
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction is sum or mean; got {reduction!r}")
        self.negative, self.positive, self.clip, self.eps, self.reduction = negative, positive, clip, eps, reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits ``(B, C)`` for labels ``(B, C)`` that are 0 or 1."""
        p = full(logits).sigmoid()
        y = target.to(p.dtype)
        absent = (1 - p + self.clip).clamp(max=1)
        likelihood = y * p.clamp(min=self.eps).log() + (1 - y) * absent.clamp(min=self.eps).log()
        if self.negative or self.positive:
            right = p * y + absent * (1 - y)
            likelihood = likelihood * (1 - right) ** (self.positive * y + self.negative * (1 - y))
        total = -likelihood.sum()
        return total / len(logits) if self.reduction == "mean" else total


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of every class, ``(C,)`` in [0, 1]; 0 for a class without positives.

    As published: precision at every positive, summed and divided by (positives + 1e-8). Equal scores are ranked by position,
    the last image first (the reverse of a stable ascending sort), so that the result is defined.

    Args:
        scores: ``(N, C)``, larger for more certain.
        targets: ``(N, C)``, 0 or 1.
    """
    order = scores.argsort(dim=0, stable=True).flip(0)
    present = (targets > 0).gather(0, order).double()
    hits = present.cumsum(0)
    rank = torch.arange(1, len(scores) + 1, device=scores.device, dtype=torch.float64)
    return (present * hits / rank[:, None]).sum(0) / (hits[-1] + 1e-8)


class LabelMetric(Metric):
    """Binary cross-entropy, mAP, CF1 and OF1 (percent) of labels ``(B, C)``.

    mAP is the mean over all classes, one without positives counting 0 (as published). CF1 is the harmonic mean of the mean
    precision and the mean recall of the classes, OF1 that of precision and recall over all predictions; a label is predicted
    where its probability is above one half. Scores of all images are kept: ``N x C`` numbers.
    """

    joined: ClassVar[frozenset[str]] = frozenset({"scores", "targets"})

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        if logits.shape != target.shape:
            raise ValueError(f"labels are rows of 0 and 1, {tuple(logits.shape)} as the logits; got {tuple(target.shape)}")
        self._scores.append(full(logits.detach()))
        self._targets.append(target > 0)

    def state(self) -> State:
        if not self._scores:
            return {"scores": torch.zeros(0, 0), "targets": torch.zeros(0, 0, dtype=torch.bool)}
        self._scores, self._targets = [torch.cat(self._scores)], [torch.cat(self._targets)]
        return {"scores": self._scores[0], "targets": self._targets[0]}

    def load(self, state: State) -> None:
        self._scores, self._targets = [state["scores"]], [state["targets"]]

    def compute(self) -> dict[str, float]:
        state = self.state()
        scores, targets = state["scores"].cpu(), state["targets"].cpu()
        check_counts(len(scores), int(scores.isnan().any(-1).sum()) if len(scores) else 0)
        loss = F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype))
        precision = average_precision(scores, targets)
        predicted = scores > 0  # a probability above one half
        right = (predicted & targets).sum(0).double()
        guessed, present = predicted.sum(0).double(), targets.sum(0).double()
        by_class = _f1((right / guessed.clamp(min=1)).mean(), (right / present.clamp(min=1)).mean())
        overall = _f1(right.sum() / guessed.sum().clamp(min=1), right.sum() / present.sum().clamp(min=1))
        return {"loss": float(loss), "mAP": 100 * float(precision.mean()), "CF1": 100 * by_class, "OF1": 100 * overall}


def _f1(precision: Tensor, recall: Tensor) -> float:
    total = float(precision + recall)
    return 2 * float(precision * recall) / total if total else 0.0


@TASKS.register("multilabel")
class MultiLabel(Task):
    """Several labels per image."""

    targets: ClassVar[str] = "labels"
    default_loss: ClassVar[str] = "asymmetric"
    score: ClassVar[str] = "mAP"
    mixing: ClassVar[bool] = False  # timm's mixup makes one-hot vectors of class indices

    def metric(self) -> LabelMetric:
        return LabelMetric()

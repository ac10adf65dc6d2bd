"""One class per image: cross-entropy and its relatives, top-1 and top-5."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.tasks.base import LOSSES, TASKS, Metric, MetricError, State, Task, accumulator, full


def check_smoothing(smoothing: float) -> float:
    """Refuse a share of label smoothing outside [0, 1).

    Raises:
        ValueError: naming the range.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is the share given to all classes, in [0, 1); got {smoothing}")
    return smoothing


@LOSSES.register("cross_entropy")
class CrossEntropy(nn.Module):
    """Cross-entropy, the mean over the batch.

    Targets are class indices ``(B,)``, or probabilities ``(B, C)`` as mixup makes them.

    Args:
        smoothing: share of the target that is spread over all classes; for index targets only, because the targets of
            mixup are smoothed where they are mixed.
    """

    reads = ("class",)

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = check_smoothing(smoothing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits ``(B, C)``."""
        if target.is_floating_point():
            return F.cross_entropy(full(logits), target.to(full(logits).dtype))
        return F.cross_entropy(full(logits), target, label_smoothing=self.smoothing)


@LOSSES.register("bce")
class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of every class on its own, the mean over batch and classes.

    Targets are class indices ``(B,)`` or degrees in [0, 1] ``(B, C)``: labels, or mixed classes.

    Args:
        smoothing: share of an index target that is spread over all classes.
    """

    reads = ("class", "labels")

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = check_smoothing(smoothing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits ``(B, C)``."""
        logits = full(logits)
        if target.ndim == 1:
            target = F.one_hot(target, logits.shape[-1]) * (1 - self.smoothing) + self.smoothing / logits.shape[-1]
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


@LOSSES.register("focal")
class Focal(nn.Module):
    """Focal loss over classes (Lin et al., 2017): easy images count less.

    The weight ``(1 - p)^gamma`` carries no gradient, and with smoothing ``p`` is the smoothed likelihood, as in the code of
    ILA. Targets are class indices ``(B,)`` or probabilities ``(B, C)``; mixed targets give the mixture of the losses.

    Args:
        gamma: how much less.
        smoothing: share of the target that is spread over all classes.
    """

    reads = ("class",)

    def __init__(self, *, gamma: float = 2.0, smoothing: float = 0.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma is 0 or more; got {gamma}")
        self.gamma = gamma
        self.smoothing = check_smoothing(smoothing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits ``(B, C)``."""
        log_p = full(logits).log_softmax(-1)
        log_p = (1 - self.smoothing) * log_p + self.smoothing * log_p.mean(-1, keepdim=True)
        loss = -((1 - log_p.detach().exp()) ** self.gamma) * log_p
        if target.is_floating_point():
            return (loss * target).sum(-1).mean()
        return loss.gather(-1, target[:, None]).mean()


class Accuracy(Metric):
    """Cross-entropy, top-1 and top-5 in percent, over all images alike.

    Targets are class indices ``(B,)``; of probabilities ``(B, C)`` the largest counts.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._counts: Tensor | None = None

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        logits = full(logits)
        loss = F.cross_entropy(logits, target if target.ndim == 1 else target.to(logits.dtype), reduction="sum")
        if target.ndim > 1:
            target = target.argmax(-1)
        found = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == target[:, None]
        images = found.new_full((), len(target), dtype=torch.int64)
        counts = torch.stack([images, found[:, 0].sum(), found.sum(), logits.isnan().any(-1).sum()])
        loss = loss.to(accumulator(logits.device))
        self._loss = loss if self._loss is None else self._loss + loss
        self._counts = counts if self._counts is None else self._counts + counts

    def state(self) -> State:
        if self._loss is None or self._counts is None:
            return {"loss": torch.zeros((), dtype=torch.float64), "counts": torch.zeros(4, dtype=torch.int64)}
        return {"loss": self._loss, "counts": self._counts}

    def load(self, state: State) -> None:
        self._loss, self._counts = state["loss"], state["counts"]

    def compute(self) -> dict[str, float]:
        state = self.state()
        images, first, five, bad = state["counts"].tolist()
        check_counts(images, bad)
        return {"loss": float(state["loss"]) / images, "top1": 100 * first / images, "top5": 100 * five / images}


def check_counts(images: int, bad: int) -> None:
    """Refuse an empty metric, and one that saw logits that are not numbers.

    Raises:
        MetricError: saying what to do.
    """
    if not images:
        raise MetricError("no image was evaluated; check that the split is not empty")
    if bad:
        raise MetricError(
            f"the logits of {bad} of {images} images are NaN: the weights have diverged; lower lr, or use bf16 or fp32"
        )


@TASKS.register("classify")
class Classify(Task):
    """One class per image."""

    targets: ClassVar[str] = "class"
    default_loss: ClassVar[str] = "cross_entropy"
    score: ClassVar[str] = "top1"
    mixing: ClassVar[bool] = True

    def metric(self) -> Accuracy:
        return Accuracy()

"""Losses beyond those of the tasks: DynamicViT's, group lasso, and losses on features.

Cross-entropy with label smoothing and soft targets, binary cross-entropy, focal and asymmetric loss belong to
:mod:`vitrim.tasks`, where ``task.loss(spec)`` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.reduction import Reduction
from vitrim.core.schedule import Keep
from vitrim.tasks.base import full


def divergence(student: Tensor, teacher: Tensor, tau: float = 1.0, kl: str = "batchmean") -> Tensor:
    """Kullback-Leibler divergence of the student's softmax from the teacher's, per row: logits ``(..., C)`` to ``(...)``.

    Args:
        student: logits with gradient.
        teacher: logits of the teacher.
        tau: temperature of both.
        kl: ``batchmean``, the divergence; or ``mean``, divided by the number of classes besides, as in the code of DeiT.

    Raises:
        ValueError: when student and teacher differ in shape.
    """
    check_same(student, teacher)
    log_s, log_t = (full(student) / tau).log_softmax(-1), (full(teacher) / tau).log_softmax(-1)
    each = F.kl_div(log_s, log_t, reduction="none", log_target=True)
    return each.mean(-1) if check_kl(kl) == "mean" else each.sum(-1)


def check_same(student: Tensor, teacher: Tensor) -> None:
    """Refuse a teacher whose answer has another shape than the student's.

    Raises:
        ValueError: naming both shapes.
    """
    if student.shape != teacher.shape:
        shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher differ ({shapes}): the teacher needs the student's classes, width and patches")


def check_kl(kl: str) -> str:
    """Refuse a way to average the divergence that does not exist.

    Raises:
        ValueError: naming those that do.
    """
    if kl not in ("batchmean", "mean"):
        raise ValueError(f"kl is batchmean or mean; got {kl!r}")
    return kl


def decisions(reduction: Reduction) -> list[Tensor]:
    """DynamicViT's keep decisions of the last forward pass, ``(B, patches)`` per reducing block, with gradient.

    Tokens that a cross-layer cache has put back are among the patches.

    Raises:
        ValueError: when the last pass made none.
    """
    found = [step.policy for step in reduction.trace.values()]
    kept = [policy[:, reduction.layout.prefix :] for policy in found if policy is not None]
    if not kept or len(kept) != len(found):
        raise ValueError("no keep decisions in the last forward pass: this loss needs the method dynamicvit and model.train()")
    return kept


def keep_ratios(reduction: Reduction) -> list[float]:
    """Share of the initial patches that the schedule keeps after every reducing block.

    Of ``keep(rate=r)`` the powers of r, not those rounded to whole tokens, as published.
    """
    schedule = reduction.schedule
    if isinstance(schedule, Keep):
        rate = schedule.rate
        return list(rate) if isinstance(rate, list) else [rate ** (i + 1) for i in range(len(schedule.at))]
    grid = reduction.layout.grid
    patches = grid[0] * grid[1] if grid else 196
    return [max(count, 0) / patches for count in schedule.targets(patches, reduction.depth).values()]


def ratio_loss(kept: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """Squared distance of the share of kept tokens from its target, the mean over images and stages.

    Args:
        kept: keep decisions ``(B, n)`` per stage, counted from the initial tokens (a token once dropped stays out).
        ratios: target share per stage.

    Raises:
        ValueError: when the numbers of stages differ.
    """
    if len(kept) != len(ratios):
        raise ValueError(f"{len(kept)} stages made decisions, but there are {len(ratios)} target ratios")
    terms = [((full(k).mean(1) - r) ** 2).mean() for k, r in zip(kept, ratios, strict=True)]
    return torch.stack(terms).mean()


def token_loss(student: Tensor, teacher: Tensor, mask: Tensor, mse: bool = True, kl: str = "batchmean") -> Tensor:
    """Distance of tokens ``(B, n, C)`` to the teacher's, the mean over the tokens in ``mask (B, n)``; 0 if there are none.

    Args:
        student: tokens after the last norm.
        teacher: the same of the teacher.
        mask: which tokens count, above one half.
        mse: mean squared error over channels; otherwise the divergence of softmaxes over channels.
        kl: as in :func:`divergence`.
    """
    gate = (mask.detach() > 0.5).to(torch.promote_types(student.dtype, torch.float32))
    distance = ((full(student) - full(teacher)) ** 2).mean(-1) if mse else divergence(student, teacher, kl=kl)
    return (distance * gate).sum() / gate.sum().clamp(min=1)


class DynamicViTLoss(nn.Module):
    """The loss of DynamicViT (Rao et al., NeurIPS 2021, arXiv:2106.02034), with or without a teacher.

    The sum of classification loss, distance of the keep ratios from those of the schedule, divergence of the predictions and
    distance of the kept tokens from the teacher's. Run ``model.train()`` before the forward pass.

    Args:
        base: classification loss ``(logits, target)``.
        cls_weight: weight of the classification loss.
        ratio_weight: weight of the keep ratios.
        cls_distill_weight: weight of the predictions.
        token_distill_weight: weight of the tokens.
        mse_token: compare tokens by mean squared error, otherwise by divergence.
        kl: as in :func:`divergence`.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        cls_weight: float = 1.0,
        ratio_weight: float = 2.0,
        cls_distill_weight: float = 0.5,
        token_distill_weight: float = 0.5,
        mse_token: bool = True,
        kl: str = "batchmean",
    ) -> None:
        super().__init__()
        self.base = base
        self.cls_weight, self.ratio_weight = cls_weight, ratio_weight
        self.cls_distill_weight, self.token_distill_weight = cls_distill_weight, token_distill_weight
        self.mse_token, self.kl = mse_token, check_kl(kl)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        reduction: Reduction,
        tokens: Tensor | None = None,
        teacher: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """The loss of the last forward pass.

        Args:
            logits: ``(B, C)``.
            target: as the base loss takes it.
            reduction: the reduction of the model, ``model.reduction``.
            tokens: patch tokens after the last norm ``(B, n, D)``, from :class:`vitrim.training.distill.FinalTokens`.
            teacher: logits and patch tokens of a :class:`vitrim.training.distill.Teacher`.
        """
        return self.combine(logits, target, decisions(reduction), keep_ratios(reduction), tokens, teacher)

    def combine(
        self,
        logits: Tensor,
        target: Tensor,
        kept: Sequence[Tensor],
        ratios: Sequence[float],
        tokens: Tensor | None = None,
        teacher: tuple[Tensor, Tensor | None] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of given decisions ``(B, n)`` and target ratios, per stage; tokens count in ``mask``, or as last decided."""
        loss = self.cls_weight * self.base(logits, target) + self.ratio_weight * ratio_loss(kept, ratios)
        if teacher is None:
            return loss
        loss = loss + self.cls_distill_weight * divergence(logits, teacher[0], kl=self.kl).mean()
        if tokens is None or teacher[1] is None:
            return loss
        n = teacher[1].shape[1]  # what a cache has put back stands behind them, and the teacher has none of it
        mask = kept[-1] if mask is None else mask
        return loss + self.token_distill_weight * token_loss(tokens[:, :n], teacher[1], mask[:, :n], self.mse_token, self.kl)


def group_lasso(weight: Tensor, dim: int = 0) -> Tensor:
    """Sum of the norms of a classifier's columns: input features that no class needs go to zero together (Head2Toe).

    Args:
        weight: ``(classes, features)``; dimensions of length 1 at the end (point-wise convolutions) are ignored.
        dim: norm over the classes for each feature (0), or over the features for each class (1).
    """
    return torch.linalg.vector_norm(weight.flatten(1), dim=dim).sum()


def classifier_weight(model: nn.Module) -> Tensor:
    """Weight of the linear map to the classes: that of the cross-layer head where there is one, else the model's own.

    Raises:
        ValueError: when the model has none that is known.
    """
    places = ("reduction.head.classifier", "head", "heads.head", "classifier", "fc", "head.fc")
    modules = dict(model.named_modules())
    for place in places:
        weight: Any = getattr(modules.get(place), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            return weight
    raise ValueError(f"group lasso found no classifier in {type(model).__name__}; it looks at: {', '.join(places)}")

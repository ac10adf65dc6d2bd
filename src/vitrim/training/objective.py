"""What a run minimises: the task's loss on mixed images, DynamicViT's terms, a teacher's, a lasso."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.core.reduction import Reduction
from vitrim.data.finetune import model_to_train
from vitrim.recognition.base import Recogniser, backbone_of
from vitrim.tasks.base import Task
from vitrim.training.distill import DistillationLoss, FinalTokens, Teacher
from vitrim.training.losses import DynamicViTLoss, classifier_weight, group_lasso
from vitrim.training.mix import IlaMix, Mix, build_mix
from vitrim.training.recipe import Recipe


class RecogniserLoss(nn.Module):
    """A recogniser together with its loss, as one forward pass.

    A launcher of several processes averages the gradients of what ran in the forward pass that it wraps, and a recogniser's
    loss has passes of its own.

    Args:
        recogniser: the recogniser.
        criterion: loss of logits and targets.
    """

    def __init__(self, recogniser: Recogniser, criterion: nn.Module) -> None:
        super().__init__()
        self.recogniser, self.criterion = recogniser, criterion

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits ``(B, classes)``."""
        return self.recogniser.loss(images, targets, self.criterion)


class Objective:
    """The loss of a batch; a launcher wraps :attr:`module`, the model or a recogniser with its loss.

    Args:
        model: the model itself, not as a launcher wraps it.
        loss: of the labels: the task's, a teacher's around it, or DynamicViT's around it.
        mix: mixes the batch, or nothing does.
        teacher: gives its predictions to the loss.
        lasso: weight of the group lasso on the classifier.
        tokens: catches the last tokens of the model, for DynamicViT with a teacher.
    """

    def __init__(
        self, model: nn.Module, loss: nn.Module, *, mix: Mix | IlaMix | None = None, teacher: Teacher | None = None,
        lasso: float | None = None, tokens: FinalTokens | None = None,
    ) -> None:  # fmt: skip
        self.model, self.loss, self.mix, self.teacher = model, loss, mix, teacher
        self.lasso, self.tokens = lasso, tokens
        self.module = RecogniserLoss(model, loss) if isinstance(model, Recogniser) else model

    def __call__(
        self, model: Callable[..., Any], images: Tensor, targets: Tensor, *, place: int, rank: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Loss of a batch, and how many images have the right class first (of mixed images, the larger part's).

        Args:
            model: :attr:`module`, as a launcher wraps it.
            images: ``(B, C, H, W)``.
            targets: ``(B,)`` classes or ``(B, classes)`` labels.
            place: number of the forward pass, for the randomness of the mixing.
            rank: of the process.
            autocast: context of forward pass and loss.
        """
        if self.mix is not None:
            images, targets = self.mix(images, targets, step=place, rank=rank)
        with autocast():
            loss, output = self._loss(model, images, targets)
            if self.lasso:
                loss = loss + self.lasso * group_lasso(classifier_weight(self.model))
        logits = output[0] if isinstance(output, tuple) else output
        answer = targets if targets.ndim == 1 else targets.argmax(-1)
        return loss, (logits.detach().argmax(-1) == answer).sum().float()

    def _loss(self, model: Callable[..., Any], images: Tensor, targets: Tensor) -> tuple[Tensor, Any]:
        """The loss of the labels and the teacher, and what the model answers."""
        if isinstance(self.module, RecogniserLoss):
            return model(images, targets)
        taught = self.teacher(images) if self.teacher is not None else None
        output = model(images)
        if isinstance(self.loss, DynamicViTLoss):
            reduction: Any = self.model.reduction
            tokens = self.tokens.take() if self.tokens is not None else None
            return self.loss(output, targets, reduction, tokens, taught), output
        if isinstance(self.loss, DistillationLoss):
            return self.loss(output, targets, taught[0] if taught is not None else None), output
        return self.loss(output, targets), output


def make_objective(recipe: Recipe, task: Task, model: nn.Module, classes: int, device: torch.device) -> Objective:
    """What a recipe minimises; DynamicViT brings its own loss.

    Raises:
        SpecError: for a loss or distillation that does not exist or does not fit.
        ValueError: when parts of the recipe exclude each other.
    """
    mix = build_mix(
        classes, mixup=recipe.mixup, cutmix=recipe.cutmix, prob=recipe.mix_prob, switch=recipe.mix_switch,
        smoothing=recipe.smoothing, kind=recipe.mix, multilabel=task.targets == "labels", seed=recipe.seed,
    )  # fmt: skip
    # Mixed targets carry their smoothing with them.
    loss = task.loss(recipe.loss, smoothing=0.0 if mix is not None else recipe.smoothing)
    reduction = getattr(backbone_of(model), "reduction", None)
    dynamic = isinstance(reduction, Reduction) and reduction.method.startswith("dynamicvit")
    teacher = _teacher(recipe, classes, tokens=dynamic).to(device) if recipe.teacher is not None else None
    if not dynamic:
        if recipe.distill is not None:
            loss = DistillationLoss(loss, recipe.distill)
        return Objective(model, loss, mix=mix, teacher=teacher, lasso=recipe.group_lasso)
    if recipe.distill is not None:
        raise ValueError("recipe: dynamicvit has its own distillation; give 'teacher' alone and leave 'distill' out")
    loss = DynamicViTLoss(
        loss, cls_weight=recipe.cls_weight, ratio_weight=recipe.ratio_weight, cls_distill_weight=recipe.cls_distill_weight,
        token_distill_weight=recipe.token_distill_weight, mse_token=recipe.mse_token,
    )  # fmt: skip
    tokens = FinalTokens(model) if teacher is not None else None
    return Objective(model, loss, mix=mix, teacher=teacher, lasso=recipe.group_lasso, tokens=tokens)


def _teacher(recipe: Recipe, classes: int, tokens: bool) -> Teacher:
    """The teacher, which must know these classes: no head starts anew."""
    from vitrim.training.build import build_transform

    found, notes = model_to_train(
        recipe.teacher or "", classes, recipe.teacher_weights, image_size=build_transform(recipe).size
    )  # fmt: skip
    if any("head" in note for note in notes) or (recipe.teacher_weights is None and classes != 1000):
        raise ValueError(
            f"recipe: the teacher '{recipe.teacher}' does not know the {classes} classes of this data set; train it "
            "on them first and give teacher_weights: RUN/model.safetensors"
        )
    return Teacher(found, tokens)

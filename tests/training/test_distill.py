"""Distillation against the recorded numbers, and a teacher at work."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vitrim
from tests.training.test_losses import LABELS, LOGITS, gauss
from vitrim.core.registry import SpecError
from vitrim.tasks import CrossEntropy
from vitrim.training.distill import DistillationLoss, FinalTokens, Teacher
from vitrim.training.losses import DynamicViTLoss

TINY = {"img_size": 64, "embed_dim": 12, "num_heads": 2, "depth": 3, "num_classes": 5}


@pytest.mark.parametrize(
    ("kind", "wanted"), [(None, 0.807860465588), ("soft(alpha=0.5, tau=2)", 0.507572719013), ("hard", 1.138940661828)]
)
def test_recorded_numbers(kind: str | None, wanted: float) -> None:
    loss = DistillationLoss(CrossEntropy(), kind)((LOGITS, gauss(10, 3, 5)), LABELS, gauss(9, 3, 5))
    assert loss.item() == pytest.approx(wanted, abs=1e-11)


def test_one_output_learns_both_and_the_teacher_nothing() -> None:
    logits, teacher = LOGITS.clone().requires_grad_(), gauss(9, 3, 5).requires_grad_()
    mixed = torch.tensor([[0.7, 0, 0, 0.3, 0]] * 3, dtype=torch.float64)
    loss = DistillationLoss(CrossEntropy(), "hard(alpha=0.25)")(logits, mixed, teacher)
    torch.testing.assert_close(loss, 0.75 * F.cross_entropy(LOGITS, mixed) + 0.25 * F.cross_entropy(LOGITS, teacher.argmax(-1)))
    loss.backward()
    assert teacher.grad is None
    assert DistillationLoss(CrossEntropy(), "hard")(LOGITS, LABELS).item() == pytest.approx(0.807860465588)


@pytest.mark.parametrize("text", ["soft(tau=0)", "soft(alpha=2)", "hard(tau=1)", "soft(kl=sum)", "sof"])
def test_refuses(text: str) -> None:
    with pytest.raises(SpecError):
        DistillationLoss(CrossEntropy(), text)
    with pytest.raises(ValueError, match="the teacher needs the student's classes"):
        DistillationLoss(CrossEntropy(), "hard")(LOGITS, LABELS, gauss(9, 3, 4))


def test_timms_distillation_token() -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", **TINY)
    model.set_distilled_training(True)
    vitrim.reduce(model.train(), "topk", "keep(rate=0.5, at=[1])")
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.head_dist.weight)
    output = model(torch.randn(3, 3, 64, 64))
    teacher = torch.randn(3, 5)
    loss = DistillationLoss(CrossEntropy(), "hard")(output, LABELS, teacher)
    torch.testing.assert_close(loss, (F.cross_entropy(output[0], LABELS) + F.cross_entropy(output[1], teacher.argmax(-1))) / 2)


def test_teacher_is_frozen_and_gives_normed_patches() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", drop_rate=0.5, **TINY).train()
    teacher = Teacher(model, tokens=True).train()
    x = torch.randn(2, 3, 64, 64)
    logits, tokens = teacher(x)
    assert tokens is not None
    torch.testing.assert_close(tokens, model.forward_features(x)[:, 1:])
    assert torch.equal(logits, teacher(x)[0])  # no dropout
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not logits.requires_grad
    assert Teacher(timm.create_model("vit_tiny_patch16_224", **TINY))(x)[1] is None


def test_dynamicvit_learns_from_a_teacher() -> None:
    torch.manual_seed(0)
    student = timm.create_model("vit_tiny_patch16_224", **TINY).train()
    vitrim.reduce(student, "dynamicvit", "keep(rate=0.7, at=[1])")
    tap = FinalTokens(student, student.reduction.layout.prefix)
    teacher = Teacher(timm.create_model("vit_tiny_patch16_224", **TINY), tokens=True)
    x = torch.randn(3, 3, 64, 64)
    logits = student(x)
    tokens = tap.take()
    assert tokens.shape == (3, 16, 12)
    loss = DynamicViTLoss(CrossEntropy(), cls_weight=0, ratio_weight=0, cls_distill_weight=0, token_distill_weight=1)
    answer = teacher(x)
    chosen = student.reduction.trace[1].policy[:, 1:] > 0.5
    got = loss(logits, LABELS, student.reduction, tokens, answer)
    torch.testing.assert_close(got, F.mse_loss(tokens[chosen], answer[1][chosen]))
    got.backward()
    assert student.patch_embed.proj.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no forward pass"):
        tap.take()
    tap.close()
    student(x)
    with pytest.raises(ValueError, match="no forward pass"):
        tap.take()


def test_models_without_a_last_norm() -> None:
    with pytest.raises(ValueError, match="has no last norm"):
        FinalTokens(nn.Linear(2, 2))

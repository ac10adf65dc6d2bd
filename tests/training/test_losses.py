"""Losses against the recorded numbers of the specification, closed forms, and a model in training."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitrim
from vitrim.recognition.losses import contrastive, supervised_contrastive
from vitrim.tasks import CrossEntropy
from vitrim.training.losses import (
    DynamicViTLoss,
    classifier_weight,
    decisions,
    divergence,
    group_lasso,
    keep_ratios,
    ratio_loss,
    token_loss,
)


def gauss(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


LOGITS, LABELS = gauss(7, 3, 5), torch.tensor([0, 3, 2])


@pytest.mark.parametrize(("mse", "wanted"), [(True, 1.918922625634), (False, 1.447035061756)])
def test_dynamicvit_recorded_numbers(mse: bool, wanted: float) -> None:
    first = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]]).double()
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]]).double()
    loss = DynamicViTLoss(CrossEntropy(), mse_token=mse)
    teacher = (gauss(9, 3, 5), gauss(11, 3, 4, 6))
    got = loss.combine(LOGITS, LABELS, [first, mask], [0.7, 0.49], gauss(12, 3, 4, 6), teacher)
    assert got.item() == pytest.approx(wanted, abs=1e-11)
    plain = loss.combine(LOGITS, LABELS, [first, mask], [0.7, 0.49])
    assert plain.item() == pytest.approx(1.009627132254, abs=1e-11)


def test_tokens_outside_the_mask_do_not_matter() -> None:
    student, teacher = gauss(1, 2, 4, 3).requires_grad_(), gauss(2, 2, 4, 3)
    mask = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.float64)
    token_loss(student, teacher, mask).backward()
    chosen = mask > 0.5
    torch.testing.assert_close(token_loss(student, teacher, mask), F.mse_loss(student[chosen], teacher[chosen]))
    assert student.grad is not None
    assert (student.grad[~chosen] == 0).all()
    assert (student.grad[chosen] != 0).all()
    assert token_loss(student, teacher, torch.zeros_like(mask)).item() == 0


def test_divergence_is_zero_only_for_equal_distributions() -> None:
    assert divergence(LOGITS, LOGITS + 3).abs().max() < 1e-12
    p, q = gauss(9, 3, 5).softmax(-1), LOGITS.softmax(-1)
    torch.testing.assert_close(divergence(LOGITS, gauss(9, 3, 5)), (p * (p / q).log()).sum(-1))
    with pytest.raises(ValueError, match="the teacher needs"):
        divergence(LOGITS, gauss(9, 3, 4))
    with pytest.raises(ValueError, match="kl is"):
        divergence(LOGITS, LOGITS, kl="sum")


def reduced(method: str = "dynamicvit", schedule: str = "keep(rate=0.5, at=[1, 2])") -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=12, num_heads=2, depth=4, num_classes=5)
    vitrim.reduce(model, method, schedule)
    return model.train()


def test_dynamicvit_of_a_model_teaches_its_predictors() -> None:
    model = reduced()
    logits = model(torch.randn(3, 3, 64, 64))
    kept = decisions(model.reduction)
    assert [k.shape for k in kept] == [(3, 16)] * 2
    assert all(((k == 0) | (k == 1)).all() for k in kept)
    assert (kept[1] <= kept[0]).all()  # cumulative
    loss = DynamicViTLoss(CrossEntropy())(logits, LABELS, model.reduction)
    by_hand = (
        F.cross_entropy(logits, LABELS) + 2 * sum(((k.mean(1) - 0.5 ** (i + 1)) ** 2).mean() for i, k in enumerate(kept)) / 2
    )
    torch.testing.assert_close(loss, by_hand)
    ratio_loss(kept, keep_ratios(model.reduction)).backward()  # through the straight-through decisions
    assert all(s.out_conv[4].weight.grad.abs().sum() > 0 for s in model.reduction.stages)
    model.eval()(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"model\.train"):
        decisions(model.reduction)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("keep(rate=0.7, at=[1, 2])", [0.7, 0.7**2]),  # not 11/16 and 7/16
        ("keep(rate=[0.8, 0.3], at=[1, 2])", [0.8, 0.3]),
        ("counts([12, 4], at=[1, 2])", [0.75, 0.25]),
    ],
)
def test_ratios_come_from_the_schedule(schedule: str, wanted: list[float]) -> None:
    assert keep_ratios(reduced(schedule=schedule).reduction) == pytest.approx(wanted)


def test_number_of_stages_must_agree() -> None:
    with pytest.raises(ValueError, match="1 stages made decisions"):
        ratio_loss([torch.ones(2, 4)], [0.5, 0.25])


def test_group_lasso_and_its_weight() -> None:
    weight = torch.tensor([[3.0, 0.0], [4.0, 2.0]])
    assert group_lasso(weight).item() == 7  # columns (3, 4) and (0, 2)
    assert group_lasso(weight, dim=1).item() == pytest.approx(3 + 20**0.5)
    assert group_lasso(weight[:, :, None]).item() == 7
    model = reduced("topk")
    assert classifier_weight(model) is model.head.weight
    with pytest.raises(ValueError, match="found no classifier"):
        classifier_weight(nn.ReLU())


def test_contrastive_closed_forms() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    c = 0.5**0.5
    assert contrastive(features, labels).item() == pytest.approx((2 * 1 + 4 * (c - 0.4)) / 9)
    # Two views that agree, images that are orthogonal: one positive and two negatives of cosine 0 for each.
    views = torch.eye(2)[:, None].expand(2, 2, 2)
    wanted = -np.log(np.exp(1 / 0.5) / (np.exp(1 / 0.5) + 2))
    assert supervised_contrastive(views, tau=0.5).item() == pytest.approx(wanted)
    assert supervised_contrastive(views, torch.tensor([4, 4]), tau=0.5).item() > wanted


def test_supervised_contrastive_gradient() -> None:
    x = gauss(3, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: supervised_contrastive(v, torch.tensor([0, 1, 0])), (x,))

"""Losses and metrics of one class per image, against PyTorch, timm and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm.loss
import torch
import torch.nn.functional as F
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

from vitrim.core.registry import SpecError
from vitrim.tasks import TASKS, BinaryCrossEntropy, CrossEntropy, Focal, MetricError

CLASSIFY = TASKS.build("classify")


def gauss(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


LOGITS, LABELS = gauss(7, 3, 5), torch.tensor([0, 3, 2])


def mixed(smoothing: float = 0.1, share: float = 0.3) -> Tensor:
    """Labels mixed with those of the reversed batch, as timm's mixup."""
    hot = F.one_hot(LABELS, 5) * (1 - smoothing) + smoothing / 5
    return share * hot + (1 - share) * hot.flip(0)


def test_recorded_numbers() -> None:
    assert CrossEntropy(smoothing=0.1)(LOGITS, LABELS).item() == pytest.approx(0.915344396384, abs=1e-11)
    assert CrossEntropy()(LOGITS, mixed()).item() == pytest.approx(1.50091549, abs=2e-7)
    # Mixed targets are not smoothed a second time.
    assert CrossEntropy(smoothing=0.1)(LOGITS, mixed()).item() == pytest.approx(1.50091549, abs=2e-7)


def test_equals_timm() -> None:
    torch.testing.assert_close(
        CrossEntropy(smoothing=0.3)(LOGITS, LABELS), timm.loss.LabelSmoothingCrossEntropy(0.3)(LOGITS, LABELS)
    )
    torch.testing.assert_close(CrossEntropy()(LOGITS, mixed()), timm.loss.SoftTargetCrossEntropy()(LOGITS, mixed()))
    for target in (LABELS, mixed()):
        ours = BinaryCrossEntropy(smoothing=0.2)(LOGITS.float(), target.float() if target.ndim > 1 else target)
        theirs = timm.loss.BinaryCrossEntropy(smoothing=0.2)(LOGITS.float(), target.float() if target.ndim > 1 else target)
        torch.testing.assert_close(ours, theirs)


def test_focal() -> None:
    p = LOGITS.softmax(-1).gather(-1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(Focal(gamma=2)(LOGITS, LABELS), ((1 - p) ** 2 * -p.log()).mean())
    torch.testing.assert_close(Focal(gamma=0, smoothing=0.1)(LOGITS, LABELS), CrossEntropy(smoothing=0.1)(LOGITS, LABELS))
    loss = Focal(gamma=1.5, smoothing=0.1)
    mixture = 0.3 * loss(LOGITS, LABELS) + 0.7 * loss(LOGITS, LABELS.flip(0))
    torch.testing.assert_close(loss(LOGITS, mixed(smoothing=0)), mixture)
    x = LOGITS.clone().requires_grad_()
    loss(x, LABELS).backward()
    log_p = LOGITS.clone().requires_grad_()
    smooth = 0.9 * log_p.log_softmax(-1).gather(-1, LABELS[:, None])[:, 0] + 0.1 * log_p.log_softmax(-1).mean(-1)
    (-((1 - smooth.detach().exp()) ** 1.5) * smooth).mean().backward()  # no gradient through the weight
    torch.testing.assert_close(x.grad, log_p.grad)


def test_half_precision_is_computed_in_full() -> None:
    for loss in (CrossEntropy(), Focal(), BinaryCrossEntropy()):
        assert loss(LOGITS.bfloat16(), LABELS).dtype is torch.float32


@pytest.mark.parametrize("classes", [3, 12])
def test_accuracy_streams_and_merges(classes: int) -> None:
    logits, labels = gauss(1, 50, classes).float(), torch.from_numpy(np.random.RandomState(2).randint(classes, size=50))
    whole, parts = CLASSIFY.metric(), [CLASSIFY.metric(), CLASSIFY.metric(), CLASSIFY.metric()]  # the third process sees nothing
    for i, (x, y) in enumerate(zip(logits.split(7), labels.split(7), strict=True)):
        whole.update(x, y)
        parts[i % 2].update(x, y)
    parts[2].merge([part.state() for part in parts])
    got = whole.compute()
    assert parts[2].compute() == pytest.approx(got)
    assert got["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    for k, name in ((1, "top1"), (5, "top5")):
        if k < classes:
            wanted = 100 * top_k_accuracy_score(labels, logits, k=k, labels=range(classes))
            assert got[name] == pytest.approx(wanted)
        else:
            assert got[name] == 100


def test_accuracy_of_mixed_targets_is_that_of_the_larger_share() -> None:
    a, b = CLASSIFY.metric(), CLASSIFY.metric()
    a.update(LOGITS, mixed(share=0.8))
    b.update(LOGITS, mixed(share=0.2))
    assert a.compute()["top1"] == 100  # the network is right about all three
    assert b.compute()["top1"] == pytest.approx(100 / 3)  # the middle one is its own partner


def test_nan_and_nothing_are_errors() -> None:
    metric = CLASSIFY.metric()
    with pytest.raises(MetricError, match="no image was evaluated"):
        metric.compute()
    logits = LOGITS.clone()
    logits[1, 2] = math.nan
    metric.update(logits, LABELS)
    metric.update(LOGITS, LABELS)
    with pytest.raises(MetricError, match="of 1 of 6 images are NaN"):
        metric.compute()


def test_losses_by_name() -> None:
    smooth = CLASSIFY.loss(smoothing=0.1)
    assert isinstance(smooth, CrossEntropy)
    assert smooth.smoothing == 0.1
    focal = CLASSIFY.loss("focal(gamma=3, smoothing=0.2)", smoothing=0.1)  # what the spec says counts
    assert (focal.gamma, focal.smoothing) == (3, 0.2)
    assert isinstance(CLASSIFY.loss("bce"), BinaryCrossEntropy)
    with pytest.raises(SpecError, match="does not fit the task 'classify'; take one of: bce, cross_entropy, focal"):
        CLASSIFY.loss("asymmetric")
    with pytest.raises(SpecError, match="did you mean 'focal'"):
        CLASSIFY.loss("fokal")
    with pytest.raises(SpecError, match="smoothing is the share"):
        CLASSIFY.loss("cross_entropy(smoothing=1)")
    with pytest.raises(SpecError, match="smoothing is the share"):
        CLASSIFY.loss(smoothing=1.5)

"""Asymmetric loss, mAP and F1 against recorded numbers, timm and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor

from tests.tasks.test_classify import gauss
from vitrim.core.registry import SpecError
from vitrim.tasks import TASKS, Asymmetric, BinaryCrossEntropy, MetricError, average_precision

LABELS = TASKS.build("multilabel")


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).random_sample(shape))


def test_asymmetric_recorded_numbers() -> None:
    x, y = gauss(7, 3, 5).requires_grad_(), (uniform(8, 3, 5) < 0.4).double()
    loss = Asymmetric()(x, y)
    loss.backward()
    assert loss.item() == pytest.approx(3.114111710710, abs=1e-11)
    assert x.grad.norm().item() == pytest.approx(1.227287125056, abs=1e-11)
    assert Asymmetric(reduction="mean")(x, y).item() == pytest.approx(3.114111710710 / 3)


@pytest.mark.parametrize(("negative", "positive", "clip"), [(4, 0, 0.05), (2, 1, 0), (4, 1, 0.2), (0, 0, 0)])
def test_asymmetric_is_timms_with_its_gradient(negative: float, positive: float, clip: float) -> None:
    y = (uniform(8, 6, 9) < 0.3).float()
    a, b = (gauss(3, 6, 9).float() * 4).requires_grad_(), (gauss(3, 6, 9).float() * 4).requires_grad_()
    ours = Asymmetric(negative=negative, positive=positive, clip=clip)(a, y)
    theirs = AsymmetricLossMultiLabel(negative, positive, clip, reduction="sum")(b, y)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_asymmetric_survives_extreme_logits() -> None:
    x = torch.tensor([[200.0, -200.0, 200.0, -200.0]], requires_grad=True)
    loss = Asymmetric(positive=1)(x, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_map_recorded_numbers() -> None:
    scores, targets = uniform(5, 20, 4), (uniform(6, 20, 4) < 0.3).double()
    assert 100 * average_precision(scores, targets).mean().item() == pytest.approx(27.242514369860, abs=1e-10)
    targets[:, 0] = 0
    ap = average_precision(scores, targets)
    assert ap[0] == 0
    assert 100 * ap.mean().item() == pytest.approx(13.848130994612, abs=1e-10)


def test_map_without_ties_is_scikit_learns() -> None:
    scores, targets = gauss(1, 60, 6), uniform(2, 60, 6) < 0.3
    wanted = [average_precision_score(targets[:, c], scores[:, c]) for c in range(6)]
    np.testing.assert_allclose(average_precision(scores, targets).numpy(), wanted, rtol=1e-7)


def test_map_of_ties_ranks_the_last_image_first() -> None:
    """The reverse of numpy's ascending argsort (stable for short arrays), as published."""
    scores, targets = torch.zeros(4, 1), torch.tensor([[1], [0], [0], [1]])
    assert average_precision(scores, targets).item() == pytest.approx((1 / 1 + 2 / 4) / 2)
    scores = torch.from_numpy(np.random.RandomState(0).randint(3, size=(12, 5)).astype(np.float64))
    targets = (uniform(4, 12, 5) < 0.5).double()
    for c in range(5):
        order = np.argsort(scores[:, c].numpy(), kind="stable")[::-1]
        hits = targets[:, c].numpy()[order]
        wanted = sum(hits[: i + 1].sum() / (i + 1) for i in range(12) if hits[i]) / (hits.sum() + 1e-8)
        assert average_precision(scores, targets)[c].item() == pytest.approx(wanted)


def test_f1_is_scikit_learns() -> None:
    logits, targets = gauss(1, 40, 7).float(), uniform(2, 40, 7) < 0.3
    logits[:, 3] = -1  # a class that is never predicted
    targets[:, 5] = False  # one that is never there
    metric = LABELS.metric()
    for x, y in zip(logits.split(9), targets.split(9), strict=True):
        metric.update(x, y.float())
    got, predicted = metric.compute(), logits.sigmoid() > 0.5
    p = precision_score(targets, predicted, average="macro", zero_division=0)
    r = recall_score(targets, predicted, average="macro", zero_division=0)
    assert got["CF1"] == pytest.approx(100 * 2 * p * r / (p + r))
    assert got["OF1"] == pytest.approx(100 * f1_score(targets, predicted, average="micro"))
    assert got["mAP"] == pytest.approx(100 * average_precision(logits, targets).mean().item())
    assert got["loss"] == pytest.approx(BinaryCrossEntropy()(logits, targets).item())
    none = LABELS.metric()
    none.update(torch.full((2, 3), -1.0), torch.zeros(2, 3))
    assert none.compute()["CF1"] == none.compute()["OF1"] == none.compute()["mAP"] == 0


def test_merging_is_one_pass_over_all() -> None:
    logits, targets = gauss(1, 30, 4).float(), (uniform(2, 30, 4) < 0.3).float()
    whole, first, second, idle = (LABELS.metric() for _ in range(4))
    whole.update(logits, targets)
    first.update(logits[:11], targets[:11])
    second.update(logits[11:], targets[11:])
    idle.merge([first.state(), idle.state(), second.state()])
    assert idle.compute() == whole.compute()
    again = LABELS.metric()
    again.load(whole.state())
    assert again.compute() == whole.compute()


def test_errors() -> None:
    metric = LABELS.metric()
    with pytest.raises(MetricError, match="no image was evaluated"):
        metric.compute()
    with pytest.raises(ValueError, match=r"\(2, 3\) as the logits; got \(2,\)"):
        metric.update(torch.zeros(2, 3), torch.zeros(2))
    metric.update(torch.tensor([[0.0, math.nan], [0.0, 1.0]]), torch.ones(2, 2))
    with pytest.raises(MetricError, match="1 of 2 images are NaN"):
        metric.compute()
    with pytest.raises(SpecError, match="label smoothing needs one class per image"):
        LABELS.loss(smoothing=0.1)
    with pytest.raises(SpecError, match="does not fit the task 'multilabel'; take one of: asymmetric, bce"):
        LABELS.loss("cross_entropy")
    assert isinstance(LABELS.loss(), Asymmetric)

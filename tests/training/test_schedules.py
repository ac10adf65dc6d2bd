"""Schedules against the published rates, timm's scheduler and each other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch import nn

from vitrim.core.registry import SpecError, spec
from vitrim.training.schedules import LR_SCHEDULES, Cosine, Length, group_lr, set_lr


def close(got: float, wanted: float, rel: float = 1e-6) -> bool:
    return got == pytest.approx(wanted, rel=rel)


def test_token_reduction_recipe() -> None:
    """30 epochs of 2,502 steps with 20 of warm-up; the cosine is not moved by it."""
    schedule, length = Cosine(warmup_epochs=20), Length(30, 2502)
    golden = {
        0: 1e-6,
        1: 1.00997e-6,
        1000: 1.0972022e-5,
        50039: 4.99990028e-4,
        50040: 1.325e-4,
        62550: 4.28237761e-5,
        75060: 1e-5,
    }
    for step, wanted in golden.items():
        assert close(schedule.lr(5e-4, step, length), wanted, 3e-6), step


def test_clca_recipe() -> None:
    schedule, length = Cosine(warmup_epochs=2, per="epoch"), Length(45, 7)
    golden = {0: 1e-6, 1: 5.05e-5, 2: 9.9562e-5, 3: 9.9017e-5, 4: 9.8257e-5, 22: 5.6570e-5, 44: 1.0110e-5, 45: 1e-5, 49: 1e-5}
    for epoch, wanted in golden.items():
        for step in (7 * epoch, 7 * epoch + 6):  # the first and the last step of the epoch
            assert close(schedule.lr(1e-4, step, length), wanted, 5e-5), epoch


def test_ila_recipe() -> None:
    """500 steps of warm-up; step 0 and 1 have the same rate."""
    length = Length(50, 100)
    late, plain = Cosine(warmup_steps=500, lag=1), Cosine(warmup_steps=500)
    assert late.lr(0.1, 0, length) == late.lr(0.1, 1, length) == plain.lr(0.1, 0, length) == 1e-6
    assert all(late.lr(0.1, s + 1, length) == plain.lr(0.1, s, length) for s in range(0, 5000, 61))
    assert close(plain.lr(0.1, 499, length), 0.0998, 1e-4)
    assert close(plain.lr(0.1, 500, length), 0.09755, 1e-4)
    linear = LR_SCHEDULES.build("linear(warmup_steps=500, lag=1)")
    assert close(linear.lr(0.1, 501, length), 0.1)
    assert close(linear.lr(0.1, 2751, length), 0.1 * (1 - 0.99 * 0.5))
    assert close(linear.lr(0.1, 6000, length), 0.001)


def test_equals_timm() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    cases = [
        (
            CosineLRScheduler(optimizer, t_initial=90, lr_min=1e-3, warmup_t=20, warmup_lr_init=1e-4, t_in_epochs=False),
            "cosine(warmup_epochs=2, warmup_lr=1e-4, min_lr=1e-3)",
        ),
        (
            StepLRScheduler(optimizer, decay_t=30, decay_rate=0.3, warmup_t=10, warmup_lr_init=1e-4, t_in_epochs=False),
            "step(every=3, rate=0.3, warmup_epochs=1, warmup_lr=1e-4, shifted=true)",
        ),
    ]
    for timms, text in cases:
        ours = LR_SCHEDULES.build(text)
        for step in range(100):
            timms.step_update(step)
            assert close(ours.lr(0.2, step, Length(9, 10)), optimizer.param_groups[0]["lr"]), (text, step)


def test_shifted_cosine_is_continuous_and_ends_at_the_minimum() -> None:
    schedule, length = Cosine(warmup_epochs=3, shifted=True), Length(10, 20)
    rates = [schedule.lr(1e-3, s, length) for s in range(220)]
    assert max(abs(a - b) for a, b in pairwise(rates)) < 2e-5
    assert close(rates[60], 1e-3)
    assert rates[200:] == [1e-5] * 20


def test_constant_and_a_run_that_is_all_warm_up() -> None:
    assert LR_SCHEDULES.build("constant").lr(0.3, 5, Length(1, 10)) == 0.3
    assert close(LR_SCHEDULES.build("constant(warmup_steps=10, warmup_lr=0)").lr(0.3, 5, Length(1, 10)), 0.15)
    for name in ("cosine(warmup_epochs=3, shifted=true)", "linear(warmup_epochs=3)"):
        schedule = LR_SCHEDULES.build(name)
        assert all(0 < schedule.lr(0.3, s, Length(3, 4)) <= 0.3 for s in range(15))


def test_groups_are_frozen_and_scaled() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [a], "initial_lr": 0.1, "freeze_epochs": 2}, {"params": [b], "initial_lr": 1.0, "lr_scale": 0.25}]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    schedule, length = LR_SCHEDULES.build("constant"), Length(4, 5)
    assert set_lr(optimizer, schedule, 9, length) == [0.0, 0.25]
    assert set_lr(optimizer, schedule, 10, length) == [0.1, 0.25]
    assert group_lr({"initial_lr": 2.0}, schedule, 0, length) == 2.0


def test_is_a_function_of_the_step_alone() -> None:
    schedule, length = LR_SCHEDULES.build("cosine"), Length(10, 9)
    assert schedule.lr(1e-3, 40, length) == LR_SCHEDULES.build(spec(schedule)).lr(1e-3, 40, length)
    assert spec(LR_SCHEDULES.build("cosine(min_lr=1e-5, warmup_epochs=2)")) == "cosine(warmup_epochs=2)"


@pytest.mark.parametrize("text", ["cosine(per=minute)", "cosine(per=epoch, lag=1)", "step(every=0)", "cosin", "linear(lag=-1)"])
def test_refuses(text: str) -> None:
    with pytest.raises(SpecError):
        LR_SCHEDULES.build(text)
    with pytest.raises(ValueError, match="an epoch and a step at least"):
        Length(0, 5)

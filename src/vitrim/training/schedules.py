"""Learning-rate schedules: pure functions of the step, so that a run resumes without any state of theirs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from vitrim.core.registry import Registry

LR_SCHEDULES = Registry("learning-rate schedule")


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        epochs: epochs of the schedule; those of the cool-down come after them.
        steps_per_epoch: optimizer steps per epoch.
    """

    epochs: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.steps_per_epoch < 1:
            raise ValueError(f"a schedule needs an epoch and a step at least; got {self.epochs} x {self.steps_per_epoch}")

    def epoch(self, step: int) -> int:
        """The epoch of an optimizer step, both counted from 0."""
        return step // self.steps_per_epoch


class LRSchedule(ABC):
    """Base of all schedules: warm-up, and whatever follows it.

    During warm-up the rate rises linearly from ``warmup_lr`` by ``1 / warmup`` of the way each time. As in timm the warm-up
    covers the beginning of the curve and does not move it (``shifted=false``): after 20 of 30 epochs of warm-up a cosine
    jumps to a quarter of the rate, which is how the papers trained. ``warmup_lr`` and ``min_lr`` are absolute: they are not
    scaled with the batch, nor with the rate of a group.
    """

    warmup_epochs: float
    warmup_steps: int | None
    warmup_lr: float
    shifted: bool
    per: str
    lag: int

    def _set(self, warmup_epochs: float, warmup_steps: int | None, warmup_lr: float, shifted: bool, per: str, lag: int) -> None:
        if per not in ("step", "epoch"):
            raise ValueError(f"per is step or epoch; got {per!r}")
        if per == "epoch" and (warmup_steps is not None or lag):
            raise ValueError("warmup_steps and lag count steps; use per=step")
        if warmup_epochs < 0 or (warmup_steps or 0) < 0 or lag < 0:
            raise ValueError("warm-up and lag are 0 or more")
        self.warmup_epochs, self.warmup_steps, self.warmup_lr = warmup_epochs, warmup_steps, warmup_lr
        self.shifted, self.per, self.lag = shifted, per, lag

    def lr(self, base: float, step: int, length: Length) -> float:
        """The rate with which optimizer step ``step`` (counted from 0) is made.

        Args:
            base: the rate after warm-up.
            step: optimizer steps made before.
            length: epochs and steps per epoch.
        """
        unit = length.steps_per_epoch if self.per == "step" else 1
        time = max(step - self.lag, 0) if self.per == "step" else length.epoch(step)
        total = length.epochs * unit
        warmup = self.warmup_epochs * unit if self.warmup_steps is None else self.warmup_steps
        if time < warmup:
            return self.warmup_lr + time * (base - self.warmup_lr) / warmup
        if self.shifted:
            # The whole curve, in what the warm-up leaves of the run.
            time, total = time - warmup, total - warmup
        return self.curve(base, time, total, warmup, unit)

    @abstractmethod
    def curve(self, base: float, time: float, total: float, warmup: float, unit: int) -> float:
        """The rate after warm-up, at ``time`` of ``total``; an epoch is ``unit`` long."""


@LR_SCHEDULES.register("cosine")
class Cosine(LRSchedule):
    """Half a cosine from the rate to ``min_lr``, where it stays during cool-down (Loshchilov & Hutter, 2017).

    Args:
        warmup_epochs: epochs of warm-up, may be a fraction.
        warmup_steps: the same in optimizer steps, instead.
        warmup_lr: rate at the start.
        min_lr: rate at the end.
        shifted: let the cosine start where the warm-up ends instead of at 0.
        per: change the rate with every ``step`` or every ``epoch``.
        lag: use each rate so many steps late; 1 in the code of ILA, whose first two steps have the same rate.
    """

    def __init__(
        self,
        *,
        warmup_epochs: float = 5,
        warmup_steps: int | None = None,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        shifted: bool = False,
        per: str = "step",
        lag: int = 0,
    ) -> None:
        self._set(warmup_epochs, warmup_steps, warmup_lr, shifted, per, lag)
        self.min_lr = min_lr

    def curve(self, base: float, time: float, total: float, warmup: float, unit: int) -> float:
        if time >= total:
            return self.min_lr
        return self.min_lr + 0.5 * (base - self.min_lr) * (1 + math.cos(math.pi * time / total))


@LR_SCHEDULES.register("linear")
class Linear(LRSchedule):
    """A line from the rate at the end of the warm-up to a share of it at the end.

    Args:
        warmup_epochs: epochs of warm-up, may be a fraction.
        warmup_steps: the same in optimizer steps, instead.
        warmup_lr: rate at the start.
        final: share of the rate at the end; 0.01 in the code of ILA.
        per: change the rate with every ``step`` or every ``epoch``.
        lag: use each rate so many steps late.
    """

    def __init__(
        self,
        *,
        warmup_epochs: float = 5,
        warmup_steps: int | None = None,
        warmup_lr: float = 1e-6,
        final: float = 0.01,
        per: str = "step",
        lag: int = 0,
    ) -> None:
        self._set(warmup_epochs, warmup_steps, warmup_lr, True, per, lag)
        self.final = final

    def curve(self, base: float, time: float, total: float, warmup: float, unit: int) -> float:
        return base * (1 - (1 - self.final) * (min(time / total, 1.0) if total > 0 else 1.0))


@LR_SCHEDULES.register("step")
class Staircase(LRSchedule):
    """The rate times ``rate`` after every so many epochs.

    Args:
        every: epochs between two drops.
        rate: factor of a drop.
        warmup_epochs: epochs of warm-up, may be a fraction.
        warmup_steps: the same in optimizer steps, instead.
        warmup_lr: rate at the start.
        shifted: count the epochs from the end of the warm-up.
        per: change the rate with every ``step`` or every ``epoch``.
        lag: use each rate so many steps late.
    """

    def __init__(
        self,
        *,
        every: float = 30,
        rate: float = 0.1,
        warmup_epochs: float = 5,
        warmup_steps: int | None = None,
        warmup_lr: float = 1e-6,
        shifted: bool = False,
        per: str = "step",
        lag: int = 0,
    ) -> None:
        if every <= 0:
            raise ValueError(f"every is a number of epochs above 0; got {every}")
        self._set(warmup_epochs, warmup_steps, warmup_lr, shifted, per, lag)
        self.every, self.rate = every, rate

    def curve(self, base: float, time: float, total: float, warmup: float, unit: int) -> float:
        return base * self.rate ** (time // (self.every * unit))


@LR_SCHEDULES.register("constant")
class Constant(LRSchedule):
    """The same rate throughout, after a warm-up.

    Args:
        warmup_epochs: epochs of warm-up, may be a fraction.
        warmup_steps: the same in optimizer steps, instead.
        warmup_lr: rate at the start.
        per: change the rate with every ``step`` or every ``epoch``.
        lag: use each rate so many steps late.
    """

    def __init__(
        self,
        *,
        warmup_epochs: float = 0,
        warmup_steps: int | None = None,
        warmup_lr: float = 1e-6,
        per: str = "step",
        lag: int = 0,
    ) -> None:
        self._set(warmup_epochs, warmup_steps, warmup_lr, False, per, lag)

    def curve(self, base: float, time: float, total: float, warmup: float, unit: int) -> float:
        return base


def group_lr(group: dict[str, Any], schedule: LRSchedule, step: int, length: Length) -> float:
    """The rate of one parameter group for optimizer step ``step`` (counted from 0).

    Args:
        group: a group of :func:`vitrim.training.optim.parameter_groups`: ``initial_lr`` goes through the schedule, the
            result is multiplied with ``lr_scale``, and is 0 in the first ``freeze_epochs`` epochs.
        schedule: the schedule.
        step: optimizer steps made before.
        length: epochs and steps per epoch.
    """
    if length.epoch(step) < group.get("freeze_epochs", 0):
        return 0.0
    return schedule.lr(group["initial_lr"], step, length) * group.get("lr_scale", 1.0)


def set_lr(optimizer: torch.optim.Optimizer, schedule: LRSchedule, step: int, length: Length) -> list[float]:
    """Give every group of an optimizer its rate for step ``step`` (counted from 0); call it before the step.

    Returns:
        The rates, by group.
    """
    for group in optimizer.param_groups:
        lr = group_lr(group, schedule, step, length)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)  # compiled and captured steps hold the tensor
        else:
            group["lr"] = lr
    return [float(group["lr"]) for group in optimizer.param_groups]

"""The protocol of tasks: a loss by name, and a metric that streams over batches and adds up over processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vitrim.core.registry import Registry, SpecError, parse_spec, settings_of

TASKS = Registry("task")
LOSSES = Registry("loss")

State = dict[str, Tensor]


class MetricError(ValueError):
    """A metric that cannot be computed; the message says why."""


class Metric(ABC):
    """Numbers over a data set, collected batch by batch without a wait for the device.

    Attributes:
        joined: names in the state whose rows are concatenated over processes; all others are added.
    """

    joined: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take one batch: logits ``(B, C)`` and its targets."""

    @abstractmethod
    def state(self) -> State:
        """Everything collected so far, as tensors."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Go on from a state."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The numbers.

        Raises:
            MetricError: when nothing was collected, or a logit was not a number.
        """

    def merge(self, states: Iterable[State]) -> None:
        """Replace the state by that of several parts of a data set, in their order."""
        parts = [part for part in states if part]
        if not parts:
            return
        whole: State = {}
        for name in parts[0]:
            tensors = [part[name] for part in parts]
            if name in self.joined:
                rows = [t for t in tensors if len(t)]  # a process without images does not know the number of classes
                whole[name] = torch.cat(rows) if rows else tensors[0]
            else:
                whole[name] = torch.stack(tensors).sum(0)
        self.load(whole)

    def gather(self) -> None:
        """Merge with the other processes of ``torch.distributed``; nothing to do in a single process.

        Every image must have been given to one process only: drop what a sampler repeats to even out the processes.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, {name: tensor.cpu() for name, tensor in self.state().items()})
        self.merge(states)


class Task(ABC):
    """What is predicted for an image.

    Attributes:
        targets: what losses must be able to read: "class" (one class per image) or "labels" (several).
        default_loss: the loss when none is named.
        score: the metric that says which weights are best; larger is better.
        mixing: whether mixup and cutmix of timm can mix the targets.
    """

    targets: ClassVar[str]
    default_loss: ClassVar[str]
    score: ClassVar[str]
    mixing: ClassVar[bool]

    @property
    def name(self) -> str:
        """The name in recipes."""
        return vars(type(self))["spec_name"]

    @abstractmethod
    def metric(self) -> Metric:
        """A new, empty metric."""

    def loss(self, spec: str | None = None, *, smoothing: float = 0.0) -> nn.Module:
        """The loss ``(logits (B, C), target) -> scalar`` of a spec such as ``focal(gamma=2)``.

        Args:
            spec: name and settings; None for the task's own.
            smoothing: label smoothing for index targets, for losses that know it; targets that are mixed carry their own.

        Raises:
            SpecError: for an unknown loss, one that does not fit the task, or smoothing where there is none.
        """
        text = spec or self.default_loss
        name, _, settings = parse_spec(text)
        cls: Any = LOSSES.get(name)
        if self.targets not in cls.reads:
            fitting = [n for n in LOSSES.names() if self.targets in getattr(LOSSES.get(n), "reads", ())]
            raise SpecError(f"loss '{name}' does not fit the task '{self.name}'; take one of: {', '.join(fitting)}")
        if not 0 <= smoothing < 1:
            raise SpecError(f"smoothing is the share of the target given to all classes, in [0, 1); got {smoothing}")
        if smoothing and self.targets != "class":
            raise SpecError(f"label smoothing needs one class per image; set smoothing to 0 for the task '{self.name}'")
        if smoothing and "smoothing" not in settings:
            if "smoothing" not in settings_of(cls):
                raise SpecError(f"loss '{name}' has no label smoothing; set smoothing to 0")
            loss: nn.Module = LOSSES.build(text)
            loss.smoothing = smoothing  # type: ignore[assignment]
            return loss
        return LOSSES.build(text)


def full(x: Tensor) -> Tensor:
    """The tensor in float32 at least: losses in half precision lose their small terms."""
    return x if x.dtype is torch.float64 else x.float()


def accumulator(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device, for sums over a data set."""
    return torch.float32 if device.type == "mps" else torch.float64

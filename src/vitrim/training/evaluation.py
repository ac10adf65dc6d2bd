"""Evaluation of a model on a split, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from vitrim.tasks.base import Task
from vitrim.training.loader import Batch, read_batch


class Interrupted(Exception):  # noqa: N818 (no error: the user asked)
    """The evaluation was given up, because the run is to stop."""


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first one, whose weights are written: running means differ from process to process.

    DistributedDataParallel does the same, but not before the next forward pass of the training.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    task: Task,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    stop: Callable[[], bool] = bool,
) -> tuple[dict[str, float], list[str]]:
    """The task's metrics over this process's batches and those of all others.

    Args:
        model: put into evaluation mode meanwhile.
        batches: of :func:`vitrim.training.loader.make_loader`.
        task: gives the metric.
        device: of the model.
        autocast: context of the forward pass.
        stop: asked before every batch.

    Returns:
        The metrics, and messages about the files that this process skipped.

    Raises:
        Interrupted: when ``stop`` says so.
        DataError: for a file that cannot be read.
    """
    metric = task.metric()
    skipped: list[str] = []
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for batch in batches:
            if stop():
                raise Interrupted
            skipped += batch.skipped
            read = read_batch(batch, device)
            if read is None:
                continue
            with autocast():
                logits = model(read[0])
            metric.update(logits.float(), read[1])
    finally:
        for module, training in modes:
            module.training = training
    metric.gather()
    return metric.compute(), skipped

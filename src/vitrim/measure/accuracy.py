"""Predictions, top-1 accuracy, and agreement with the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Images = Tensor | Sequence[Tensor]


def predict(model: nn.Module, images: Images, batch_size: int = 64) -> Tensor:
    """``(N, classes)`` logits in float32 on the CPU.

    Args:
        model: a model whose output is logits, or has them as ``.logits``; run in evaluation mode.
        images: ``(N, C, H, W)``, or a sequence of ``(C, H, W)``, ready for the model; moved to its device and type.
        batch_size: images per forward pass.

    Raises:
        ValueError: without images.
        FloatingPointError: when a logit is not a number, naming the method at work.
    """
    if len(images) == 0:
        raise ValueError("no images to predict")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = torch.cat(
                [_logits(model, batch_of(images, i, batch_size, model)) for i in range(0, len(images), batch_size)]
            )
    finally:
        model.train(training)
    if logits.isnan().any():
        bad = int(logits.isnan().any(dim=1).sum())
        name = getattr(getattr(model, "reduction", None), "method", None)
        who = f"method '{name}'" if name else f"the dense {type(model).__name__}"
        raise FloatingPointError(f"{who} gave NaN logits for {bad} of {len(logits)} images")
    return logits


def batch_of(images: Images, start: int, size: int, model: nn.Module) -> Tensor:
    """``(size, C, H, W)`` from ``start`` on, on the device and in the floating-point type of the model."""
    part = images[start : start + size]
    batch = part if isinstance(part, Tensor) else torch.stack(list(part))
    reference = next(model.parameters(), None)
    return batch if reference is None else batch.to(device=reference.device, dtype=reference.dtype)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of images in [0, 1] whose highest logit is the label.

    Raises:
        ValueError: when there are not as many labels as images.
    """
    if len(logits) != len(labels):
        raise ValueError(f"{len(labels)} labels for {len(logits)} images")
    return int((logits.argmax(dim=1) == labels.to(logits.device)).sum()) / len(labels)


def agreement(logits: Tensor, dense: Tensor) -> float:
    """Share of images in [0, 1] for which two models predict the same class; needs no labels."""
    return top1(logits, dense.argmax(dim=1))


def _logits(model: nn.Module, batch: Tensor) -> Tensor:
    out: Any = model(batch)
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise ValueError(f"{type(model).__name__} does not return (N, classes) logits; pass the model with its classifier")
    return out.float().cpu()

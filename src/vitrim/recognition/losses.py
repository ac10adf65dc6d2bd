"""Losses between the images, or the views, of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(features: Tensor, labels: Tensor, margin: float = 0.4) -> Tensor:
    """TransFG's contrastive loss: images of one class alike, cosines of different classes below a margin.

    Args:
        features: ``(B, D)``.
        labels: ``(B,)``.
        margin: cosine up to which different classes cost nothing.
    """
    unit = F.normalize(_full(features), dim=-1)
    cosine = unit @ unit.T
    same = labels[:, None] == labels[None]
    return torch.where(same, 1 - cosine, (cosine - margin).clamp(min=0)).mean()


def supervised_contrastive(features: Tensor, labels: Tensor | None = None, tau: float = 0.07) -> Tensor:
    """Supervised contrastive loss (Khosla et al., 2020): views of one image, or of one class, are each other's positives.

    Args:
        features: ``(B, views, D)``, normalised here.
        labels: ``(B,)``; None where every image is a class of its own.
        tau: temperature.
    """
    images, views = features.shape[:2]
    unit = F.normalize(_full(features), dim=-1).transpose(0, 1).flatten(0, 1)
    if labels is None:
        labels = torch.arange(images, device=features.device)
    label = labels.repeat(views)
    itself = torch.eye(len(unit), dtype=torch.bool, device=features.device)
    logits = (unit @ unit.T / tau).masked_fill(itself, float("-inf"))
    log_p = logits.log_softmax(-1).masked_fill(itself, 0)
    positive = (label[:, None] == label[None]) & ~itself
    return -((log_p * positive).sum(-1) / positive.sum(-1).clamp(min=1)).mean()


def consistency(logits: Tensor, official: bool = False) -> Tensor:
    """Divergence of the predictions of several views from their mean (Jensen-Shannon), the mean over images.

    Args:
        logits: ``(B, views, classes)``.
        official: without the logarithm of the mean, which the published code leaves out; the value is then no divergence.
    """
    p = _full(logits).softmax(dim=-1)
    mixed = p.mean(dim=1).clamp(1e-7, 1)
    against = mixed if official else mixed.log()
    each = [F.kl_div(against, view, reduction="batchmean") for view in p.unbind(dim=1)]
    return torch.stack(each).mean()


def _full(x: Tensor) -> Tensor:
    # Losses in half precision lose their small terms.
    return x if x.dtype is torch.float64 else x.float()

"""Initialisation that the learned methods share."""

from __future__ import annotations

from torch import nn


def init_linear(module: nn.Module) -> None:
    """The initialiser of the vision transformers: truncated normal weights (std 0.02), zero biases, for all Linear layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.weight.numel():  # a stage that leaves no token has nothing to draw
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

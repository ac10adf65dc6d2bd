"""Heads that read patch tokens, made aware of how many patches each token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.core.patch import Patch
from vitrim.core.reduction import Reduction
from vitrim.core.tap import Tap


def family_of(module: nn.Module, library: str) -> set[str]:
    """Names of the classes of ``library`` that the module is an instance of, without importing the library."""
    return {c.__name__ for c in type(module).__mro__ if c.__module__.split(".")[0] == library}


def weighted_mean(x: Tensor, mass: Tensor) -> Tensor:
    """Mean over tokens of ``x (B, n, C)`` with weights ``mass (B, n)``: what the dense mean is for merged tokens."""
    # Sum and division, not a product with shares: for equal masses this is the dense mean, bit for bit.
    total = (x * mass.unsqueeze(-1)).sum(dim=1)
    return (total / mass.sum(dim=1, keepdim=True)).to(x.dtype)


class HeadPatch(Patch):
    """A patch over a part behind the blocks."""

    def __init__(self, module: nn.Module, reduction: Reduction) -> None:
        super().__init__(module)
        self.reduction = reduction

    @property
    def prefix(self) -> int:
        """Number of prefix tokens of the model."""
        return self.reduction.layout.prefix

    def mass(self) -> Tensor | None:
        """``(B, patches)`` weights of the patch tokens in the last forward pass, or None."""
        state = self.reduction.final
        return None if state is None else state.mass(self.prefix)

    def attention_bias(self) -> Tensor | None:
        """``(B, patches)`` bias of the patch tokens for a head that attends to them, or None."""
        state = self.reduction.final
        if state is None:
            return None
        return None if state.bias is None else state.bias[:, self.prefix :]


class AttentionPoolPatch(HeadPatch):
    """A head that attends to the patch tokens: log-sizes and padding enter its logits as in the blocks.

    ``module`` is the pooling module; it may see the whole sequence or the patches alone.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Pool ``x (B, n, C)``; arguments as the module's own."""
        bias = self.attention_bias()
        if bias is None:
            return self.original(x, *args, **kwargs)
        missing = x.shape[1] - bias.shape[1]
        if missing:
            bias = torch.cat([bias.new_zeros(bias.shape[0], missing), bias], dim=1)
        with Tap([], x.shape[1], bias):
            return self.original(x, *args, **kwargs)


class IntermediatesPatch(HeadPatch):
    """``forward_intermediates`` of timm: features are un-merged, so that they have the shape of the dense model's.

    Positions of dropped tokens hold zeros.
    """

    name = "forward_intermediates"

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As timm's method; intermediate features come back on the full patch grid, final features stay reduced."""
        out = self.original(
            x, indices=indices, return_prefix_tokens=return_prefix_tokens, norm=norm, stop_early=stop_early,
            output_fmt="NLC", intermediates_only=intermediates_only, **kwargs,
        )  # fmt: skip
        layers = taken(self.reduction.depth, indices)
        grid = self.module.patch_embed.dynamic_feat_size(x.shape[-2:]) if output_fmt == "NCHW" else None  # pyright: ignore
        if isinstance(out, dict):
            pairs = zip(out["image_intermediates"], layers, strict=True)
            return {**out, "image_intermediates": [self._dense(y, i, grid) for y, i in pairs]}
        found = out if intermediates_only else out[1]
        dense = [
            (self._dense(y[0], i, grid), y[1]) if isinstance(y, tuple) else self._dense(y, i, grid)
            for y, i in zip(found, layers, strict=True)
        ]
        return dense if intermediates_only else (out[0], dense)

    def _dense(self, y: Tensor, layer: int, grid: tuple[int, int] | None) -> Tensor:
        state = self.reduction.state_after(layer)
        maps = () if state is None else state.maps
        for step in reversed(maps):
            y = step.without_prefix(self.prefix).lift(y)
        return y if grid is None else y.transpose(1, 2).reshape(y.shape[0], -1, *grid).contiguous()


def taken(depth: int, indices: int | Sequence[int] | None) -> list[int]:
    """The blocks whose features are taken, as timm reads ``indices``."""
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        return list(range(depth - indices, depth))
    return sorted({i % depth for i in indices})

"""ConvPass: adapters with a convolution over the patch grid."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.registry import TUNERS, SpecError
from vitrim.core.tuner import Arrangement, Ground
from vitrim.tuning.adapter import InBlock, start_up


class ConvBottleneck(nn.Module):
    """``up(gelu(conv(gelu(down(x)))))``; tokens without a cell go through the centre of the kernel alone.

    Args:
        dim: width of the tokens.
        inner: width of the bottleneck.
        kernel: side of the kernel, odd.
        official: start with Xavier weights in the last layer too.
    """

    def __init__(self, dim: int, inner: int, kernel: int, *, official: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(dim, inner)
        self.conv = nn.Conv2d(inner, inner, kernel, padding=kernel // 2)
        self.up = nn.Linear(inner, dim)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.xavier_uniform_(self.conv.weight)
        start_up(self.up, official)

    def forward(self, x: Tensor, at: Arrangement) -> Tensor:
        """``(B, n, C) -> (B, n, C)``; on a reduced sequence a merged token reads the mean of its cells."""
        u = F.gelu(self.down(x))
        return self.up(F.gelu(at.gather(self.conv(at.spread(u)), centre(self.conv, u, at))))


def centre(conv: nn.Conv2d, u: Tensor, at: Arrangement) -> Tensor:
    """``u (B, n, c)`` through the centre of a kernel: what the convolution does to an image of one pixel.

    While the grid is whole, only the tokens that are no patches need it; the others come out as they are.
    """
    weight = conv.weight[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2]
    if at.maps or at.grid is None:
        return F.linear(u, weight, conv.bias)
    end = at.prefix + at.grid[0] * at.grid[1]
    parts = [F.linear(u[:, : at.prefix], weight, conv.bias), u[:, at.prefix : end], F.linear(u[:, end:], weight, conv.bias)]
    return torch.cat(parts, dim=1)


@TUNERS.register("convpass")
class ConvPass(InBlock):
    """An adapter in every block with a convolution over the patch grid between its two layers.

    Class token and registers pass through the kernel's centre. Where tokens were reduced, they are laid out on the grid of the
    input and brought back: merged tokens stand in all of their cells, pruned ones leave zeros.

    Args:
        dim: width of the bottleneck.
        kernel: side of the kernel, odd.
        path: as of ``adapter``.
        scale: factor of what is added.
        drop: dropout of what is added.
        compat: as of ``adapter``.
    """

    paper: ClassVar[str] = "Jie and Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, arXiv:2207.07039"

    def __init__(
        self,
        *,
        dim: int = 8,
        kernel: int = 3,
        path: str = "both",
        scale: float = 1.0,
        drop: float = 0.0,
        compat: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        self.dim, self.kernel, self.path, self.scale, self.drop, self.compat = dim, kernel, path, scale, drop, compat
        self._check()
        if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel is an odd number, so that the grid keeps its size; got {kernel!r}")

    def setup(self, ground: Ground) -> None:
        if ground.layout.grid is None:
            raise SpecError("convpass needs to know the patch grid, which this model does not tell")
        super().setup(ground)

    def build(self, dim: int) -> nn.Module:
        return ConvBottleneck(dim, self.dim, self.kernel, official=self.compat == "official")

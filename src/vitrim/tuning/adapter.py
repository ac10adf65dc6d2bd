"""Bottleneck adapters in the blocks, and where they are attached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.registry import TUNERS
from vitrim.core.tuner import Arrangement, Ground, Half, Tuner

PATHS = ("both", "mlp", "sequential")


class Bottleneck(nn.Module):
    """``up(gelu(down(x)))``: one adapter.

    Args:
        dim: width of the tokens.
        inner: width between the two layers.
        official: start with Xavier weights in both layers, as published, not as a function that adds nothing.
    """

    def __init__(self, dim: int, inner: int, *, official: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(dim, inner)
        self.up = nn.Linear(inner, dim)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        start_up(self.up, official)

    def forward(self, x: Tensor, at: Arrangement) -> Tensor:
        """``(B, n, C) -> (B, n, C)``."""
        return self.up(F.gelu(self.down(x)))


class InBlock(Tuner):
    """What adapters and ConvPass have in common: a small module in every block, on one of the paths of the ILA code base.

    The settings are those of the subclasses.
    """

    dim: int
    path: str
    scale: float
    drop: float
    compat: str

    def _check(self, **numbers: Any) -> None:
        check_width(self.dim)
        if self.path not in PATHS:
            raise ValueError(f"path is {', '.join(PATHS)}; got {self.path!r}")
        check_compat(self.compat)
        self.beside: Sequence[Half] = ("attention", "mlp") if self.path == "both" else ("mlp",) if self.path == "mlp" else ()

    def build(self, dim: int) -> nn.Module:
        """One of the small modules, for tokens of width ``dim``."""
        raise NotImplementedError

    def setup(self, ground: Ground) -> None:
        self.mlp = nn.ModuleList(self.build(ground.dim) for _ in range(ground.depth))
        if self.path == "both":
            self.attention = nn.ModuleList(self.build(ground.dim) for _ in range(ground.depth))
        self.dropout = ByteDropout(self.drop)

    def add(self, half: Half, layer: int, n: Tensor, at: Arrangement) -> Tensor:
        modules = self.attention if half == "attention" else self.mlp
        return self.scale * self.dropout(modules[layer](n, at))

    def behind(self, layer: int, x: Tensor, at: Arrangement) -> Tensor:
        return x + self.scale * self.dropout(self.mlp[layer](x, at)) if self.path == "sequential" else x


@TUNERS.register("adapter")
class Adapter(InBlock):
    """A bottleneck adapter in every block: down-projection, GELU, up-projection.

    Args:
        dim: width of the bottleneck.
        path: ``both`` adds to attention and MLP, reading what they read (parallel); ``mlp`` to the MLP alone; ``sequential``
            reads the block's result and adds to it. The code of ILA calls them convpass, ours and pfeiffer.
        scale: factor of what is added.
        drop: dropout of what is added.
        compat: ``official`` starts from Xavier weights; ``paper`` from an up-projection of zeros, so that the model is unchanged
            before the first step.
    """

    paper: ClassVar[str] = "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, arXiv:1902.00751"

    def __init__(
        self,
        *,
        dim: int = 8,
        path: str = "both",
        scale: float = 1.0,
        drop: float = 0.0,
        compat: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        self.dim, self.path, self.scale, self.drop, self.compat = dim, path, scale, drop, compat
        self._check()

    def build(self, dim: int) -> nn.Module:
        return Bottleneck(dim, self.dim, official=self.compat == "official")


class ByteDropout(nn.Dropout):
    """Dropout whose backward pass keeps one byte per element on every device; ``nn.Dropout`` keeps a float on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.native_dropout(input, self.p, True)[0] if self.training and self.p else input


def start_up(layer: nn.Linear, official: bool) -> None:
    """Start values of an up-projection: zeros, or as published Xavier weights and biases of about 1e-6."""
    if official:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(layer.bias, std=1e-6)
    else:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def check_width(dim: Any) -> None:
    """Refuse a bottleneck that has no width."""
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"dim is the width of the bottleneck, 1 or more; got {dim!r}")


def check_compat(compat: Any) -> None:
    """Refuse an unknown ``compat``."""
    if compat not in ("paper", "official"):
        raise ValueError(f"compat is paper or official; got {compat!r}")

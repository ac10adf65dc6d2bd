"""Inter-layer adapters: modules between the blocks, of which some make the patch grid smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.registry import TUNERS, SpecError
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tuner import Arrangement, Grid, Ground, Tuner
from vitrim.tuning.adapter import Adapter, ByteDropout, check_compat, check_width, start_up

NORMS = ("bn", "ln", None)
RESIDUALS = ("depthwise", "conv", "pool", None)


class _TokenNorm(nn.Module):
    """Batch norm over channels, with statistics over all tokens ``(B, n, c)``, or layer norm."""

    def __init__(self, kind: str | None, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm1d(width) if kind == "bn" else nn.LayerNorm(width) if kind == "ln" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2) if self.kind == "bn" else self.norm(x)


class _CellNorm(nn.Module):
    """Batch norm of cells ``(B, c, h, w)``, or layer norm over their channels."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm2d(width) if kind == "bn" else nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.kind == "bn" else self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class InterLayer(nn.Module):
    """One inter-layer adapter: a bottleneck with a convolution over the grid, and a residual branch.

    Args:
        dim: width of the tokens.
        inner: width of the bottleneck.
        kernel: side of the kernels.
        same: pad, so that the grid keeps its size.
        norms: the three norms: after the down-projection, between the convolutions, before the up-projection.
        multiplier: channels per channel of the depth-wise convolution; 0 for one dense convolution without a norm.
        dilation: of the convolution in the bottleneck, with padding alone.
        apart: tokens that are no patches have a layer of their own; else the convolution sees them as images of one pixel.
        residual: ``depthwise``, ``conv``, ``pool``, ``identity`` or None.
        start: what a residual convolution starts as: ``mean``, ``sum``, ``ones`` or ``xavier``.
        drop: dropout of the bottleneck's result.
        official: start the up-projection with Xavier weights.
    """

    def __init__(
        self, dim: int, inner: int, kernel: int, *, same: bool, norms: Sequence[str | None], multiplier: int, dilation: int,
        apart: bool, residual: str | None, start: str, drop: float, official: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.residual = residual
        padding = kernel // 2 if same else 0
        wide_padding = dilation * (kernel - 1) // 2 if same else 0
        self.down = nn.Linear(dim, inner)
        self.norm1, self.norm3 = _TokenNorm(norms[0], inner), _TokenNorm(norms[2], inner)
        self.token = nn.Linear(inner, inner) if apart else None
        if multiplier:
            wide = inner * multiplier
            self.conv = nn.Conv2d(inner, wide, kernel, padding=wide_padding, dilation=dilation, groups=inner)
            self.norm2 = _CellNorm(norms[1], wide) if norms[1] is not None else None
            self.mix = nn.Conv2d(wide, inner, 1)
        else:
            self.conv = nn.Conv2d(inner, inner, kernel, padding=wide_padding, dilation=dilation)
            self.norm2 = self.mix = None
        self.up = nn.Linear(inner, dim)
        self.dropout = ByteDropout(drop)
        if residual == "pool":
            self.skip = nn.AvgPool2d(kernel, stride=1, padding=padding)
        elif residual in ("depthwise", "conv"):
            self.skip = nn.Conv2d(dim, dim, kernel, padding=padding, groups=dim if residual == "depthwise" else 1, bias=False)
        self._start(start, kernel, official)

    def _start(self, start: str, kernel: int, official: bool) -> None:
        for layer in (self.down, self.conv, self.mix, self.token):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.down.bias)
        start_up(self.up, official)
        skip = getattr(self, "skip", None)
        if not isinstance(skip, nn.Conv2d):
            return
        weight = skip.weight
        if start == "xavier":
            nn.init.xavier_uniform_(weight)
        elif start == "ones":
            nn.init.ones_(weight)
        elif start == "sum":
            nn.init.normal_(weight, mean=1.0, std=0.001)
        elif self.residual == "depthwise":
            nn.init.constant_(weight, 1.0 / kernel**2)
        else:
            with torch.no_grad():
                weight.copy_(torch.eye(len(weight))[:, :, None, None].expand_as(weight) / kernel**2)

    def forward(self, x: Tensor, at: Arrangement) -> Tensor:
        """Tokens ``(B, n, C)`` to tokens; those of the grid are fewer without padding."""
        u = F.gelu(self.norm1(self.down(x)))
        cells = self.conv(at.spread(u))
        if self.norm2 is not None:
            cells = F.gelu(self.norm2(cells))
        if self.mix is not None:
            cells = self.mix(cells)
        u = at.gather(cells, self._alone(u, at))
        y = self.dropout(self.up(F.gelu(self.norm3(u))))
        if self.residual is None:
            return y
        if self.residual == "identity":
            return x + y
        return at.gather(self.skip(at.spread(x)), x) + y

    def _alone(self, u: Tensor, at: Arrangement) -> Tensor:
        """What tokens without a cell become. With the grid whole only those are computed: patches pass as they are."""
        end = u.shape[1] if at.maps or at.grid is None else at.prefix + at.grid[0] * at.grid[1]
        if at.maps:
            return self._one(u)
        parts = [self._one(u[:, : at.prefix]), u[:, at.prefix : end], self._one(u[:, end:])]
        return torch.cat([part for part in parts if part.shape[1]], dim=1)

    def _one(self, u: Tensor) -> Tensor:
        if self.token is not None or not u.shape[1]:
            return u if self.token is None else self.token(u)
        cells = self.conv(u.reshape(-1, u.shape[-1], 1, 1))
        if self.norm2 is not None:
            cells = F.gelu(self.norm2(cells))
        if self.mix is not None:
            cells = self.mix(cells)
        return cells.reshape(*u.shape[:2], -1)


@TUNERS.register("ila")
class InterLayerAdapter(Tuner):
    """Down-sampling inter-layer adapters: trainable modules between frozen blocks, two of which make the patch grid smaller.

    A valid ``kernel x kernel`` convolution takes ``kernel - 1`` from both sides of the grid: 14 x 14 patches are 12 x 12 after
    the first and 10 x 10 after the second. The residual branch is a depth-wise convolution of all channels; the class token and
    registers are not mixed with patches. ILA is ``ila``, ILA+ is ``ila(plus=1)``, ILA++ is ``ila(plus=2)``.

    Args:
        dim: width of the bottleneck.
        kernel: side of the kernels of the modules that make the grid smaller.
        at: blocks that such a module follows.
        plus: 1 adds modules of a padded convolution after all other blocks (ILA+); 2 adds adapters in all blocks (ILA++).
        between: blocks that a padded module follows, in place of the choice of ``plus``.
        between_kernel: side of their kernels.
        norms: the norms in the bottleneck: ``bn``, ``ln`` or none, for all or as a list of three.
        multiplier: channels per channel of the depth-wise convolution in the bottleneck; 0 for one dense convolution.
        dilation: of that convolution in the modules that keep the grid.
        residual: branch beside the bottleneck: ``depthwise``, ``conv``, ``pool`` or ``none``.
        start: what its convolution starts as: ``mean`` of the window, ``sum`` (with noise of 0.001, as published), ``ones`` or
            ``xavier``; by default mean, and sum with ``compat=official``.
        padding: keep the size of the grid in all modules; for experiments, as nothing gets cheaper.
        separate: tokens that are no patches have a layer of their own in the bottleneck. Without it the published code
            pads all modules of a model with a class token.
        drop: dropout of the bottleneck's result.
        compat: ``official`` starts as published: Xavier weights in the up-projection, a sum in the residual branch. ``paper``
            starts from a model that only averages windows.
    """

    paper: ClassVar[str] = "Rios et al., Down-Sampling Inter-Layer Adapter, ECCV Workshops 2024, arXiv:2409.11051"

    def __init__(
        self,
        *,
        dim: int = 8,
        kernel: int = 3,
        at: Sequence[int] = (3, 7),
        plus: int = 0,
        between: Sequence[int] | None = None,
        between_kernel: int = 3,
        norms: str | Sequence[str | None] | None = "bn",
        multiplier: int = 1,
        dilation: int = 1,
        residual: str | None = "depthwise",
        start: str | None = None,
        padding: bool = False,
        separate: bool = True,
        drop: float = 0.1,
        compat: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        check_width(dim)
        check_compat(compat)
        if plus not in (0, 1, 2):
            raise ValueError(f"plus is 0 (ILA), 1 (ILA+) or 2 (ILA++); got {plus!r}")
        if residual not in RESIDUALS:
            raise ValueError(f"residual is depthwise, conv, pool or none; got {residual!r}")
        if start not in (None, "mean", "sum", "ones", "xavier"):
            raise ValueError(f"start is mean, sum, ones or xavier; got {start!r}")
        if not all(isinstance(k, int) and k > 0 for k in (kernel, between_kernel)) or between_kernel % 2 == 0:
            raise ValueError(
                f"kernels are whole numbers, odd where they pad; got kernel={kernel}, between_kernel={between_kernel}"
            )
        named = [norms] * 3 if isinstance(norms, str) or norms is None else list(norms)
        if len(named) != 3 or not set(named) <= set(NORMS):
            raise ValueError(f"norms is bn, ln or none, or a list of three of them; got {norms!r}")
        self.dim, self.kernel, self.at, self.plus, self.between = dim, kernel, list(at), plus, between
        self.between_kernel, self.norms, self.multiplier, self.residual = between_kernel, norms, multiplier, residual
        self.start, self.padding, self.separate, self.drop = start, padding, separate, drop
        self.compat: Literal["paper", "official"] = compat
        self.dilation = dilation
        self._named = named

    def expand(self) -> list[Tuner]:
        adapters: list[Tuner] = [Adapter(dim=self.dim, drop=self.drop, compat=self.compat)] if self.plus == 2 else []
        return [self, *adapters]

    def setup(self, ground: Ground) -> None:
        layout = ground.layout
        if layout.grid is None:
            raise SpecError("ila needs to know the patch grid, which this model does not tell")
        late = [i for i in self.at if not 0 <= i < ground.depth]
        if late:
            raise SpecError(
                f"block {late[0]} does not exist: the model has {ground.depth} blocks, numbered 0 to {ground.depth - 1}"
            )
        if len(self.at) * (self.kernel - 1) >= min(layout.grid) and not self._padded(layout.prefix):
            raise SpecError(f"{len(self.at)} modules with kernel {self.kernel} leave nothing of a grid of {layout.grid}")
        others = [i for i in range(ground.depth) if i not in self.at] if self.plus == 1 else []
        places = others if self.between is None else list(self.between)
        self.same = nn.ModuleDict({str(i): self._module(ground, self.between_kernel, "identity", True) for i in places})
        # A block that both lists name gets the padded module alone, as published.
        places = [i for i in self.at if str(i) not in self.same]
        padded = self._padded(layout.prefix)
        residual = "identity" if self.residual is None and padded else self.residual
        self.smaller = nn.ModuleDict({str(i): self._module(ground, self.kernel, residual, padded) for i in places})

    def _padded(self, prefix: int) -> bool:
        return self.padding or (prefix > 0 and not self.separate)

    def _module(self, ground: Ground, kernel: int, residual: str | None, same: bool) -> InterLayer:
        official = self.compat == "official"
        return InterLayer(
            ground.dim, self.dim, kernel, same=same, norms=self._named, multiplier=self.multiplier,
            dilation=self.dilation if same else 1, apart=self.separate and ground.layout.prefix > 0, residual=residual,
            start=self.start or ("sum" if official else "mean"), drop=self.drop, official=official,
        )  # fmt: skip

    def _after(self, layer: int) -> InterLayer | None:
        key = str(layer)
        found: Any = self.same if key in self.same else self.smaller
        return found[key] if key in found else None  # noqa: SIM401 (ModuleDict has no get)

    def shrink(self, layer: int, grid: Grid) -> Grid | None:
        module = self._after(layer)
        if module is None or str(layer) in self.same:
            return None
        padding = module.conv.padding[0]
        less = self.kernel - 1 - 2 * int(padding)
        return (grid[0] - less, grid[1] - less) if less else None

    def behind(self, layer: int, x: Tensor, at: Arrangement) -> Tensor:
        module = self._after(layer)
        if module is None or (at.grid is not None and self.shrink(layer, at.grid) is not None):
            return x
        return module(x, at)

    def down_sample(self, layer: int, x: Tensor, at: Arrangement) -> tuple[Tensor, TokenMap]:
        module = self._after(layer)
        assert module is not None
        assert at.grid is not None
        return module(x, at), windows(at.grid, self.kernel, x)


def windows(grid: Grid, kernel: int, like: Tensor) -> TokenMap:
    """The map of patches that every cell of the smaller grid stands for: the mean of its window, ``(B, m, n)``."""
    eye = torch.eye(grid[0] * grid[1], device=like.device).reshape(-1, 1, *grid)
    pooled = F.avg_pool2d(eye, kernel, stride=1).flatten(1)
    return TokenMap.soft(pooled.t().expand(like.shape[0], -1, -1))

"""The base class of a parameter-efficient fine-tuning method: what it may add to a frozen model, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.backbone import Backbone, Layout
from vitrim.core.cache import Head
from vitrim.core.patch import Patch
from vitrim.core.registry import settings_of
from vitrim.core.tokenmap import TokenMap

Grid = tuple[int, int]
Half = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Ground:
    """The model that a tuner is set up for.

    Attributes:
        model: the model itself.
        backbone: how it is read.
        layout: its token layout.
        blocks: its blocks, in order.
    """

    model: nn.Module
    backbone: Backbone
    layout: Layout
    blocks: Sequence[nn.Module]

    @property
    def dim(self) -> int:
        """Width of the tokens."""
        return self.layout.dim

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers within the blocks, by their names in the model."""
        inside = {id(m) for block in self.blocks for m in block.modules()}
        return {n: m for n, m in self.model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside}


@dataclass(frozen=True)
class Arrangement:
    """Where the tokens of a sequence lie, for what works on the patch grid.

    Attributes:
        prefix: leading tokens that are no patches.
        grid: height and width of the patch grid (of the input, or what a down-sampling tuner left of it); None when unknown.
        maps: the maps of the reductions since the grid was whole, in order; empty while every cell has its token.
    """

    prefix: int
    grid: Grid | None
    maps: tuple[TokenMap, ...] = ()

    def spread(self, x: Tensor) -> Tensor:
        """Lay tokens out on the grid: ``(B, n, c) -> (B, c, height, width)``.

        Merged tokens stand in all of their cells, pruned ones leave zeros.

        Raises:
            ValueError: when the grid is not known.
        """
        if self.grid is None:
            raise ValueError("the patches of this input form no known grid, which a convolution over patches needs")
        height, width = self.grid
        for step in reversed(self.maps):
            x = step.lift(x[:, : step.m])  # guests, at the end, are in no map
        cells = x[:, self.prefix : self.prefix + height * width]
        return cells.transpose(1, 2).reshape(len(x), -1, height, width)

    def gather(self, cells: Tensor, apart: Tensor) -> Tensor:
        """Bring cells ``(B, c, height, width)`` back to tokens; those that stand for no cell are taken from ``apart (B, n, c)``.

        The cells may be a smaller grid than the one spread, as long as nothing was reduced.
        """
        flat = cells.flatten(2).transpose(1, 2)
        if not self.maps:
            assert self.grid is not None
            rest = apart[:, self.prefix + self.grid[0] * self.grid[1] :]
            parts = [apart[:, : self.prefix], flat, rest]
            return torch.cat([part for part in parts if part.shape[1]], dim=1)
        # A column of ones travels along: the share of a token that comes from cells.
        cells_and_ones = torch.cat([flat, torch.ones_like(flat[..., :1])], dim=-1)
        y = F.pad(cells_and_ones, (0, 0, self.prefix, self.maps[0].n - self.prefix - flat.shape[1]))
        for step in self.maps:
            y = step.pool(y)
        y = F.pad(y, (0, 0, 0, apart.shape[1] - y.shape[1]))
        share = y[..., -1:]
        return torch.where(share > 0, y[..., :-1] / share.clamp_min(1e-6), apart)


class Tuner(nn.Module):
    """A parameter-efficient fine-tuning method.

    The keyword-only constructor arguments are the hyper-parameters, each stored under its own name. One instance serves a
    whole model; what it trains are its own parameters. All methods below do nothing by default.

    Attributes:
        paper: where the method comes from.
        beside: the halves of a block that get something added: ``attention``, ``mlp``; see :meth:`add`.
        works_in_blocks: whether the method does anything while the blocks run: guests, additions, down-sampling. Methods that
            put patches over modules, or only say what is trained, need no engine.
        mergeable: whether :meth:`merge` can write the method into the weights.
        asks_only: guests ask, but no other token can attend to them.
        asks_first: the first tokens are taken for the guests, as the published code of VQT does.
        head: the classifier that takes the place of the model's own, or None.
    """

    spec_name: ClassVar[str]
    paper: ClassVar[str] = ""
    works_in_blocks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    beside: Sequence[Half] = ()
    asks_only: bool = False
    asks_first: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.head: Head | None = None  # not on the class, where it would hide a module of this name

    def expand(self) -> list[Tuner]:
        """The tuners that this one stands for: itself, or several for the name of a combination."""
        return [self]

    def setup(self, ground: Ground) -> None:
        """Create the parameters for a model.

        Raises:
            SpecError: when the model cannot be served.
        """

    def trained(self, ground: Ground) -> set[str]:
        """Names of the model's own parameters that the method trains."""
        return set()

    def patches(self, ground: Ground) -> list[Patch]:
        """What goes over the model's modules."""
        return []

    def guests(self, layer: int, left: Tensor | None, batch: int) -> Tensor | None:
        """Tokens ``(B, P, C)`` that are with the sequence in block ``layer`` alone, or None.

        Args:
            layer: the block.
            left: what the block before left of its guests, or None.
            batch: number of images B.
        """
        return None

    def guest_count(self, layer: int) -> int:
        """Number P of guests in block ``layer``."""
        return 0

    def add(self, half: Half, layer: int, n: Tensor, at: Arrangement) -> Tensor:
        """What is added to the output of a half of block ``layer``.

        Args:
            half: ``attention`` or ``mlp``.
            layer: the block.
            n: ``(B, n, C)`` what the attention, or the MLP, gets: after the norm.
            at: where the tokens lie.
        """
        raise NotImplementedError

    def behind(self, layer: int, x: Tensor, at: Arrangement) -> Tensor:
        """Tokens ``(B, n, C)`` after block ``layer``, guests among them at the end, to tokens of the same number."""
        return x

    def shrink(self, layer: int, grid: Grid) -> Grid | None:
        """The grid after block ``layer`` where the method down-samples, or None where it leaves the number of tokens."""
        return None

    def down_sample(self, layer: int, x: Tensor, at: Arrangement) -> tuple[Tensor, TokenMap]:
        """Tokens on the grid that :meth:`shrink` names, and the map of patches that says what they stand for, prefix included."""
        raise NotImplementedError

    def merge(self, ground: Ground) -> None:
        """Write the method into the model's weights; :attr:`mergeable` methods only."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as given."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

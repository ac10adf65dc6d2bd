"""One block under the engine, as tuning methods see it: guests come in and leave, something is added beside and behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrim.core.backbone import Layout
from vitrim.core.state import Memory, State
from vitrim.core.tuner import Arrangement, Grid, Half

if TYPE_CHECKING:
    from vitrim.core.tuning import Tuning


class TunedBlock:
    """The tuning at block ``layer``.

    Args:
        tuning: the methods.
        layer: the block.
        prefix: leading tokens that are no patches.
    """

    def __init__(self, tuning: Tuning, layer: int, prefix: int) -> None:
        self.tuning = tuning
        self.layer = layer
        self.prefix = prefix
        self.host = tuning.host

    @property
    def beside(self) -> bool:
        """Whether something is added to the attention or the MLP."""
        return bool(self.tuning.beside("attention") or self.tuning.beside("mlp"))

    def askers(self, guests: int) -> int:
        """How :class:`vitrim.core.tap.Tap` is told of guests that only ask."""
        if self.host is None or not self.host.asks_only:
            return 0
        return -guests if self.host.asks_first else guests

    def let_in(self, x: Tensor, memory: Memory) -> Tensor:
        """Tokens ``(B, n, C)`` with the guests of the block behind them."""
        if self.host is None:
            return x
        left = memory.guests[self.layer - 1] if self.layer else None
        guests = self.host.guests(self.layer, left, x.shape[0])
        return x if guests is None else torch.cat([x, guests.to(x.dtype)], dim=1)

    def let_out(self, x: Tensor, state: State, memory: Memory) -> Tensor:
        """The tokens after the block, without the guests, which are remembered."""
        x = self.tuning.behind(self.layer, x, self.at(state))
        count = x.shape[1] - state.n
        if not count:
            return x
        first = self.host is not None and self.host.asks_first
        memory.guests[self.layer] = x[:, :count] if first else x[:, state.n :]
        return x[:, count:] if first else x[:, : state.n]

    def at(self, state: State) -> Arrangement:
        """Where the tokens of a state lie."""
        return Arrangement(self.prefix, state.grid, state.maps[state.whole :])

    def along(self, half: Half, state: State) -> dict[str, Any]:
        """The keyword that lets a half of a block add what the tuners say; empty when they say nothing."""
        return {"beside": Addition(self, half, self.at(state))} if self.tuning.beside(half) else {}


class Addition:
    """What the tuners add to a half of a block: a function of what the attention or the MLP gets."""

    def __init__(self, block: TunedBlock, half: Half, at: Arrangement) -> None:
        self.block = block
        self.half: Half = half
        self.at = at

    def __call__(self, n: Tensor) -> Tensor:
        """``(B, n, C) -> (B, n, C)``."""
        total = self.block.tuning.add(self.half, self.block.layer, n, self.at)
        assert total is not None
        return total


def padded(of: Tensor | None, count: int, value: float | bool) -> Tensor | None:
    """``(B, n)`` with ``count`` columns of ``value`` more; None stays None."""
    return of if of is None or not count else F.pad(of, (0, count), value=value)


def grid_of(layout: Layout, patches: int) -> Grid | None:
    """The patch grid of an input: the model's own, or a square; None when neither fits."""
    if layout.grid is not None and layout.grid[0] * layout.grid[1] == patches:
        return layout.grid
    side = int(patches**0.5)
    return (side, side) if side * side == patches else None

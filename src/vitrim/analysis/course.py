"""Follows the tokens of a reduced or tuned model from block to block, so that each can be led back to the patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrim.core.reduction import Reduction
from vitrim.core.schedule import START
from vitrim.core.tokenmap import TokenMap


class Course:
    """Follows the tokens through the blocks: what those at each place are made of."""

    def __init__(self, model: nn.Module, prefix: int, grid: tuple[int, int] | None) -> None:
        self.runner = _runner(model)
        self.site = "after" if self.runner is None else self.runner.site
        host = getattr(getattr(model, "tuning", None), "host", None)
        self.guests_first = bool(getattr(host, "asks_first", False))
        self.prefix = prefix
        self.grid: tuple[int, int] = grid or (0, 0)
        self.attended: TokenMap | None = None
        self._batch, self._n, self._device = 0, 0, torch.device("cpu")
        self._origin: TokenMap | None = None  # of the tokens on their way
        self._pending: TokenMap | None = None  # from the tokens of the last attention to those on their way

    def enter(self, x: Tensor) -> None:
        """The tokens that come to the first block."""
        patches = x.shape[1] - self.prefix
        if self.grid[0] * self.grid[1] != patches:
            side = int(patches**0.5)
            if side * side != patches:
                raise ValueError(f"{patches} patches form no known grid; build the model for this image size (img_size=)")
            self.grid = (side, side)
        self._batch, self._n, self._device = len(x), x.shape[1], x.device
        self._join(START)

    def attend(self, layer: int, n: int | None) -> TokenMap | None:
        """Go on to the attention of a block over ``n`` tokens; the map from those of the block before."""
        step = self._map(layer)
        if self.site == "around":
            # Pooled around a sub-module only: the tokens on their way are not concerned.
            self.attended = step if step is not None and n == step.m else None
            return None
        if self._happens_before(layer):
            self._advance(step)
        self.attended, way, self._pending = self._origin, self._pending, None
        guests = 0 if n is None else n - self._count
        if guests < 0:
            raise _lost(layer, self._count + guests, self._count)
        if guests:  # they come with the block and end with it
            valid = None if self._origin is None else self._origin.valid
            come = TokenMap.joined(self._batch, self._count, guests, self._device, valid)
            stay = torch.arange(self._count, device=self._device).expand(self._batch, -1)
            self.attended, way = _then(self._origin, come), _then(way, come)
            self._pending = TokenMap.select(stay, self._count + guests)
        return way

    def leave(self, layer: int, n: int) -> TokenMap | None:
        """Go on to the end of a block that leaves ``n`` tokens; the map from the original tokens."""
        if self.site != "around":
            self._advance(None if self._happens_before(layer) else self._map(layer))
            self._join(layer)
        if self._count != n:
            raise _lost(layer, n, self._count)
        return self._origin

    @property
    def _count(self) -> int:
        return self._n if self._origin is None else self._origin.m

    def _advance(self, map: TokenMap | None) -> None:
        self._origin, self._pending = _then(self._origin, map), _then(self._pending, map)

    def _join(self, layer: int) -> None:
        cache = None if self.runner is None else self.runner.cache
        count = 0 if cache is None else cache.joins().get(layer, 0)
        if count and layer == START:  # they are in neither the originals nor the map of a model that has not begun
            self._advance(TokenMap.joined(self._batch, self._n, count, self._device))
        elif count:
            valid = None if self._origin is None else self._origin.valid
            self._advance(TokenMap.joined(self._batch, self._count, count, self._device, valid))

    def _map(self, layer: int) -> TokenMap | None:
        step = None if self.runner is None else self.runner.trace.get(layer)
        return None if step is None or step.policy is not None else step.map

    def _happens_before(self, layer: int) -> bool:
        """Whether the map of a block stands before it; what a tuner does to the grid comes after the block at any site."""
        return self.runner is not None and self.site == "before" and layer in self.runner.plan(self.grid[0] * self.grid[1])


def _runner(model: nn.Module) -> Reduction | None:
    """What runs the blocks of a model, where it changes their tokens."""
    found = getattr(model, "reduction", None)
    if isinstance(found, Reduction):
        return found
    try:
        engine = getattr(getattr(model, "tuning", None), "engine", None)
    except RuntimeError:  # a tuning that does nothing between the blocks has none
        return None
    return engine if isinstance(engine, Reduction) else None


def _then(first: TokenMap | None, second: TokenMap | None) -> TokenMap | None:
    return second if first is None else first if second is None else first.then(second)


def _lost(layer: int, found: int, expected: int) -> ValueError:
    return ValueError(
        f"block {layer} has {found} tokens where {expected} are accounted for; only changes by vitrim.reduce and vitrim.tune can "
        "be followed"
    )

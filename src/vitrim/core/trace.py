"""What happened in the last forward pass: the maps of every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from vitrim.core.tokenmap import TokenMap


@dataclass(frozen=True, eq=False)
class Step:
    """One reduction: its map, and the tokens after it.

    Attributes:
        map: from the tokens before the stage to those after it, prefix included. The identity in mask-based training.
        size: ``(B, m)`` original tokens per token.
        policy: ``(B, m)`` keep decisions of mask-based training, with their gradient; None otherwise.
    """

    map: TokenMap
    size: Tensor
    policy: Tensor | None = None


class Trace(Mapping[int, Step]):
    """The steps of the last forward pass by block, and their composition.

    Attributes:
        prefix: leading tokens that are no patches.
        joins: tokens that a cache appended after each block; they stand for no original token.
    """

    def __init__(self, steps: dict[int, Step], prefix: int, joins: Mapping[int, int] | None = None) -> None:
        self._steps = dict(sorted(steps.items()))
        self.prefix = prefix
        self.joins = dict(joins or {})

    def __getitem__(self, layer: int) -> Step:
        return self._steps[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def upto(self, layer: int) -> TokenMap | None:
        """The map from the original tokens to those after block ``layer``; None when nothing was reduced by then."""
        total = None
        for block in range(layer + 1):
            step = self._steps.get(block)
            if step is not None and total is None:
                # Tokens that joined before the first step are no originals; those of a later block join the composition.
                early = sum(count for at, count in self.joins.items() if at < block)
                first = step.map
                total = TokenMap.joined(first.batch, first.n - early, early, first.device).then(first) if early else first
            elif step is not None and total is not None:
                total = total.then(step.map)
            count = self.joins.get(block, 0)
            if count and total is not None:
                total = total.then(TokenMap.joined(total.batch, total.m, count, total.device, total.valid))
        return total

    @property
    def total(self) -> TokenMap | None:
        """The map from the original tokens to the last ones; None when nothing was reduced."""
        return self.upto(max(self._steps, default=-1))

    def patches(self, layer: int | None = None) -> TokenMap | None:
        """As :meth:`upto` (or :attr:`total`), among the patch tokens only."""
        total = self.total if layer is None else self.upto(layer)
        return None if total is None else total.without_prefix(self.prefix)

"""Bases of :mod:`vitrim.caching` and :mod:`vitrim.heads`: tokens that join between the blocks, and what a head reads there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrim.core.registry import settings_of
from vitrim.core.state import State
from vitrim.core.tokenmap import TokenMap


@dataclass(frozen=True)
class Place:
    """Where in a model a cache or a head works.

    Attributes:
        dim: width of the tokens.
        depth: number of blocks.
        locations: blocks that reduce, ascending.
        cls: position of the class token, or None.
        cls_token: the model's class token ``(1, 1, dim)``, or None where it is not known.
        embeds_prefix: whether the model adds positions to its class token.
        classes: number of classes, or 0 without a classifier.
        norm: the model's norm between the last block and the classifier, or None where it is not known.
        prefix: leading tokens that are no patches.
        grid: patch grid, or None when unknown.
    """

    dim: int
    depth: int
    locations: Sequence[int]
    cls: int | None
    cls_token: Tensor | None
    embeds_prefix: bool
    classes: int
    norm: nn.Module | None = None
    prefix: int = 1
    grid: tuple[int, int] | None = None


class _Plugin(nn.Module):
    spec_name: ClassVar[str]
    paper: ClassVar[str] = ""

    def setup(self, place: Place) -> None:
        """Create the parameters for a model.

        Raises:
            SpecError: when the model cannot be served.
        """

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as given."""
        return {name: getattr(self, name) for name in settings_of(type(self))}


class Cache(_Plugin):
    """Takes tokens from the residual stream of some blocks and appends them to the sequence after later ones.

    The engine appends; sizes (one patch each), padding masks, decisions and positions (those of the class token) follow.

    Attributes:
        protect: keep appended tokens out of every method's sight.
        compat: ``official`` brings back the bugs of the published code.
    """

    protect: bool = False
    compat: str = "paper"

    def joins(self) -> Mapping[int, int]:
        """Tokens that join after each block, and before the first (``vitrim.core.schedule.START``)."""
        raise NotImplementedError

    def start(self) -> Tensor | None:
        """Tokens ``(1, K, C)`` that join the embedded patches, or None."""
        return None

    def window(self, n: int) -> int:
        """Where the tokens end that :meth:`collect` pools before the first return, of ``n`` that enter the first block."""
        return n

    def returning(self, layer: int) -> Sequence[int]:
        """The blocks whose groups are appended after block ``layer``, in order."""
        return ()

    def collects(self, layer: int) -> bool:
        """Whether a group is taken after block ``layer``."""
        return False

    def collect(self, x: Tensor, state: State) -> Tensor:
        """The group ``(B, c, C)`` of the tokens ``x (B, n, C)`` after a block."""
        raise NotImplementedError


class Head(_Plugin):
    """A classifier that reads the tokens after several blocks.

    Attributes:
        taps: the blocks, ascending; set by :meth:`setup`.
        uses_norm: whether the head calls the model's final norm, which then stays trained.
    """

    uses_norm: ClassVar[bool] = False
    taps: Sequence[int] = ()

    def take(self, layer: int, x: Tensor, cls: int | None, guests: Tensor | None, mass: Tensor | None = None) -> Tensor:
        """What is remembered of the tokens ``x (B, n, C)`` after block ``layer``: the class token, or the first one.

        Args:
            layer: the block, one of :attr:`taps`.
            x: its tokens.
            cls: position of the class token, or None.
            guests: ``(B, P, C)`` what the block left of a tuner's guests, or None.
            mass: ``(B, n - prefix)`` how much each patch token counts in an average, or None when all count the same.
        """
        return x[:, cls or 0].clone()  # a view would hold the whole sequence

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        """``(B, F)`` features of what :meth:`take` took after each of :attr:`taps`."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """``(B, classes)`` of the features."""
        raise NotImplementedError


def join(x: Tensor, state: State, tokens: Tensor, *, protect: bool, positional: bool) -> tuple[Tensor, State]:
    """Append ``tokens (B, c, C)`` to ``x (B, n, C)``, and all that belongs to a token to the state.

    Args:
        x: the sequence.
        state: its state.
        tokens: what joins.
        protect: whether methods do not see the new tokens.
        positional: whether the blocks use positions; new tokens get that of the class token.
    """
    batch, count, n = x.shape[0], tokens.shape[1], x.shape[1]

    def more(old: Tensor | None, value: float | bool) -> Tensor | None:
        return None if old is None else torch.cat([old, old.new_full((batch, count), value)], dim=1)

    positions = state.positions
    if positional and positions is None:
        positions = torch.arange(n, device=x.device).expand(batch, n)
    return torch.cat([x, tokens.to(x.dtype)], dim=1), replace(
        state,
        n=n + count,
        size=more(state.size, 1.0),
        valid=more(state.valid, True),
        bias=more(state.bias, 0.0),
        policy=more(state.policy, 1.0),
        positions=more(positions, 0),
        carried=more(state.carried, True),
        suffix=state.suffix + count if protect else 0,
        maps=(*state.maps, TokenMap.joined(batch, n, count, x.device, state.valid)),
    )

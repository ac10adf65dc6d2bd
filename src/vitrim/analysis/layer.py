"""One block of a vision transformer while it runs, and the way back from its tokens to the patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vitrim.analysis.spread import patches_of
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention

_ELEMENTS = 2**26  # of attention matrices that exist at a time: 256 MB in float32


@dataclass(frozen=True, eq=False)
class Layer:
    """One block of a forward pass that is under way.

    Attributes:
        block: its number.
        tokens: ``(B, n, C)`` after the block, as the model computes them.
        origin: map from the original tokens, prefix included, to ``tokens``; None where they are the same.
        attention: queries and keys of the block in float32, or None when it was not asked for.
        attended: map from the original tokens to those in the attention; None where they are the same.
        step: map from the tokens in the attention of the block before to those in this one; None where they are the same.
        prefix: leading tokens that are no patches.
        cls: position of the class token, or None.
        grid: rows and columns of patches.
    """

    block: int
    tokens: Tensor
    origin: TokenMap | None
    attention: Attention | None
    attended: TokenMap | None
    step: TokenMap | None
    prefix: int
    cls: int | None
    grid: tuple[int, int]

    @cached_property
    def features(self) -> Tensor:
        """``(B, prefix + patches, C)`` float32, on the original tokens: a merged token stands in all of its patches, dropped
        ones are zero."""  # noqa: D205, D209
        x = self.tokens.detach().float()
        return x if self.origin is None else self.origin.lift(x)

    @cached_property
    def present(self) -> Tensor | None:
        """``(B, prefix + patches)`` bool: the original tokens that are still there; None when all are."""
        if self.origin is None:
            return None
        ones = torch.ones(self.origin.batch, self.origin.m, 1, device=self.origin.device)
        kept = self.origin.lift(ones).squeeze(-1) > 0
        return None if bool(kept.all()) else kept

    @cached_property
    def mass(self) -> Tensor | None:
        """``(B, n)``: original tokens that each token of the attention stands for; None when each is one."""
        return None if self.attended is None else patches_of(self.attended)

    def see(self) -> Attention:
        """The attention.

        Raises:
            RuntimeError: when the reader was not asked for it.
        """
        if self.attention is None:
            raise RuntimeError("the attention was not read; make the reader with attention=True")
        return self.attention

    def weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Attention after the softmax in float32, some images at a time: ``(images, (b, heads, n, n))``."""
        whole = self.see()
        batch, heads, n, _ = whole.queries.shape
        some = max(1, _ELEMENTS // (heads * n * n))
        for start in range(0, batch, some):
            part = slice(start, min(start + some, batch))
            bias = whole.bias if whole.bias is None or len(whole.bias) == 1 else whole.bias[part]
            yield part, Attention(whole.queries[part], whole.keys[part], whole.values[part], whole.scale, bias).weights()

    def to_patches(self, values: Tensor) -> Tensor:
        """Values of the tokens in the attention ``(B, n)``, to the patches: ``(B, patches)``; each of a merged token gets all."""
        lifted = values if self.attended is None else self.attended.lift(values.unsqueeze(-1)).squeeze(-1)
        return lifted[:, self.prefix : self.prefix + self.grid[0] * self.grid[1]]

    def lifted(self, head: int) -> Tensor:
        """Attention of a head between the original tokens, ``(B, N, N)`` float32.

        Every patch asks as its token does, and gets an equal share of what its token gets; dropped patches do neither.
        """
        whole = self.see()
        one = slice(head, head + 1)
        bias = whole.bias
        if bias is not None and bias.dim() == 4 and bias.shape[1] > 1:
            bias = bias[:, one]
        weights = Attention(whole.queries[:, one], whole.keys[:, one], whole.values[:, one], whole.scale, bias).weights()[:, 0]
        if self.attended is None:
            return weights
        assert self.mass is not None
        share = weights / torch.where(self.mass > 0, self.mass, 1.0)[:, None]
        return self.attended.lift(self.attended.lift(share.mT).mT)

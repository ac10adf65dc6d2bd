"""The cross-layer cache of CLCA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrim.core.cache import Cache, Place
from vitrim.core.registry import CACHES, SpecError
from vitrim.core.schedule import START
from vitrim.core.state import State

RECOVER = ("all", "reductions", "never")


@CACHES.register("clc")
class CrossLayerCache(Cache):
    """After every block, cache the mean of its tokens and the carrier tokens; put all of them back after a reduction.

    Cached are raw tokens of the residual stream, with their gradients. They return at the end of the sequence, after the
    blocks that reduce and after the last block but one. The carriers (CLR, cross-layer registers) are learned tokens that
    start as copies of the class token; once groups have returned, the carrier of the moment is the last of those copies,
    and the tokens that are pooled end where they stood. Both are as published; so is that returned tokens may be pruned or
    merged like any other (but for DPC-KNN, which leaves them alone).

    Args:
        num_clr: number of carriers, appended to the patches before the first block.
        gap: whether the mean of the tokens is cached.
        pool_cls: whether the mean includes the class token.
        pool_clr: whether the mean includes the carriers, before tokens have returned for the first time.
        recover: where groups return: after the ``reductions``, there and after the last block but one (``all``), or ``never``:
            the carriers are plain extra tokens then, and nothing is cached.
        protect: keep carriers and returned tokens out of the sight of every method.
        compat: ``official`` brings back the bugs of the published code: registers are reduced by all methods but DPC-KNN,
            SiT and PatchMerger, padding of ATS enters the mean, and DynamicViT counts returned tokens as dropped in evaluation.
    """

    paper = "Rios et al., Cross-Layer Cache Aggregation for Token Reduction (CLCA), ICASSP 2025, arXiv:2501.00243"

    def __init__(
        self,
        *,
        num_clr: int = 1,
        gap: bool = True,
        pool_cls: bool = False,
        pool_clr: bool = False,
        recover: str = "all",
        protect: bool = False,
        compat: str = "paper",
    ) -> None:
        super().__init__()
        if not isinstance(num_clr, int) or num_clr < 0:
            raise ValueError(f"num_clr is a number of tokens, 0 or more; got {num_clr!r}")
        if recover not in RECOVER:
            raise ValueError(f"recover must be one of {', '.join(RECOVER)}; got {recover!r}")
        if compat not in ("paper", "official"):
            raise ValueError(f"compat must be paper or official; got {compat!r}")
        if not num_clr and (not gap or recover == "never"):
            raise ValueError("there is nothing to cache; set num_clr=1 or more, or gap=true with recover=all")
        self.num_clr = num_clr
        self.gap = gap
        self.pool_cls = pool_cls
        self.pool_clr = pool_clr
        self.recover = recover
        self.protect = protect
        self.compat = compat
        self.clr: nn.Parameter | None = None
        self.pos: nn.Parameter | None = None
        self._returns: dict[int, list[int]] = {}
        self._last = 0
        self._first = 0

    def setup(self, place: Place) -> None:
        self._first = 0 if place.cls is None or self.pool_cls else place.cls + 1
        if self.num_clr:
            if place.cls_token is None:
                raise SpecError("carriers start as copies of the class token, which this model does not show; use clc(num_clr=0)")
            token = place.cls_token.detach().reshape(1, 1, -1)
            self.clr = nn.Parameter(token.repeat(1, self.num_clr, 1))
            if place.embeds_prefix:
                self.pos = nn.Parameter(torch.randn(1, self.num_clr, place.dim) * 0.02)
        if self.recover == "never":
            return
        late = [place.depth - 2] if self.recover == "all" else []
        points = [*place.locations, *late]
        if not points:
            raise SpecError("recover=reductions needs a schedule with blocks that reduce")
        self._last = points[-1]  # as published: the last of the list, not the largest
        before = 0
        for point in sorted(set(points)):
            # A point before anything was cached has nothing to put back; the published code crashes there.
            cached = [i for i in range(before, point) if self.collects(i)]
            if cached:
                self._returns[point] = cached
            before = point

    def joins(self) -> dict[int, int]:
        size = self.gap + self.num_clr
        returning = {point: size * len(cached) for point, cached in self._returns.items()}
        return ({START: self.num_clr} if self.num_clr else {}) | returning

    def start(self) -> Tensor | None:
        if self.clr is None:
            return None
        # A copy: views of a parameter ask for gradients even without autograd, which trackers of modules stumble over.
        return self.clr.clone() if self.pos is None else self.clr + self.pos

    def window(self, n: int) -> int:
        return n if self.pool_clr else n - self.num_clr

    def returning(self, layer: int) -> Sequence[int]:
        return self._returns.get(layer, ())

    def collects(self, layer: int) -> bool:
        return self.recover != "never" and layer < self._last

    def collect(self, x: Tensor, state: State) -> Tensor:
        parts = [self.pooled(x, state)] if self.gap else []
        if self.num_clr:
            parts.append(x[:, x.shape[1] - self.num_clr :])
        return torch.cat(parts, dim=1)

    def pooled(self, x: Tensor, state: State) -> Tensor:
        """``(B, 1, C)``: the mean of the tokens in the window."""
        end = state.window if state.window is not None else x.shape[1]
        if end <= self._first and self.compat != "official":
            return x[:, :1]  # no token is left: the class token stands for all
        if state.valid is None or self.compat == "official":
            return x[:, self._first : end].mean(dim=1, keepdim=True)
        real = state.valid[:, self._first : end].unsqueeze(-1).to(x.dtype)
        total = (x[:, self._first : end] * real).sum(dim=1, keepdim=True)
        count = real.sum(dim=1, keepdim=True)
        return torch.where(count == 0, x[:, :1], total / count.clamp_min(1))

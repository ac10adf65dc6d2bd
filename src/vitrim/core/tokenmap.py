"""The answer of every reducer: a linear map from n source tokens to m tokens, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenMap:
    """A linear map from ``n`` source tokens to ``m`` tokens; rows of its ``(m, n)`` matrix are the new tokens.

    Three forms, told apart by which fields are set:

    * **merge** (``group``): source ``i`` goes to token ``group[i]``. Without ``weight`` a new token is the mean of its
      sources, weighted by the masses given to :meth:`pool`; with ``weight (B, n)`` it is ``sum_i weight_i x_i``.
    * **select** (``group`` and ``source``): new token ``j`` *is* source token ``source[j]``. ``group`` then only says
      which sources the token stands for: itself alone (pruning) or a whole cluster (medoids).
    * **soft** (``weight``, no ``group``): a dense matrix, ``(B, m, n)``; with a ``head``, of the tokens after the head alone.

    Attributes:
        group: ``(B, n)`` int64 in ``[-1, m)``; -1 marks a dropped source. None when soft.
        m: number of tokens after the map.
        weight: ``(B, n)`` for a weighted merge, ``(B, m - head, n - head)`` when soft.
        valid: ``(B, m)`` bool; False marks padding of a ragged result. None when every token is real.
        source: ``(B, m)`` int64, the source token that each new token is a copy of.
        head: soft maps only: leading tokens that stay untouched, so that no larger matrix is built around the weights.
    """

    group: Tensor | None
    m: int
    weight: Tensor | None = None
    valid: Tensor | None = None
    source: Tensor | None = None
    head: int = 0

    # -- construction ---------------------------------------------------------------------------------------------

    @staticmethod
    def identity(batch: int, n: int, device: torch.device | str | None = None) -> TokenMap:
        """The map that keeps ``n`` tokens as they are."""
        index = torch.arange(n, device=device).expand(batch, n)
        return TokenMap(index, n, source=index)

    @staticmethod
    def select(index: Tensor, n: int, valid: Tensor | None = None, group: Tensor | None = None) -> TokenMap:
        """Keep the tokens ``index (B, m)`` of ``n``; the others are dropped unless ``group (B, n)`` gives them a home."""
        if group is None:
            m = index.shape[1]
            rank = torch.arange(m, device=index.device).expand_as(index)
            # Padding writes into an extra column that is cut off again.
            target = index if valid is None else torch.where(valid, index, n)
            group = torch.full((index.shape[0], n + 1), -1, dtype=torch.int64, device=index.device)
            group = group.scatter(1, target, rank)[:, :n]
        return TokenMap(group, index.shape[1], valid=valid, source=index)

    @staticmethod
    def merge(group: Tensor, m: int, weight: Tensor | None = None) -> TokenMap:
        """Average (or sum with ``weight (B, n)``) the sources of each group; ``group (B, n)`` holds ids in ``[-1, m)``."""
        return TokenMap(group, m, weight=weight)

    @staticmethod
    def soft(weight: Tensor) -> TokenMap:
        """A dense map ``weight (B, m, n)``."""
        return TokenMap(None, weight.shape[1], weight=weight)

    def with_prefix(self, count: int) -> TokenMap:
        """The same map for a sequence that starts with ``count`` tokens which stay untouched."""
        if count == 0:
            return self
        if self.group is None:
            return replace(self, m=self.m + count, valid=self._with_valid(count), head=self.head + count)
        head = torch.arange(count, device=self.device).expand(self.batch, count)
        group = torch.cat([head, torch.where(self.group < 0, self.group, self.group + count)], dim=1)
        source = weight = None
        if self.source is not None:
            source = torch.cat([head, self.source + count], dim=1)
        if self.weight is not None:
            weight = torch.cat([torch.ones_like(head, dtype=self.weight.dtype), self.weight], dim=1)
        return TokenMap(group, self.m + count, weight, self._with_valid(count), source)

    def with_suffix(self, count: int) -> TokenMap:
        """The same map for a sequence that ends with ``count`` more tokens which stay untouched."""
        if count == 0:
            return self
        tail = torch.arange(count, device=self.device).expand(self.batch, count)
        valid = None if self.valid is None else torch.cat([self.valid, self.valid.new_ones(self.batch, count)], dim=1)
        if self.group is None:
            assert self.weight is not None
            rows, columns = self.weight.shape[1:]
            weight = torch.nn.functional.pad(self.weight, (0, count, 0, count))
            eye = torch.eye(count, dtype=weight.dtype, device=weight.device)
            weight = torch.cat([weight[:, :rows], torch.nn.functional.pad(eye, (columns, 0)).expand(self.batch, -1, -1)], dim=1)
            return replace(self, m=self.m + count, weight=weight, valid=valid)
        group = torch.cat([self.group, tail + self.m], dim=1)
        source = None if self.source is None else torch.cat([self.source, tail + self.n], dim=1)
        weight = None if self.weight is None else torch.cat([self.weight, torch.ones_like(tail, dtype=self.weight.dtype)], dim=1)
        return TokenMap(group, self.m + count, weight, valid, source)

    @staticmethod
    def joined(batch: int, n: int, count: int, device: torch.device | str | None = None, valid: Tensor | None = None) -> TokenMap:
        """The map of ``n`` tokens (``valid (B, n)`` are real) which ``count`` others join at the end: those stand for none."""
        if valid is not None:
            valid = torch.cat([valid, valid.new_ones(batch, count)], dim=1)
        return TokenMap(torch.arange(n, device=device).expand(batch, n), n + count, valid=valid)

    def _with_valid(self, count: int) -> Tensor | None:
        return None if self.valid is None else torch.cat([self.valid.new_ones(self.batch, count), self.valid], dim=1)

    def without_prefix(self, count: int) -> TokenMap:
        """Undo :meth:`with_prefix`: the map among the tokens after the first ``count``."""
        if count == 0:
            return self
        valid = None if self.valid is None else self.valid[:, count:]
        if self.group is None:
            if self.head >= count:
                return replace(self, m=self.m - count, valid=valid, head=self.head - count)
            return TokenMap(None, self.m - count, self.dense()[:, count:, count:], valid)
        part = self.group[:, count:]
        group = torch.where(part < count, -1, part - count)
        source = None if self.source is None else (self.source[:, count:] - count).clamp_min(0)
        weight = None if self.weight is None else self.weight[:, count:]
        return TokenMap(group, self.m - count, weight, valid, source)

    # -- shape ----------------------------------------------------------------------------------------------------

    @property
    def _some(self) -> Tensor:
        some = self.group if self.group is not None else self.weight
        if some is None:
            raise ValueError("a TokenMap needs a group (hard map) or a weight (soft map)")
        return some

    @property
    def batch(self) -> int:
        """Batch size B."""
        return self._some.shape[0]

    @property
    def n(self) -> int:
        """Number of source tokens."""
        return self._some.shape[-1] + self.head

    @property
    def device(self) -> torch.device:
        """Device of the map."""
        return self._some.device

    @property
    def is_soft(self) -> bool:
        """Whether the map is a dense matrix."""
        return self.group is None

    def detach(self) -> TokenMap:
        """The same map without its autograd history."""
        return self if self.weight is None else replace(self, weight=self.weight.detach())

    # -- application ----------------------------------------------------------------------------------------------

    def pool(self, x: Tensor, mass: Tensor | None = None, reduce: str = "mean") -> Tensor:
        """Apply the map: ``(B, n, C) -> (B, m, C)``.

        Args:
            x: source tokens.
            mass: ``(B, n)`` weights of the mean of an unweighted merge; None counts every source once.
            reduce: ``mean`` (the map itself), ``sum`` or ``amax`` over the sources that each new token stands for.

        Raises:
            ValueError: for another ``reduce``, or ``sum``/``amax`` of a soft map.
        """
        if reduce != "mean":
            return self._reduce_members(x, reduce)
        if self.source is not None:
            return x.gather(1, self.source.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        if self.group is None:
            assert self.weight is not None
            pooled = self.weight.to(x.dtype) @ x[:, self.head :]
            return torch.cat([x[:, : self.head], pooled], dim=1) if self.head else pooled
        # Sums of half-precision tokens lose digits: accumulate in float32 at least, return the dtype of x.
        exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
        slots = self._slots()
        if self.weight is not None:
            return self._segment_sum(exact * self.weight.to(exact.dtype).unsqueeze(-1), slots).to(x.dtype)
        if mass is None:
            total = self._segment_sum(exact.new_ones(self.batch, self.n, 1), slots)
        else:
            mass = mass.to(exact.dtype).unsqueeze(-1)
            total = self._segment_sum(mass, slots)
            exact = exact * mass
        # A group without sources (padding, an empty cluster) has total 0 and stays the zero vector.
        total = torch.where(total == 0, 1.0, total)
        return (self._segment_sum(exact, slots) / total).to(x.dtype)

    def mass(self, size: Tensor) -> Tensor:
        """Sizes of the new tokens: ``(B, n) -> (B, m)``, the number of patches that each stands for.

        Hard maps add the sizes of a group. A soft map shares every source out in proportion to its column, so that
        the total is conserved.
        """
        if self.group is not None:
            return self._segment_sum(size.unsqueeze(-1)).squeeze(-1)
        assert self.weight is not None
        share = size[:, self.head :].unsqueeze(-1) / self._column_sums().to(size.dtype)
        shared = (self.weight.to(size.dtype) @ share).squeeze(-1)
        return torch.cat([size[:, : self.head], shared], dim=1) if self.head else shared

    def lift(self, y: Tensor, fill: Tensor | None = None) -> Tensor:
        """Un-merge ``(B, m, C) -> (B, n, C)``: every source gets its token back; dropped ones come from ``fill`` or 0."""
        if self.group is None:
            assert self.weight is not None
            lifted = self.weight.to(y.dtype).transpose(1, 2) @ y[:, self.head :] / self._column_sums().to(y.dtype)
            return torch.cat([y[:, : self.head], lifted], dim=1) if self.head else lifted
        back = y.gather(1, self.group.clamp_min(0).unsqueeze(-1).expand(-1, -1, y.shape[-1]))
        dropped = (self.group < 0).unsqueeze(-1)
        return torch.where(dropped, torch.zeros_like(back) if fill is None else fill.to(back.dtype), back)

    # -- algebra --------------------------------------------------------------------------------------------------

    def then(self, nxt: TokenMap) -> TokenMap:
        """Composition: this map first, ``nxt`` after it. Hard after hard stays O(n).

        The sources of this map count once each. A plain mean depends on the masses before it, so compose from the first
        map on, as the trace does: ``a.then(b).then(c)``.

        Raises:
            ValueError: when ``nxt`` does not start where this map ends.
        """
        if nxt.n != self.m:
            raise ValueError(f"cannot compose: the first map gives {self.m} tokens, the second takes {nxt.n}")
        if self.group is None or nxt.group is None:
            mass = self.mass(torch.ones(self.batch, self.n, device=self.device))
            weight = nxt.dense(mass) @ self.dense().to(nxt.dense(mass).dtype)
            return TokenMap(None, nxt.m, weight, nxt.valid)
        group = torch.where(self.group < 0, -1, nxt.group.gather(1, self.group.clamp_min(0)))
        if self.source is not None and nxt.source is not None:
            return TokenMap(group, nxt.m, valid=nxt.valid, source=self.source.gather(1, nxt.source))
        if self._is_mean and nxt._is_mean:
            # Means of means, weighted by the masses in between, are the mean over the composed groups.
            return TokenMap(group, nxt.m, valid=nxt.valid)
        own = self.source_weight()
        later = nxt.source_weight(self.mass(torch.ones(self.batch, self.n, device=self.device)))
        weight = own * torch.where(self.group < 0, 0.0, later.gather(1, self.group.clamp_min(0)).to(own.dtype))
        return TokenMap(group, nxt.m, weight, nxt.valid)

    def dense(self, mass: Tensor | None = None) -> Tensor:
        """The matrix ``(B, m, n)`` of the map, for unit masses or the given ``mass (B, n)`` of the sources."""
        if self.group is None:
            assert self.weight is not None
            if not self.head:
                return self.weight
            eye = torch.eye(self.head, dtype=self.weight.dtype, device=self.device).expand(self.batch, -1, -1)
            whole = torch.nn.functional.pad(self.weight, (self.head, 0))
            return torch.cat([torch.nn.functional.pad(eye, (0, self.n - self.head)), whole], dim=1)
        columns = torch.arange(self.m, device=self.device).view(1, -1, 1)
        if self.source is not None:
            sources = torch.arange(self.n, device=self.device)
            return (self.source.unsqueeze(-1) == sources).float()
        return (self.group.unsqueeze(1) == columns).float() * self.source_weight(mass).unsqueeze(1)

    def source_weight(self, mass: Tensor | None = None) -> Tensor:
        """``(B, n)``: the factor with which each source enters its token (0 for dropped ones). Hard maps only."""
        if self.group is None:
            raise ValueError("a soft map has no single weight per source; use dense()")
        home = self.group.clamp_min(0)
        if self.source is not None:
            index = torch.arange(self.n, device=self.device)
            own = (self.source.gather(1, home) == index) & (self.group >= 0)
            return own.float()
        if self.weight is not None:
            return torch.where(self.group < 0, torch.zeros_like(self.weight), self.weight)
        weight = torch.ones(self.batch, self.n, device=self.device) if mass is None else mass.float()
        total = self._segment_sum(weight.unsqueeze(-1)).squeeze(-1)
        total = torch.where(total == 0, torch.ones_like(total), total)
        return torch.where(self.group < 0, torch.zeros_like(weight), weight / total.gather(1, home))

    # -- reading --------------------------------------------------------------------------------------------------

    def kept(self) -> Tensor:
        """``(B, n)`` bool: the sources that live on, alone or inside a merged token."""
        if self.group is None:
            return torch.ones(self.batch, self.n, dtype=torch.bool, device=self.device)
        return self.group >= 0

    def assignment(self) -> Tensor:
        """``(B, n)`` int64: the token of each source; the heaviest one when soft, -1 when dropped."""
        if self.group is not None:
            return self.group
        return self._heaviest(dim=1)

    def representative(self) -> Tensor:
        """``(B, m)`` int64: one source per token (its copy, the first of its group, or the heaviest when soft).

        Rotary positions follow it. A group without sources gives 0.
        """
        if self.source is not None:
            return self.source
        if self.group is None:
            return self._heaviest(dim=2)
        index = torch.arange(self.n, device=self.device).expand(self.batch, self.n)
        first = torch.full((self.batch, self.m + 1), self.n, dtype=torch.int64, device=self.device)
        home = torch.where(self.group < 0, self.m, self.group)
        first = first.scatter_reduce(1, home, index, reduce="amin")[:, : self.m]
        return torch.where(first == self.n, 0, first)

    # -- machinery ------------------------------------------------------------------------------------------------

    @property
    def _is_mean(self) -> bool:
        # A pruning map is a mean over single sources, a medoid map is not; only the merge form is safe to claim.
        return self.group is not None and self.weight is None and self.source is None

    def _slots(self) -> Tensor:
        """``(B * n,)``: for each source its row in a table of m + 1 rows an image; dropped sources share the last one."""
        assert self.group is not None
        home = self.group % (self.m + 1)  # -1 becomes m
        start = torch.arange(0, self.batch * (self.m + 1), self.m + 1, device=home.device)
        return (home + start.unsqueeze(1)).flatten()

    def _segment_sum(self, x: Tensor, slots: Tensor | None = None) -> Tensor:
        """Sum ``x (B, n, C)`` over the sources of each group."""
        out = x.new_zeros(self.batch * (self.m + 1), x.shape[-1])
        out.index_add_(0, self._slots() if slots is None else slots, x.reshape(-1, x.shape[-1]))
        return out.view(self.batch, self.m + 1, x.shape[-1])[:, : self.m]

    def _reduce_members(self, x: Tensor, reduce: str) -> Tensor:
        if self.group is None or reduce not in ("sum", "amax"):
            raise ValueError(f"reduce must be 'mean', or 'sum' or 'amax' for hard maps; got {reduce!r}")
        if reduce == "sum":
            return self._segment_sum(x)
        home = torch.where(self.group < 0, self.m, self.group).unsqueeze(-1).expand_as(x)
        out = x.new_zeros(self.batch, self.m + 1, x.shape[-1])
        return out.scatter_reduce(1, home, x, reduce="amax", include_self=False)[:, : self.m]

    def _heaviest(self, dim: int) -> Tensor:
        """Along ``dim`` of the dense matrix, the place with the largest weight."""
        assert self.weight is not None
        head = torch.arange(self.head, device=self.device).expand(self.batch, -1)
        return torch.cat([head, self.weight.argmax(dim=dim) + self.head], dim=1)

    def _column_sums(self) -> Tensor:
        """``(B, n - head, 1)``: what a source gives away in all; a soft map shares it out in proportion."""
        assert self.weight is not None
        total = self.weight.sum(dim=1).unsqueeze(-1)
        return torch.where(total == 0, 1.0, total)

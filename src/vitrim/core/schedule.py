"""Schedules: how many patch tokens stay after which block.

A schedule gives *nominal* targets; a method turns them into the counts that it can reach
(:meth:`vitrim.core.reducer.Reducer.plan`), all of it integer arithmetic before the first forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from vitrim.core.registry import SCHEDULES

START = -1  # the place before the first block, among the keys of Course.joins


class Schedule:
    """Base of all schedules.

    Attributes:
        relative: whether a stage keeps a share of the tokens that reach it, :meth:`share_of`, instead of a number known before.
        least: the smallest number of patch tokens that a stage may leave.
    """

    relative: ClassVar[bool] = False
    least: int = 1

    def targets(self, patches: int, depth: int) -> dict[int, int]:
        """Nominal number of patch tokens after each reducing block, ``{block: count}``, blocks ascending.

        Counts may be zero or negative where more is asked for than there is; methods clip them.

        Args:
            patches: number of patch tokens of the input.
            depth: number of blocks of the model.

        Raises:
            ValueError: when a block index does not exist.
        """
        raise NotImplementedError

    def share_of(self, block: int, left: int) -> int:
        """Tokens that stay of the ``left`` ones which reach ``block``; relative schedules only."""
        raise NotImplementedError


class Course:
    """The number of tokens on its way through the blocks, for a method that plans.

    Iterating gives ``(block, target)`` for each location of the schedule. The method sets :attr:`left` to what remains
    after it; tokens that join the sequence later on (:mod:`vitrim.caching`) are added before the next location.

    Attributes:
        schedule: what is asked for.
        patches: patch tokens of the input.
        depth: number of blocks of the model.
        left: tokens that may be reduced, at the present location.
        reference: what the present target is measured from: the target before it, or ``left`` when the schedule is relative.
        fewest: the smallest number of tokens that the method can leave.

    Args:
        schedule: what is asked for.
        patches: patch tokens of the input.
        depth: number of blocks of the model.
        joins: tokens that join after each block (``START``: before the first).
        fewest: the smallest number of tokens that the method can leave.
    """

    def __init__(
        self, schedule: Schedule, patches: int, depth: int, joins: Mapping[int, int] | None = None, fewest: int = 0
    ) -> None:
        self.schedule = schedule
        self.patches = patches
        self.depth = depth
        self.fewest = fewest
        self.left = self.reference = patches
        self._joins = dict(joins or {})

    def __iter__(self) -> Iterator[tuple[int, int]]:
        before = START
        asked = self.patches
        for block, target in self.schedule.targets(self.patches, self.depth).items():
            self.left += sum(count for at, count in self._joins.items() if before <= at < block)
            before = block
            if self.schedule.relative:
                self.reference, target = self.left, self.schedule.share_of(block, self.left)
            else:
                self.reference = asked
            asked = target
            yield block, target

    def at_least(self, target: int) -> int:
        """The target, or the smallest number that the schedule allows and the method can do."""
        return max(target, self.schedule.least, self.fewest)


def _check_blocks(at: Sequence[int], depth: int) -> None:
    late = [i for i in at if i >= depth]
    if late:
        raise ValueError(f"block {late[0]} does not exist: the model has {depth} blocks, numbered 0 to {depth - 1}")


def _locations(at: Sequence[int]) -> list[int]:
    blocks = [int(i) for i in at]
    if not blocks or blocks != sorted(set(blocks)) or blocks[0] < 0:
        raise ValueError(f"at must list different blocks in ascending order, counted from 0; got {list(at)}")
    return blocks


@SCHEDULES.register("keep")
class Keep(Schedule):
    """Keep a share of the initial patches: ``int(P * rate**(i+1))`` after the i-th location.

    The protocol of "Which Tokens to Use?" (arXiv:2308.04657) and ATC (arXiv:2409.11923).

    Args:
        rate: share that stays, in (0, 1]; a list gives the share of the *initial* patches for each location.
        at: blocks that reduce, counted from 0.
        least: tokens that every stage leaves at least; the published code leaves none where a low rate asks for none (0).
    """

    def __init__(self, rate: float | Sequence[float] = 0.5, at: Sequence[int] = (3, 6, 9), *, least: int = 1) -> None:
        self.at = _locations(at)
        self.rate = _rates(rate, self.at)
        self.least = _least(least)

    def targets(self, patches: int, depth: int) -> dict[int, int]:
        _check_blocks(self.at, depth)
        rates = self.rate if isinstance(self.rate, list) else [self.rate ** (i + 1) for i in range(len(self.at))]
        return {block: int(patches * rate) for block, rate in zip(self.at, rates, strict=True)}


def _rates(rate: float | Sequence[float], at: Sequence[int]) -> float | list[float]:
    if isinstance(rate, str):
        raise ValueError(f"rate is a number in (0, 1] or a list of them; got {rate!r}")
    rates = rate if isinstance(rate, int | float) else list(rate)
    if isinstance(rates, list) and len(rates) != len(at):
        raise ValueError(f"rate lists {len(rates)} shares for {len(at)} locations; give one for each")
    if not all(isinstance(v, int | float) and 0 < v <= 1 for v in (rates if isinstance(rates, list) else [rates])):
        raise ValueError(f"rate is the share that stays, in (0, 1]; got {rates}")
    return rates


def _least(least: int) -> int:
    if not isinstance(least, int) or least < 0:
        raise ValueError(f"least is a number of tokens, 0 or more; got {least!r}")
    return least


@SCHEDULES.register("share")
class Share(Schedule):
    """Keep a share of the tokens that reach each location: ``ceil(rate * n)`` of the ``n`` tokens of the moment.

    The protocol of CLCA (arXiv:2501.00243) for Top-K and EViT: tokens that joined the sequence, fused ones included, count.

    Args:
        rate: share that stays, in (0, 1]; a list gives one for each location.
        at: blocks that reduce, counted from 0.
    """

    relative = True

    def __init__(self, rate: float | Sequence[float] = 0.5, at: Sequence[int] = (3, 6, 9)) -> None:
        self.at = _locations(at)
        self.rate = _rates(rate, self.at)

    def share_of(self, block: int, left: int) -> int:
        rate = self.rate[self.at.index(block)] if isinstance(self.rate, list) else self.rate
        return math.ceil(rate * left)

    def targets(self, patches: int, depth: int) -> dict[int, int]:
        _check_blocks(self.at, depth)
        counts: dict[int, int] = {}
        for block in self.at:
            counts[block] = patches = self.share_of(block, patches)
        return counts


@SCHEDULES.register("counts")
class Counts(Schedule):
    """Keep exact numbers of patch tokens.

    Args:
        tokens: patch tokens that stay, one number for each location; 0 leaves none.
        at: blocks that reduce, counted from 0.
    """

    least = 0

    def __init__(self, tokens: Sequence[int], at: Sequence[int] = (3, 6, 9)) -> None:
        self.at = _locations(at)
        if not isinstance(tokens, list | tuple) or len(tokens) != len(self.at):
            raise ValueError(f"tokens must list one number for each of the {len(self.at)} locations {self.at}")
        if not all(float(t).is_integer() and t >= 0 for t in tokens):
            raise ValueError(f"tokens must be whole numbers from 0 on; got {list(tokens)}")
        self.tokens = [int(t) for t in tokens]

    def targets(self, patches: int, depth: int) -> dict[int, int]:
        _check_blocks(self.at, depth)
        return dict(zip(self.at, self.tokens, strict=True))


@SCHEDULES.register("r")
class R(Schedule):
    """Remove r tokens in every block, the schedule of ToMe (arXiv:2210.09461).

    Args:
        n: tokens to remove per block; a list gives one number for each block and ends with zeros.
        inflect: slope in [-1, 1]: -1 starts with 2n and falls to 0, 1 rises from 0 to 2n, 0 is constant.
    """

    def __init__(self, n: int | Sequence[int] = 8, inflect: float = 0.0) -> None:
        self.n = int(n) if isinstance(n, int | float) else [int(v) for v in n]
        self.inflect = inflect
        values = self.n if isinstance(self.n, list) else [self.n]
        if min(values) < 0:
            raise ValueError(f"n is a number of tokens to remove, 0 or more; got {self.n}")
        if not -1 <= inflect <= 1:
            raise ValueError(f"inflect lies in [-1, 1]; got {inflect}")
        if isinstance(self.n, list) and inflect:
            raise ValueError("inflect shapes a single n; a list says it all by itself")

    def removals(self, depth: int) -> list[int]:
        """Tokens to remove in each of ``depth`` blocks."""
        if isinstance(self.n, list):
            return (self.n + [0] * depth)[:depth]
        low = int(self.n * (1.0 - self.inflect))
        high = 2 * self.n - low
        step = (high - low) / (depth - 1) if depth > 1 else 0.0
        return [int(low + step * i) for i in range(depth)]

    def targets(self, patches: int, depth: int) -> dict[int, int]:
        counts: dict[int, int] = {}
        left = patches
        for block, removed in enumerate(self.removals(depth)):
            left -= removed
            if removed > 0:
                counts[block] = left
        return counts

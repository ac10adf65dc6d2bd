"""Schedules within a budget: from the solved allocation on, better ones by trying them on the calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import nn

from vitrim.core.backbone import find_backbone
from vitrim.core.reducer import Reducer
from vitrim.core.schedule import Counts, Course
from vitrim.measure.allocation import Table, UnreachableError, allocate, smallest
from vitrim.measure.distortion import Judge, Score
from vitrim.measure.flops import closed_form
from vitrim.measure.stages import Wanted, follow, path_of, spec_of, stage

STATES = 28
Path = tuple[int, ...]
Progress = Callable[[str], object]


class Costs(Protocol):
    """What blocks cost as a share of the dense model: measured time, or FLOPs."""

    @property
    def rest(self) -> float:
        """Share of everything outside the blocks."""
        ...

    def cost(self, layer: int, before: int, after: int) -> float:
        """Share of a block that gets ``before`` patch tokens and leaves ``after``."""
        ...


@dataclass(frozen=True)
class FlopsCosts:
    """FLOPs of the blocks in closed form as shares of the dense model's, without the method's own work.

    Attributes:
        linear: of each block, share of its attention half per token.
        square: share of its attention half per pair of tokens.
        mlp: share of its MLP half per token.
        rest: share of everything outside the blocks.
        prefix: tokens besides the patches.
        site: where the method reduces.
    """

    linear: tuple[float, ...]
    square: tuple[float, ...]
    mlp: tuple[float, ...]
    rest: float
    prefix: int
    site: str

    def cost(self, layer: int, before: int, after: int) -> float:
        """Share of a block that gets ``before`` patch tokens and leaves ``after``."""
        seen = self.prefix + (after if self.site == "before" else before)
        done = self.prefix + (before if self.site == "after" else after)
        return self.linear[layer] * seen + self.square[layer] * seen * seen + self.mlp[layer] * done

    @staticmethod
    def of(model: nn.Module, patches: int, prefix: int, site: str) -> FlopsCosts:
        """Those of a model of timm's layout.

        Raises:
            TypeError: for a model of another build.
        """
        depth = len(find_backbone(model).blocks(model))
        # Attention is a n + b n^2 and the MLP c n, so that lengths of one and two tell the factors.
        one, two, whole = (closed_form(model, [(n, n)] * depth, patches=patches) for n in (1, 2, patches + prefix))
        square = [(b.attention - 2 * a.attention) / 2 for a, b in zip(one.layers, two.layers, strict=True)]
        linear = [a.attention - b for a, b in zip(one.layers, square, strict=True)]
        linear, square, mlp = (
            tuple(value / whole.macs for value in values) for values in (linear, square, [a.mlp for a in one.layers])
        )
        return FlopsCosts(linear, square, mlp, (whole.embed + whole.head) / whole.macs, prefix, site)


@dataclass(frozen=True)
class Space:
    """The schedules of one method on one model.

    Attributes:
        method: the method.
        costs: what blocks cost.
        patches: patch tokens of the input.
        depth: number of blocks.
        layers: blocks that may reduce.
    """

    method: Reducer
    costs: Costs
    patches: int
    depth: int
    layers: tuple[int, ...]

    @property
    def grid(self) -> list[int]:
        """Counts that the solver considers, descending from all patches."""
        return sorted({max(1, round(self.patches * i / STATES)) for i in range(1, STATES + 1)}, reverse=True)

    def share(self, path: Sequence[int]) -> float:
        """Cost of the whole model with ``path[l]`` patch tokens after block l, as a share of the dense model's."""
        return self.costs.rest + sum(self.costs.cost(i, *pair) for i, pair in enumerate(pairwise([self.patches, *path])))

    def realise(self, wanted: Wanted) -> tuple[str, Path]:
        """The spec that comes nearest to the wanted counts after each block, and the counts that it gives.

        Raises:
            ValueError: when no token would go.
        """
        targets = follow(self.method, wanted, self.layers, self.patches)
        if not targets:
            raise ValueError("this schedule would keep all tokens")
        plan = self.method.plan(Course(Counts(list(targets.values()), list(targets)), self.patches, self.depth))
        return spec_of(targets), path_of(plan, self.patches, self.depth)

    def fit(self, wanted: Wanted, budget: float) -> tuple[str, Path] | None:
        """As :meth:`realise`, with the shares that stay raised to the power that meets the budget; None where none does."""
        shares = np.clip(np.array(wanted, dtype=float) / self.patches, 1e-6, 1.0)
        if shares.min() > 1 - 0.5 / self.patches:
            return None
        low, high, best = 0.0, 64.0, None
        for _ in range(24):
            power = (low + high) / 2 if high < 64 else max(2 * low, 1.0)
            try:
                found = self.realise(self.patches * shares**power)
            except ValueError:
                low = power
                continue
            if self.share(found[1]) <= budget:
                high, best = power, found
            else:
                low = power
            if low >= 32:
                break
        return best

    def tables(self, distortion: Table, relative: bool) -> tuple[Table, Table]:
        """Cost and loss of every block by the counts before and after it, ``(L, S, S)``.

        How losses add up is a guess, and there are two. Pruned tokens stay lost: a cut from n to m tokens loses what a cut of
        all tokens to m does beyond one to n. Merged tokens are mended by later blocks: it loses what a cut of all tokens
        by the same *factor* does.

        Args:
            distortion: ``(L, S)`` loss when one layer alone cuts all tokens to a count of the grid.
            relative: the second guess.
        """
        grid = self.grid
        states = len(grid)
        cost = np.full((self.depth, states, states), np.inf)
        loss = np.maximum(distortion[:, None, :] - distortion[:, :, None], 0)
        for i, before in enumerate(grid):
            after = [j for j in range(i, states) if j == i or self._can(before, grid[j])]
            for layer in range(self.depth):
                for j in after if layer in self.layers else [i]:
                    cost[layer, i, j] = self.costs.cost(layer, before, grid[j])
                    if relative:
                        # Ascending counts, as interpolation wants them.
                        loss[layer, i, j] = np.interp(self.patches * grid[j] / before, grid[::-1], distortion[layer, ::-1])
        return cost, loss

    def solve(self, tables: tuple[Table, Table], budget: float) -> Path:
        """Counts after each block that lose least by the tables.

        Raises:
            UnreachableError: when the method cannot do with so little.
        """
        try:
            states = allocate(*tables, budget - self.costs.rest)
        except UnreachableError as error:
            raise UnreachableError(budget, error.smallest + self.costs.rest) from None
        return tuple(self.grid[state] for state in states)

    def smallest(self, tables: tuple[Table, Table]) -> float:
        """The least share that the method can reach."""
        return smallest(tables[0]) + self.costs.rest

    def _can(self, before: int, after: int) -> bool:
        step = stage(self.method, before, after)
        return step is not None and step[1] == after


@dataclass(frozen=True, eq=False)
class Found:
    """A schedule on the calibration images.

    Attributes:
        schedule: its spec.
        path: patch tokens after each block.
        score: what it loses there.
        interrupted: whether the search was stopped by Ctrl-C.
    """

    schedule: str
    path: Path
    score: Score
    interrupted: bool = False


def search(
    space: Space,
    judge: Judge,
    budget: float,
    starts: Iterable[Wanted],
    evaluations: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Found:
    """The best schedule within the budget: of the starts, then of their neighbours at equal cost.

    A neighbour removes some tokens in another block than before; then all counts are scaled to the budget. A move that
    helped is tried again. Ctrl-C ends the search with the best so far.

    Args:
        space: the schedules.
        judge: with the calibration images.
        budget: share of the dense model's cost.
        starts: wanted counts after each block; scaled to the budget.
        evaluations: number of neighbours to try.
        seed: of the random moves.
        progress: called with a line of text before each evaluation.

    Raises:
        ValueError: when no start can be scaled to the budget.
    """
    best: Found | None = None
    interrupted = False
    tried: set[str] = set()
    try:
        for start in starts:
            best = _better(space.fit(start, budget), judge, best, tried)
        random = np.random.default_rng(seed)
        move: tuple[int, int, float] | None = None
        for number in range(evaluations if best is not None else 0):
            assert best is not None
            candidate = None
            for _ in range(20):  # moves that round to a schedule that was tried cost nothing
                move = move or _move(space, best.path, random)
                candidate = space.fit(_moved(space, best.path, move), budget)
                if candidate is not None and candidate[0] not in tried:
                    break
                move, candidate = None, None
            if progress is not None:
                text = f"{number + 1}/{evaluations} neighbours, divergence {best.score.loss:.4f}, agreement"
                progress(f"budget {budget:.2f}: {text} {100 * best.score.agreement:.1f} % (Ctrl-C keeps the best so far)")
            before = best
            best = _better(candidate, judge, best, tried)
            if best is before:
                move = None
    except KeyboardInterrupt:
        if best is None:
            raise
        interrupted = True
    if best is None:
        raise ValueError(f"no schedule was found within a share of {budget:.3g}; ask for more")
    return Found(best.schedule, best.path, best.score, interrupted)


def _better(candidate: tuple[str, Path] | None, judge: Judge, best: Found | None, tried: set[str]) -> Found | None:
    if candidate is None or candidate[0] in tried:
        return best
    tried.add(candidate[0])
    score = judge.score(candidate[0], beat=None if best is None else best.score)
    if score is None or (best is not None and score.loss >= best.score.loss):
        return best
    return Found(*candidate, score)


def _move(space: Space, path: Path, random: Generator) -> tuple[int, int, float]:
    """A block that removes tokens, another one that may, and how many to shift between them."""
    removed = -np.diff([space.patches, *path])
    chance = removed + 0.02 * space.patches * (removed > 0)
    source = int(random.choice(len(path), p=chance / chance.sum()))
    others = [layer for layer in space.layers if layer != source] or [source]
    # Near blocks are more alike, so that moves between them are more often small improvements.
    nearness = 1.0 / np.abs(np.array(others) - source).clip(1)
    aim = int(random.choice(others, p=nearness / nearness.sum()))
    return source, aim, float(space.patches / random.choice([4, 8, 16, 32]))


def _moved(space: Space, path: Path, move: tuple[int, int, float]) -> NDArray[np.float64]:
    source, aim, amount = move
    removed = -np.diff([space.patches, *path]).astype(float)
    shifted = min(amount, removed[source])
    removed[source] -= shifted
    removed[aim] += shifted
    return space.patches - removed.cumsum()

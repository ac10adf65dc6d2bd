"""Which counts lose least at a budget: a shortest path through (block, tokens left) with a limit on its cost, solved exactly."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
# Sums in another order differ in the last digits; a path within them is within the budget.
_SLACK = 1e-9


class UnreachableError(ValueError):
    """No path is within the budget.

    Attributes:
        smallest: the least cost of any path.
    """

    def __init__(self, budget: float, smallest: float) -> None:
        super().__init__(f"a budget of {budget:.3g} cannot be reached; the smallest possible is {smallest:.3g}")
        self.smallest = smallest


def allocate(cost: Table, loss: Table, budget: float, start: int = 0) -> list[int]:
    """The path of least loss whose cost is within the budget.

    A Lagrange multiplier gives a good path and a bound on what any path through a state can reach; then all paths are
    extended block by block, without those that another one beats in both respects or that the bound rules out. What
    remains is few, and the answer is exact.

    Args:
        cost: ``(L, S, S)`` cost of block l when it gets the tokens of state i and leaves those of j; ``inf`` where it cannot.
        loss: ``(L, S, S)`` what is lost by it.
        budget: limit of the summed cost.
        start: state before the first block.

    Returns:
        The state after each block.

    Raises:
        UnreachableError: when every path costs more.
    """
    loss = np.where(np.isfinite(cost), loss, np.inf)
    limit = budget + _SLACK
    cheapest = _to_go(cost)
    if cheapest[0, start] > limit:
        raise UnreachableError(budget, float(cheapest[0, start]))
    price, path = _priced(cost, loss, limit, start)
    best = _sum(loss, path, start)
    bound = _to_go(np.where(np.isfinite(cost), loss + price * np.where(np.isfinite(cost), cost, 0), np.inf))
    # One row a label: cost so far, loss so far, state, row of the label before it.
    labels = [np.array([[0.0, 0.0, start, -1]])]
    for layer in range(len(cost)):
        now = labels[-1]
        state = now[:, 2].astype(int)
        spent = now[:, :1] + cost[layer, state]
        lost = now[:, 1:2] + loss[layer, state]
        with np.errstate(invalid="ignore"):
            hopeful = (spent + cheapest[layer + 1] <= limit) & (
                lost + price * spent + bound[layer + 1] - price * limit <= best + _SLACK
            )
        row, into = np.nonzero(hopeful)
        labels.append(_undominated(np.stack([spent[row, into], lost[row, into], into, row], axis=1)))
    if not len(labels[-1]):
        return path
    row = int(labels[-1][:, 1].argmin())
    if labels[-1][row, 1] >= best:
        return path
    return _trace(labels, row)


def smallest(cost: Table, start: int = 0) -> float:
    """The least cost of any path."""
    return float(_to_go(cost)[0, start])


def _to_go(cost: Table) -> Table:
    """``(L + 1, S)``: least sum from each state before each block to the end."""
    depth, states, _ = cost.shape
    rest = np.zeros((depth + 1, states))
    for layer in range(depth - 1, -1, -1):
        rest[layer] = (cost[layer] + rest[layer + 1]).min(axis=1)
    return rest


def _follow(table: Table, start: int) -> list[int]:
    """The path of the least sum."""
    rest = _to_go(table)
    path = [start]
    for layer in range(len(table)):
        path.append(int((table[layer, path[-1]] + rest[layer + 1]).argmin()))
    return path[1:]


def _sum(table: Table, path: list[int], start: int) -> float:
    return float(sum(table[layer, i, j] for layer, (i, j) in enumerate(pairwise([start, *path]))))


def _priced(cost: Table, loss: Table, limit: float, start: int) -> tuple[float, list[int]]:
    """The lowest price of cost at which the path of least (loss + price * cost) is within the limit, and that path."""
    known = np.isfinite(cost)
    flat = np.where(known, cost, 0)

    def at(price: float) -> list[int]:
        return _follow(np.where(known, loss + price * flat, np.inf), start)

    path = at(0.0)
    if _sum(cost, path, start) <= limit:
        return 0.0, path
    best = _follow(cost, start)
    low, high = 0.0, 1.0
    for _ in range(60):
        path = at(high)
        if _sum(cost, path, start) <= limit:
            best = path
            break
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        path = at(middle)
        if _sum(cost, path, start) <= limit:
            high, best = middle, path
        else:
            low = middle
    return high, best


def _undominated(labels: NDArray[Any]) -> Table:
    """Labels that no other one of the same state beats in cost and in loss."""
    order = np.lexsort((labels[:, 1], labels[:, 0], labels[:, 2]))
    labels = labels[order]
    kept: list[int] = []
    state, least = -1.0, np.inf
    for i, (_, lost, into, _) in enumerate(labels):
        if into != state:
            state, least = into, np.inf
        if lost < least:
            least = lost
            kept.append(i)
    return labels[kept]


def _trace(labels: list[Table], row: int) -> list[int]:
    path: list[int] = []
    for layer in range(len(labels) - 1, 0, -1):
        path.append(int(labels[layer][row, 2]))
        row = int(labels[layer][row, 3])
    return path[::-1]

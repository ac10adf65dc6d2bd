"""Counts that a method can reach from block to block, and the targets that a schedule must name for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitrim.core.reducer import Reducer
from vitrim.core.schedule import Counts, Course

Wanted = Sequence[float] | NDArray[np.float64]


def path_of(plan: Mapping[int, int], patches: int, depth: int) -> tuple[int, ...]:
    """Patch tokens after every block, from the plan of a reduction."""
    path: list[int] = []
    for layer in range(depth):
        path.append(plan.get(layer, path[-1] if path else patches))
    return tuple(path)


def one_layer(method: Reducer, layer: int, count: int, patches: int, depth: int) -> dict[int, int]:
    """Targets that lead to ``count`` tokens from ``layer`` on, in as few blocks as the method needs."""
    targets: dict[int, int] = {}
    now = patches
    for block in range(layer, depth):
        if now <= count:
            break
        step = stage(method, now, count)
        if step is None:
            break
        targets[block], now = step
    return targets


def stage(method: Reducer, before: int, after: int) -> tuple[int, int] | None:
    """The target to ask for, and the count it gives, to go from ``before`` tokens to ``after`` or as near as one block can.

    Methods count differently (EViT leaves one more than asked for, ToMe at most halves); None when no token would go.
    """

    def left(target: int) -> int:
        return method.plan(Course(Counts([target], [0]), before, 1)).get(0, before)

    if after >= before:
        return None
    capped = left(max(after, 1))
    candidates = {target + offset for target in (after, capped) for offset in (-2, -1, 0, 1, 2)}
    steps = [(target, left(target)) for target in candidates if target >= 1]
    # The count nearest to what is wanted, by the target nearest to the count: methods may keep books of the targets.
    steps = sorted((abs(count - after), abs(count - target), target, count) for target, count in steps if count < before)
    return steps[0][2:] if steps else None


def spec_of(targets: Mapping[int, int]) -> str:
    """The spec of targets by block: ``counts(tokens=[...], at=[...])``."""
    return f"counts({list(targets.values())}, at={list(targets)})"


def follow(method: Reducer, wanted: Wanted, layers: Sequence[int], patches: int) -> dict[int, int]:
    """Targets by block that lead as near as the method can to the wanted counts after each block; empty if no token goes."""
    targets: dict[int, int] = {}
    now = patches
    for layer in layers:
        step = stage(method, now, max(1, round(wanted[layer])))
        if step is not None:
            targets[layer], now = step
    return targets

"""From a schedule to token counts: what a reduction asks of its method at every block, before the first forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from vitrim.core.reducer import Reducer
from vitrim.core.registry import spec
from vitrim.core.schedule import START, Counts, Course, R, Schedule

Plan = dict[int, int]


def make_plan(reducer: Reducer, schedule: Schedule, patches: int, depth: int, joins: Mapping[int, int], around: bool) -> Plan:
    """Tokens that the method leaves at each block, of those that it may reduce.

    Args:
        reducer: the method.
        schedule: what is asked for.
        patches: patch tokens of the input.
        depth: number of blocks.
        joins: tokens that join within the method's sight.
        around: whether every block starts from all tokens again: then each has a plan of its own.
    """
    if not around:
        return reducer.plan(Course(schedule, patches, depth, joins, reducer.fewest))
    targets = schedule.targets(patches, depth)
    if isinstance(schedule, R):
        removals = schedule.removals(depth)
        targets = {block: patches - removals[block] for block in targets}
    counts: Plan = {}
    for block, target in targets.items():
        counts |= reducer.plan(Course(Counts([max(target, 1)], at=[block]), patches, depth, fewest=reducer.fewest))
    return counts


def lengths(
    plan: Plan, site: str, start: int, depth: int, seen: Mapping[int, int], unseen: Mapping[int, int]
) -> list[tuple[int, int]]:
    """Sequence lengths ``(attention, mlp)`` of every block.

    Args:
        plan: as of :func:`make_plan`.
        site: before, inside or after.
        start: patch tokens of the input.
        depth: number of blocks.
        seen: tokens that join within the method's sight, by block.
        unseen: tokens that join and are no business of the method, by block; the prefix is one of them, at ``START``.
    """
    now, aside, rows = start + seen.get(START, 0), unseen.get(START, 0), []
    for layer in range(depth):
        after = plan.get(layer, now)
        rows.append((aside + (after if site == "before" else now), aside + (now if site == "after" else after)))
        now = after + seen.get(layer, 0)
        aside += unseen.get(layer, 0)
    return rows


def warn_of_a_cap(method: str, reducer: Reducer, plan: Plan, schedule: Schedule, patches: int, depth: int, joined: int) -> None:
    """Say so when a method keeps far more tokens than the schedule asks for, as ToMe does at low rates.

    ``joined`` tokens besides the patches are not held against it.
    """
    if reducer.family == "fixed" or isinstance(schedule, R):
        return
    for block, target in schedule.targets(patches, depth).items():
        kept = plan.get(block, patches)
        if kept - joined > 1.5 * target + 1:
            counts = ", ".join(str(count) for count in plan.values())
            warnings.warn(
                f"{method} cannot remove so many tokens: block {block} keeps {kept} where {spec(schedule)} asks for {target}; "
                f"counts are {counts}. Reduce at more blocks, or choose a method without this limit, such as atc",
                stacklevel=5,
            )
            return

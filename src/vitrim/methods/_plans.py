"""Plans of the methods that do something at every location of a schedule."""

from __future__ import annotations

from vitrim.core.schedule import Schedule


def every_location(schedule: Schedule, patches: int, depth: int) -> dict[int, int]:
    """Counts that never rise; a location stays even where all tokens do: it has parameters, or may still drop some."""
    counts: dict[int, int] = {}
    left = patches
    for block, target in schedule.targets(patches, depth).items():
        counts[block] = left = max(min(target, left), 1)
    return counts


def as_asked(schedule: Schedule, patches: int, depth: int) -> dict[int, int]:
    """The targets themselves: a soft method mixes its tokens into as many new ones as it has parameters for."""
    return {block: max(target, 1) for block, target in schedule.targets(patches, depth).items()}

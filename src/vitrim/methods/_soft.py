"""What the soft methods share."""

from __future__ import annotations

from vitrim.core.schedule import Schedule


def plan_all(schedule: Schedule, patches: int, depth: int) -> dict[int, int]:
    """Every location has parameters and mixes its tokens, also where it keeps their number."""
    return {block: max(target, 1) for block, target in schedule.targets(patches, depth).items()}

"""Plans of the methods that do something at every location of a schedule."""

from __future__ import annotations

from vitrim.core.schedule import Course


def every_location(course: Course) -> dict[int, int]:
    """Counts that never rise at a location; one stays even where all tokens do: it has parameters, or may still drop some."""
    counts: dict[int, int] = {}
    for block, target in course:
        counts[block] = course.left = course.at_least(min(target, course.left))
    return counts


def as_asked(course: Course) -> dict[int, int]:
    """The targets themselves: a soft method mixes its tokens into as many new ones as it has parameters for."""
    counts: dict[int, int] = {}
    for block, target in course:
        counts[block] = course.left = course.at_least(target)
    return counts

"""Lines on the patch grid between patches of different tokens, as ToMe's figures have them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrim.analysis.view import View

Lines = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Boundary:
    """Lines ``(k, 2, 2)`` from (x, y) to (x, y) in columns and rows of patches.

    Attributes:
        strong: around tokens of several patches, and around what is kept.
        fine: between tokens of a single patch each.
    """

    strong: Lines
    fine: Lines


def boundary(view: View) -> Boundary:
    """The boundaries of the tokens after a stage; without the frame of the image."""
    label, several = view.group.copy(), view.several
    if view.kind != "merge":
        # Single patches are not told from each other: what counts is where the kept region ends.
        label[(label >= 0) & ~several] = label.max(initial=0) + 1
    grid = label.reshape(view.grid)
    dropped, shared = (label < 0).reshape(view.grid), several.reshape(view.grid)
    heavy = dropped | shared
    strong: list[Any] = []
    fine: list[Any] = []
    for flip in (False, True):
        names, thick = (grid.T, heavy.T) if flip else (grid, heavy)
        edge = names[1:] != names[:-1]
        bold = edge & (thick[1:] | thick[:-1])
        strong += _runs(bold, flip)
        fine += _runs(edge & ~bold, flip)
    return Boundary(_array(strong), _array(fine))


def _runs(edge: npt.NDArray[np.bool_], flip: bool) -> list[Any]:
    """Straight lines of as many patches as follow each other, between row y - 1 and row y."""
    found: list[Any] = []
    for y, row in enumerate(edge, start=1):
        x = 0
        for there, run in groupby(row.tolist()):
            length = len(list(run))
            if there:
                ends = ((x, y), (x + length, y))
                found.append([end[::-1] for end in ends] if flip else list(ends))
            x += length
    return found


def _array(lines: list[Any]) -> Lines:
    return np.array(lines, dtype=np.float64).reshape(-1, 2, 2)

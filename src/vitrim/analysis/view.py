"""What the patches of an image have become after a block, read from token maps alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitrim.core.tokenmap import TokenMap
from vitrim.core.trace import Trace

Kind = Literal["prune", "merge", "fuse"]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class View:
    """One image after one block.

    Attributes:
        block: the block.
        grid: rows and columns of patches.
        group: ``(patches,)`` the token of each patch, that which takes most of it where the map is soft; -1 when dropped.
        tokens: patch tokens left, padding not counted, those of a cache counted.
        kind: ``prune`` where tokens are single patches, ``fuse`` where one of them takes several and the others are single,
            ``merge`` otherwise; the same for all blocks of an image.
        weight: ``(m, patches)`` float of a soft map; None where it is hard.
    """

    block: int
    grid: tuple[int, int]
    group: Ints
    tokens: int
    kind: Kind
    weight: npt.NDArray[Any] | None = None

    @cached_property
    def sizes(self) -> Ints:
        """``(patches,)``: patches in the token of each patch; 0 when dropped."""
        return token_sizes(self.group[None])[0]

    @property
    def several(self) -> npt.NDArray[np.bool_]:
        """``(patches,)``: whether the patch shares its token with others."""
        return self.sizes > 1

    @property
    def unchanged(self) -> bool:
        """Whether every patch is still a token of its own."""
        return bool((self.sizes == 1).all()) and self.weight is None


def views(trace: Trace, grid: tuple[int, int], *, sample: int = 0, apart: bool = False) -> list[View]:
    """One image of the last forward pass after every block that changed its tokens.

    Args:
        trace: ``reduction.trace`` after a forward pass.
        grid: rows and columns of patches.
        sample: which image of the batch.
        apart: every stage for itself, as when modules are wrapped and tokens do not stay reduced (``around:NAME``).

    Raises:
        ValueError: when the maps are not over ``grid`` patches, or have no such image.
    """
    alone = [step.map.without_prefix(trace.prefix) for step in trace.values()]
    kind = kind_of(alone, sample) if alone else "prune"
    found: list[View] = []
    for block, own in zip(trace, alone, strict=True):
        map = own if apart else trace.patches(block)
        assert map is not None
        found.append(view(map, grid, block=block, sample=sample, kind=kind))
    return found


def view(map: TokenMap, grid: tuple[int, int], *, block: int = 0, sample: int = 0, kind: Kind | None = None) -> View:
    """One image of a map that starts from the patches; ``kind`` is found out when None.

    Raises:
        ValueError: when the map is not over ``grid`` patches, or has no such image.
    """
    if map.n != grid[0] * grid[1]:
        raise ValueError(f"the map starts from {map.n} patches, the grid has {grid[0]} x {grid[1]}; pass trace.patches(layer)")
    if not 0 <= sample < map.batch:
        raise ValueError(f"sample {sample} is not in the batch of {map.batch}")
    weight = map.dense()[sample].detach().float().cpu().numpy() if map.is_soft else None
    group = map.assignment()[sample].cpu().numpy().astype(np.int64)
    if weight is not None:
        # The largest of many zeros is no token: what a map passes on nothing of has been dropped before it.
        group = np.where(weight.sum(axis=0) == 0, -1, group)
    tokens = map.m if map.valid is None else int(map.valid[sample].sum())
    return View(block, grid, group, tokens, kind or kind_of([map], sample), weight)


def kind_of(maps: Sequence[TokenMap], sample: int = 0) -> Kind:
    """One kind for all stages: fused tokens of several stages would look like merging when seen from the patches."""
    found: set[Kind] = set()
    for map in maps:
        group = map.assignment()[sample].cpu().numpy()
        members = np.bincount(group[group >= 0], minlength=map.m)
        many = int((members > 1).sum())
        if map.is_soft or many > 1 or (many == 1 and not (members == 1).sum() > 1):
            found.add("merge")
        elif many == 1:
            found.add("fuse")
    return "merge" if "merge" in found else "fuse" if "fuse" in found else "prune"


def token_sizes(group: Ints) -> Ints:
    """Patches in the token of each patch, ``(B, patches)`` to ``(B, patches)``; 0 when dropped."""
    wide = int(group.max(initial=0)) + 1
    # One range of names for each image, so that all are counted at once.
    names = np.where(group < 0, 0, group) + wide * np.arange(len(group))[:, None]
    counts = np.bincount(names[group >= 0], minlength=wide * len(group))
    return np.where(group < 0, 0, counts[names])


def chosen(found: Sequence[View], most: int) -> list[View]:
    """At most ``most`` of the stages, evenly spread, the last one always."""
    if len(found) <= most:
        return list(found)
    return [found[round((i + 1) * len(found) / most) - 1] for i in range(most)]


def table(found: Sequence[View], **what: Any) -> dict[str, list[Any]]:
    """One row for each patch and stage: ``what``, block, row, column, token (-1: dropped), patches of the token, tokens left."""
    names = (*what, "block", "row", "column", "token", "token_patches", "tokens_left")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for one in found:
        rows, width = one.grid
        count = rows * width
        for name, value in (*what.items(), ("block", one.block), ("tokens_left", one.tokens)):
            columns[name] += [value] * count
        place = np.arange(count)
        numbers = {"row": place // width, "column": place % width, "token": one.group, "token_patches": one.sizes}
        for name, values in numbers.items():
            columns[name] += values.tolist()
    return columns

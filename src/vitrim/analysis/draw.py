"""Pictures of a reduction: which patches left the image, which were merged with which, what soft tokens are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrim.analysis.paint import heat, plain, tokens
from vitrim.analysis.sheet import Key, Page, Panel, Row
from vitrim.analysis.view import View, chosen, views
from vitrim.core.trace import Trace

COLOURS = "cividis"  # even in lightness, and told apart with every common form of colour blindness
Image = npt.NDArray[Any]
_SCREEN = 100  # dots per inch


def draw_reduction(
    image: Image, trace: Trace, grid: tuple[int, int], title: str = "", *, sample: int = 0, side: float = 100, stages: int = 5
) -> Page:
    """Draw a strip: the input, then the image after each stage, with token counts.

    Args:
        image: ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` uint8, as the model sees it.
        trace: ``reduction.trace`` after a forward pass.
        grid: rows and columns of patches.
        title: line over the strip.
        sample: which image of the batch.
        side: the longer side of each picture in points, 1/72 inch.
        stages: at most this many stages, evenly chosen, the last one always.

    Raises:
        ValueError: when nothing has been reduced yet.
    """
    return strip([("", image, views(trace, grid, sample=sample))], title, side=side, stages=stages)


def contact_sheet(
    images: Sequence[Image], traces: Sequence[tuple[str, Trace]], grid: tuple[int, int], *, title: str = "", size: float = 100
) -> Page:
    """What each method leaves of a few images: methods in rows, images in columns, after the last stage; for a screen.

    Args:
        images: the images of the batch that all ``traces`` come from, in its order.
        traces: name and trace of each method.
        grid: rows and columns of patches.
        title: over everything.
        size: the longer side of each picture in points.
    """
    rows = [Row("input", [plain(image, grid) for image in images], [f"{grid[0] * grid[1]} tokens"])]
    every: list[View] = []
    for name, trace in traces:
        found = [last(views(trace, grid, sample=i)) for i in range(len(images))]
        every += found
        left = sorted({one.tokens for one in found})
        note = f"{left[0]} tokens" if len(left) == 1 else f"{left[0]} to {left[-1]} tokens"
        panels = [tokens(image, one) for image, one in zip(images, found, strict=True)]
        rows.append(Row(*_split(name), panels, [*_settings(name), note]))
    return Page(rows, title=title, foot=legend(every), side=size, dpi=_SCREEN)


def stage_sheet(
    image: Image,
    traces: Sequence[tuple[str, Trace]],
    grid: tuple[int, int],
    *,
    title: str = "",
    sample: int = 0,
    size: float = 100,
    stages: int = 3,
) -> Page:
    """One image under several methods: methods in rows, the input and ``stages`` stages in columns; for a screen.

    Methods that reduce more often than that are shown at evenly chosen stages.

    Args:
        image: the image of the batch that is drawn.
        traces: name and trace of each method.
        grid: rows and columns of patches.
        title: over everything.
        sample: its position in the batch.
        size: the longer side of each picture in points.
        stages: at most this many stages for each method.
    """
    rows = [(name, image, views(trace, grid, sample=sample)) for name, trace in traces]
    return strip(rows, title, side=size, stages=stages, dpi=_SCREEN)


def strip(
    rows: Sequence[tuple[str, Image, Sequence[View]]], title: str = "", *, side: float = 100, stages: int = 5, dpi: int = 300
) -> Page:
    """The input and the stages of each row: images under one method, or methods on one image.

    Args:
        rows: name, image, and the image after each stage.
        title: over everything.
        side: the longer side of each picture in points.
        stages: at most this many stages in a row, evenly chosen, the last one always.
        dpi: dots per inch.

    Raises:
        ValueError: when nothing was reduced in a row.
    """
    drawn: list[Row] = []
    for name, image, found in rows:
        grid = last(found).grid
        panels = [plain(image, grid, f"input: {grid[0] * grid[1]} tokens")]
        panels += [tokens(image, one, f"block {one.block}: {_count(one.tokens)}") for one in chosen(found, stages)]
        drawn.append(Row(*_split(name), panels, _settings(name)))
    return Page(drawn, title=title, foot=legend([one for _, _, found in rows for one in found]), side=side, dpi=dpi)


def rate_strip(
    rows: Sequence[tuple[str, Image, Mapping[str, View]]], title: str = "", *, side: float = 100, dpi: int = 300
) -> Page:
    """The input, and what is left of it at the end, under one schedule after the other.

    Args:
        rows: name, image, and the image after the last stage by the name of the schedule, the same in all rows.
        title: over everything.
        side: the longer side of each picture in points.
        dpi: dots per inch.
    """
    drawn: list[Row] = []
    for name, image, found in rows:
        grid = next(iter(found.values())).grid
        panels = [plain(image, grid, _count(grid[0] * grid[1]))]
        panels += [tokens(image, one, _count(one.tokens)) for one in found.values()]
        drawn.append(Row(*_split(name), panels, _settings(name)))
    every = [one for _, _, found in rows for one in found.values()]
    return Page(drawn, ["input", *rows[0][2]], title=title, foot=legend(every), side=side, dpi=dpi)


def soft_sheet(
    image: Image, found: Sequence[View], title: str = "", *, strongest: int = 5, colours: str = COLOURS, side: float = 100,
    dpi: int = 300,
) -> Page:  # fmt: skip
    """What the strongest tokens of a soft method are made of: stages in rows, a map for each token.

    A caption says how many patches the token takes, and its largest share, to which its map is scaled.

    Args:
        image: as for :func:`draw_reduction`.
        found: the image after each stage.
        title: over everything.
        strongest: tokens of a row, those that take most of the patches first.
        colours: a colour map of matplotlib.
        side: the longer side of each picture in points.
        dpi: dots per inch.

    Raises:
        ValueError: when no stage is soft.
    """
    rows: list[Row] = []
    for one in found:
        if one.weight is None:
            continue
        panels = [plain(image, one.grid, "input")]
        for _, mass, share in soft_tokens(one, strongest):
            caption = f"{mass:.1f} patches, max {share.max():.0%}"
            panels.append(heat(share, one.grid, (0, float(share.max())), colours, image=image, caption=caption))
        rows.append(Row(f"block {one.block}", panels, [_count(one.tokens)]))
    if not rows:
        raise ValueError("every patch belongs to one token here, there are no soft maps; draw tokens")
    key = Key(colours, ("0", "largest"), "share of a patch in the token")
    return Page(rows, title=title, key=key, side=side, dpi=dpi)


def heat_sheet(
    maps: Mapping[str, npt.NDArray[Any]],
    limits: tuple[float, float],
    label: str,
    title: str = "",
    *,
    colours: str = COLOURS,
    columns: int = 4,
    side: float = 100,
    dpi: int = 300,
) -> Page:
    """Heat maps over the patch grid in one range of colours.

    Args:
        maps: ``(rows, columns)`` values by name.
        limits: values at the ends of the colour bar.
        label: what the values are.
        title: over everything.
        colours: a colour map of matplotlib.
        columns: maps in a row.
        side: the longer side of each map in points.
        dpi: dots per inch.
    """
    panels = [
        heat(values.reshape(-1), (values.shape[0], values.shape[1]), limits, colours, caption=f"{name}: mean {values.mean():.1f}")
        for name, values in maps.items()
    ]
    rows = [Row("", panels[i : i + columns]) for i in range(0, len(panels), columns)]
    ticks = [f"{value:.3g}" for value in np.linspace(*limits, 3)]
    return Page(rows, title=title, key=Key(colours, ticks, label), side=side, dpi=dpi)


def layer_frames(
    image: Image, methods: Sequence[tuple[str, Sequence[View]]], depth: int, title: str = "", *, side: float = 140, dpi: int = 150
) -> list[Page]:
    """One page for the input and one for each block, all of one size: the methods beside each other.

    Args:
        image: as for :func:`draw_reduction`.
        methods: name, and the image after each stage.
        depth: number of blocks.
        title: over everything.
        side: the longer side of each picture in points.
        dpi: dots per inch.
    """
    grid = last(methods[0][1]).grid
    names = [name for name, _ in methods]
    foot = legend([one for _, found in methods for one in found])
    pages: list[Page] = []
    for block in range(-1, depth):
        panels: list[Callable[[int], Panel]] = []
        for _, found in methods:
            now = [one for one in found if one.block <= block]
            whole = _count(grid[0] * grid[1])
            where = "input" if block < 0 else f"block {block}"
            text = f"{where}: {_count(now[-1].tokens) if now else whole}"
            panels.append(tokens(image, now[-1], text) if now else plain(image, grid, text))
        pages.append(Page([Row("", panels)], names, title, foot, side=side, dpi=dpi))
    return pages


def soft_tokens(view: View, strongest: int) -> list[tuple[int, float, npt.NDArray[Any]]]:
    """The tokens of a soft map that take most: number, how many patches it takes, and its shares ``(patches,)``.

    Every patch is shared out in proportion among the tokens; the shares of a token sum to one. None where the map is hard.
    """
    if view.weight is None:
        return []
    weight = view.weight.astype(np.float64)
    total = weight.sum(axis=0)
    mass = (weight / np.where(total == 0, 1, total)).sum(axis=1)
    order = np.argsort(-mass, kind="stable")[:strongest].tolist()
    return [(i, float(mass[i]), weight[i] / max(float(weight[i].sum()), 1e-12)) for i in order]


def last(found: Sequence[View]) -> View:
    """The last stage.

    Raises:
        ValueError: when there is none.
    """
    if not found:
        raise ValueError("nothing has been reduced yet; run the model on the image first, and choose a block that reduces")
    return found[-1]


def legend(found: Sequence[View]) -> str:
    """What the looks of patches mean, as far as they occur."""
    parts = {
        "faded: dropped": any((one.group < 0).any() for one in found),
        "amber: fused into one token": any(one.kind == "fuse" for one in found),
        "area of one colour: one token": any(one.kind == "merge" and one.weight is None for one in found),
        "soft tokens by the one that takes most of a patch": any(one.weight is not None for one in found),
    }
    return "; ".join(text for text, there in parts.items() if there)


def _count(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _split(name: str) -> tuple[str]:
    """The name of a method without its settings, which stand below it."""
    return (name.partition("(")[0].strip(),)


def _settings(name: str) -> list[str]:
    """The settings of a method, a line each."""
    inside = name.partition("(")[2].removesuffix(")")
    lines: list[str] = []
    for part in inside.split(", ") if inside else []:
        # A list of numbers is no list of settings.
        if "=" in part or not lines or not lines[-1].count("[") > lines[-1].count("]"):
            lines.append(part)
        else:
            lines[-1] += f", {part}"
    return lines

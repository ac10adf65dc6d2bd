"""The kinds of ``vitrim draw`` that show single images: each image under each reduction, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrim.analysis import sheet
from vitrim.analysis.draw import layer_frames, rate_strip, soft_sheet, soft_tokens, strip
from vitrim.analysis.view import View, chosen, views
from vitrim.analysis.view import table as view_table
from vitrim.cli.sources import Source, plain_name
from vitrim.core.registry import SCHEDULES, SpecError, spec


@dataclass(frozen=True)
class Order:
    """What is wanted.

    Attributes:
        kind: any but depth.
        methods: specs; none where runs keep their own.
        schedules: specs; none likewise.
        files: photographs; None takes images of the data set.
        images: so many of the data set, for tokens.
        stages: at most, of each method.
        strongest: maps of soft tokens at each stage.
        side: the longer side of each picture, in points.
        colours: colour map.
        title: over the picture; None says what is the same in all of it.
        seed: of methods with randomness, and untrained parts.
    """

    kind: str
    methods: list[str]
    schedules: list[str]
    files: list[Path] | None
    images: int
    stages: int
    strongest: int
    side: float
    colours: str
    title: str | None
    seed: int


@dataclass(frozen=True, eq=False)
class Seen:
    """One image under one reduction.

    Attributes:
        image: its name.
        pixels: as the model sees it.
        method: name of the row.
        schedule: spec.
        views: the image after each stage.
        depth: blocks of the model.
    """

    image: str
    pixels: np.ndarray
    method: str
    schedule: str
    views: list[View]
    depth: int


def draw_images(order: Order, sources: Sequence[Source]) -> tuple[sheet.Page | list[sheet.Page], dict[str, list[Any]]]:
    """A page, or one for each block, and the table behind it.

    Raises:
        SpecError: for a method that cannot work on the model.
        ValueError: when nothing is reduced, or the images cannot be read.
    """
    seen = [one for source in sources for one in _look(order, source, alone=len(sources) == 1)]
    if order.kind == "soft":
        seen = [one for one in seen if any(view.weight is not None for view in one.views)] or seen
    title = _title(order, sources[0], seen)
    if order.kind == "tokens":
        rows = [(_row_name(one, seen), one.pixels, one.views) for one in seen]
        page = strip(rows, title, side=order.side, stages=order.stages)
    elif order.kind == "grid":
        page = strip([(one.method, one.pixels, one.views) for one in seen], title, side=order.side, stages=order.stages)
    elif order.kind == "rates":
        names = list(dict.fromkeys(one.method for one in seen))
        rows = []
        for name in names:
            own = [one for one in seen if one.method == name]
            rows.append((name if len(names) > 1 else "", own[0].pixels, {_short(one.schedule): one.views[-1] for one in own}))
        page = rate_strip(rows, title, side=order.side)
    elif order.kind == "soft":
        one = seen[0]
        found = chosen(one.views, order.stages)
        page = soft_sheet(one.pixels, found, title, strongest=order.strongest, colours=order.colours, side=order.side)
    else:
        page = layer_frames(seen[0].pixels, [(one.method, one.views) for one in seen], seen[0].depth, title, side=order.side)
    return page, _soft_table(seen[0], order.strongest) if order.kind == "soft" else _table(seen)


def _look(order: Order, source: Source, alone: bool) -> list[Seen]:
    """Every image under every reduction; what cannot be drawn among several methods is left out with a note."""
    if order.files is not None and len(order.files) > 1 and order.kind != "tokens":
        raise ValueError(f"{order.kind} draws one image; give one --image, or draw tokens")
    gallery, names = source.gallery(order.files, order.images if order.kind == "tokens" else 1)
    x = next(gallery.batches(len(names), 0, 0))[0]
    if x is None:
        raise ValueError("none of the images can be read; check the data set with: vitrim data check NAME --root DIR")
    x = x.to(next(source.model.parameters()).device)
    pixels = [gallery.picture(one) for one in x]
    asked = [(m, s) for m in (order.methods or [None]) for s in (order.schedules or [None])]
    found: list[Seen] = []
    for method, schedule in asked:
        name = plain_name(method) if method is not None else source.label
        rule = spec(schedule or source.schedule or "keep")
        try:
            with source.reduced(method, schedule, order.seed) as (model, engine), torch.inference_mode():
                model(x)
                drawn = [views(engine.trace, source.grid, sample=i, apart=engine.site == "around") for i in range(len(x))]
                depth = engine.depth
        except SpecError as error:
            if len(asked) == 1:
                raise
            source.note(f"{name} is left out: {error}")
            continue
        if any(not one or all(view.unchanged for view in one) for one in drawn):
            problem = f"{name} removes nothing under {rule}"
            if len(asked) == 1 or order.kind == "rates":
                raise ValueError(f"{problem}, so that there is nothing to draw; take a lower rate, or a method that does")
            source.note(f"{problem}; it is left out")
            continue
        shown = name if alone else f"{source.name} ({name})"
        shown = f"{shown} (untrained)" if name in source.untrained else shown
        found += [Seen(*row, shown, rule, one, depth) for row, one in zip(zip(names, pixels, strict=False), drawn, strict=True)]
    if not found:
        raise ValueError(f"none of the {len(asked)} methods removes anything here; there is nothing to draw")
    return found


def _row_name(one: Seen, seen: Sequence[Seen]) -> str:
    """The image, and the method where there are several."""
    several = len({other.method for other in seen}) > 1
    if len({other.image for other in seen}) == 1:
        return one.method if several else ""
    return f"{one.image} ({one.method})" if several else one.image


def _title(order: Order, source: Source, seen: Sequence[Seen]) -> str:
    """Model, method and schedule, as far as they are the same in all that is seen."""
    if order.title is not None:
        return order.title
    methods, rules = ({getattr(one, name) for one in seen} for name in ("method", "schedule"))
    images = {one.image for one in seen}
    parts = [source.name] if source.name not in methods else []
    parts += list(methods) if len(methods) == 1 or (order.kind == "soft" and seen) else []
    parts += list(rules) if len(rules) == 1 else []
    parts += list(images) if len(images) == 1 else []
    return " · ".join(parts)


def _short(schedule: str) -> str:
    """The name of a schedule over a column: its rate where that is all."""
    built = SCHEDULES.build(schedule)
    rate = getattr(built, "rate", None)
    return f"keep {rate:g}" if isinstance(rate, int | float) and schedule.startswith("keep") else schedule


def _table(seen: Sequence[Seen]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for one in seen:
        for name, values in view_table(one.views, image=one.image, method=one.method, schedule=one.schedule).items():
            columns.setdefault(name, []).extend(values)
    return columns


def _soft_table(one: Seen, strongest: int) -> dict[str, list[Any]]:
    """One row for each map and patch."""
    columns: dict[str, list[Any]] = {name: [] for name in ("image", "method", "schedule")}
    columns |= {name: [] for name in ("block", "token", "takes_patches", "row", "column", "share")}
    for view in one.views:
        for token, mass, share in soft_tokens(view, strongest):
            for patch, value in enumerate(share.tolist()):
                cells = (one.image, one.method, one.schedule, view.block, token, mass, *divmod(patch, view.grid[1]), value)
                for values, cell in zip(columns.values(), cells, strict=True):
                    values.append(cell)
    return columns

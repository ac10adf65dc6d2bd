"""``vitrim draw depth``: how deep patches get into a model, averaged over many images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitrim.analysis.depth import Measure, TokenDepth
from vitrim.analysis.draw import heat_sheet
from vitrim.analysis.sheet import Page
from vitrim.cli.sources import Source, plain_name
from vitrim.core.registry import spec
from vitrim.experiments.patterns import stages
from vitrim.experiments.tracestore import TraceStore

LABELS = {"depth": "block at which a patch stops being a token of its own", "size": "patches in the token of a patch; 0 dropped"}


def is_trace(path: Path) -> bool:
    """Whether a folder is a trace store."""
    return (path / "store.json").is_file()


def draw_depth(
    traces: Sequence[Path],
    sources: Sequence[Source],
    methods: Sequence[str],
    schedules: Sequence[str],
    *,
    files: Sequence[Path] | None,
    images: int,
    measure: Measure,
    batch_size: int,
    workers: int | None,
    colours: str,
    side: float,
    title: str | None,
    seed: int,
) -> tuple[Page, dict[str, list[Any]]]:
    """The heat maps of trace stores and of models, and the table behind them.

    Raises:
        ValueError: when nothing is reduced, or when there is no depth because all patches are mixed at once.
    """
    found: dict[str, tuple[TokenDepth, tuple[int, int]]] = {}
    for path in traces:
        store = TraceStore(path)
        _name(found, store.meta.get("method") or "dense", store.path.parent.name, (_of_store(store), _grid_of(store)))
    rule = schedules[0] if schedules else None
    for source in sources:
        for method in methods or [None]:
            name = plain_name(method) if method is not None else source.label
            seen = _of_source(source, method, rule, files, images, batch_size, workers, seed)
            _name(found, name, source.name, (seen, source.grid))
    for name, (seen, _) in found.items():
        if measure == "depth" and seen.mixed:
            raise ValueError(
                f"{name} leaves no patch a token of its own after its first stage, so all have one depth; take --measure size"
            )
    maps = {name: seen.mean(measure).reshape(grid) for name, (seen, grid) in found.items()}
    values = [value for one in maps.values() for value in (float(one.min()), float(one.max()))]
    # All that is possible: a range of their own would show differences that are none.
    every = [seen for seen, _ in found.values()]
    ends = (float(min(seen.first for seen in every)), float(max(seen.blocks for seen in every)))
    limits = ends if measure == "depth" else (0.0, max(values))
    counts = {seen.images for seen, _ in found.values()}
    about = [sources[0].name] if sources else []
    about += [spec(rule or sources[0].schedule or "keep")] if sources else []
    about += [f"{max(counts)} image{'' if max(counts) == 1 else 's'}"]
    text = " · ".join(about) if title is None else title
    return heat_sheet(maps, limits, LABELS[measure], text, colours=colours, side=side), _table(found)


def _name(found: dict[str, Any], name: str, place: str, what: Any) -> None:
    """Keep a map under its method, and under the run as well where that method is there already."""
    key = name if name not in found else f"{name}, {place}"
    number = 2
    while key in found:
        key, number = f"{name}, {place} {number}", number + 1
    found[key] = what


def _of_store(store: TraceStore) -> TokenDepth:
    seen = TokenDepth(store.patches, int(store.meta["depth"]))
    for rows in store.chunks():
        seen.add([(stage, store.kept(stage, rows), store.assignment(stage, rows)) for stage in store.stages])
    return seen


def _grid_of(store: TraceStore) -> tuple[int, int]:
    grid = store.meta["grid"]
    if grid is None:
        raise ValueError(f"'{store.path}' does not say how the patches lie; it is of a model whose grid is not known")
    return int(grid[0]), int(grid[1])


def _of_source(
    source: Source, method: str | None, schedule: str | None, files: Sequence[Path] | None, images: int, batch_size: int,
    workers: int | None, seed: int,
) -> TokenDepth:  # fmt: skip
    gallery, _ = source.gallery(files, images)
    rows, columns = source.grid
    device = next(source.model.parameters()).device
    live = sys.stderr.isatty()
    with source.reduced(method, schedule, seed) as (model, engine), torch.inference_mode():
        seen = TokenDepth(rows * columns, engine.depth)
        for batch, _ in gallery.batches(batch_size, 0, workers):
            if batch is None:
                continue
            model(batch.to(device))
            found: list[tuple[int, Any, Any]] = []
            for stage in stages(engine):
                own = torch.zeros(len(batch), rows * columns + 1, dtype=torch.bool, device=device)
                own.scatter_(1, torch.where(stage.source < 0, rows * columns, stage.source), True)
                group = stage.map.assignment()
                found.append((stage.block, own[:, :-1].cpu().numpy(), group.cpu().numpy()))
            if not found:
                name = method or source.label
                raise ValueError(f"{name} removes nothing under {schedule or source.schedule}, so that there is nothing to draw")
            seen.add(found)
            if live:
                print(f"\r\033[K{method or source.label}: {seen.images} images", end="", file=sys.stderr, flush=True)
    if live:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return seen


def _table(found: dict[str, tuple[TokenDepth, tuple[int, int]]]) -> dict[str, list[Any]]:
    """One row for each map and patch."""
    columns: dict[str, list[Any]] = {"name": [], "images": [], "row": [], "column": []}
    columns |= {f"{name}_{what}": [] for name in ("depth", "size") for what in ("mean", "std")}
    for name, (seen, grid) in found.items():
        numbers = [values(one).tolist() for one in ("depth", "size") for values in (seen.mean, seen.std)]
        for patch in range(grid[0] * grid[1]):
            cells = (name, seen.images, *divmod(patch, grid[1]), *(column[patch] for column in numbers))
            for values, cell in zip(columns.values(), cells, strict=True):
                values.append(cell)
    return columns

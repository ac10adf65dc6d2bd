"""``vitrim draw``: pictures of token reduction for print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import Parameter

from vitrim.analysis import animation, sheet
from vitrim.analysis.draw import COLOURS, layer_frames, rate_strip, soft_sheet, soft_tokens, strip
from vitrim.analysis.view import View, chosen, views
from vitrim.analysis.view import table as view_table
from vitrim.cli.bench import RATES, pick_device, split_methods
from vitrim.cli.draw_depth import draw_depth, is_trace
from vitrim.cli.sources import Source, check, of_name, of_runs, plain_name
from vitrim.core.registry import SCHEDULES, SpecError, spec
from vitrim.experiments.results import require_parquet, write_table

Kind = Literal["tokens", "soft", "depth", "grid", "rates", "layers"]
Flag = Annotated[bool, Parameter(negative="")]
Words = Annotated[list[str], Parameter(name=["--methods", "--method"], consume_multiple=True, negative="")]
Specs = Annotated[list[str], Parameter(consume_multiple=True, negative="")]
Rates = Annotated[list[float], Parameter(name=["--rates", "--rate"], consume_multiple=True, negative="")]
Files = Annotated[list[Path], Parameter(consume_multiple=True, negative="")]

# What is drawn of a model by name when nothing is said; runs have a method of their own.
METHODS = {"tokens": ["atc"], "soft": ["patchmerger"], "depth": ["topk", "tome"], "grid": ["all"], "rates": ["atc"],
           "layers": ["topk", "atc"]}  # fmt: skip
IMAGES = {"tokens": 3, "depth": 512}


@dataclass
class Order:
    """What is wanted, as read from the command line."""

    kind: Kind
    methods: list[str]
    schedules: list[str]
    files: list[Path] | None
    images: int
    stages: int
    strongest: int
    seconds: float
    side: float
    colours: str
    title: str | None
    seed: int


def draw(
    kind: Kind,
    *runs: Path,
    model: str | None = None,
    weights: Path | None = None,
    random_weights: Flag = False,
    methods: Words | None = None,
    schedule: Specs | None = None,
    rates: Rates | None = None,
    image: Files | None = None,
    data: str | None = None,
    split: str | None = None,
    transform: str | None = None,
    images: int | None = None,
    stages: int = 4,
    strongest: int = 5,
    measure: Literal["depth", "size"] = "depth",
    seconds: float = 0.6,
    side: float = 1.2,
    dpi: int | None = None,
    colours: str = COLOURS,
    title: str | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    seed: int = 0,
    table: Path | None = None,
    out: Path | None = None,
) -> int:
    """Draw how tokens are reduced, for print: PNG, SVG, PDF, GIF or MP4, by the ending of --out.

    tokens: kept, dropped and merged patches after each stage. soft: what the tokens of a soft method are made of. depth: at which
    block patches leave, averaged over many images. grid: methods x stages on one image. rates: one image at several keep rates.
    layers: an animation over the blocks. Of runs, of a model by name, or of the model and images that come with vitrim.

    Args:
        kind: tokens, soft, depth, grid, rates or layers.
        runs: folders of finished runs, or weights files of them; for depth also traces of vitrim eval --trace.
        model: fashion (comes with vitrim), timm/NAME, or vit with --weights.
        weights: safetensors file: of a run, or the weights of --model.
        random_weights: do without weights.
        methods: names or full specs, such as tome "atc(linkage=complete)", or all; none is the model itself.
        schedule: how many tokens stay where, such as "keep(rate=0.7, at=[3, 6, 9])"; several for rates.
        rates: shares of the patches that stay, in place of a schedule; several for rates (0.9 0.7 0.5 0.25 when left out).
        image: photographs.
        data: data set as in a recipe, for its images.
        split: split of the data set; that of the recipe's evaluations (otherwise val) when left out.
        transform: spec of other transforms of the images.
        images: number of images of the data set, spread evenly; 3 for tokens, 512 for depth (0 takes all), otherwise 1.
        stages: at most this many stages of each method, evenly chosen.
        strongest: maps of soft tokens at each stage.
        measure: depth at which a patch leaves, or size of the token it ends in.
        seconds: of each block in an animation.
        side: the longer side of each picture in inches.
        dpi: dots per inch; 300, and 150 for animations, when left out.
        colours: colour map of heat maps; cividis, viridis and magma are safe for the colour-blind.
        title: over the picture; the model and the schedule when left out, "" for none.
        batch_size: images of a batch.
        workers: processes that load images.
        device: cpu, cuda, or auto.
        seed: for methods with randomness and untrained parts.
        table: CSV or Parquet file for the data behind the picture.
        out: file; vitrim-KIND.png (.gif for layers) when left out.
    """
    path = out or Path(f"vitrim-{kind}{'.gif' if kind == 'layers' else '.png'}")
    _check_numbers(stages=stages, strongest=strongest, batch_size=batch_size, dpi=1 if dpi is None else dpi)
    if side <= 0 or seconds <= 0 or (images is not None and images < 0):
        raise ValueError("--side and --seconds are more than 0, --images is 0 or more")
    _check_files(kind, path, table)
    places = [*runs] if model is not None or weights is None else [*runs, weights]
    wanted = split_methods(methods) if methods else []
    count = IMAGES.get(kind, 1) if images is None else images
    where = pick_device(device)
    if any(is_trace(place) for place in places) and kind != "depth":
        raise ValueError("a trace holds no images; it can be drawn as depth, other kinds need the run itself")
    if kind == "depth" and all(is_trace(place) for place in places) and places:
        sources: list[Source] = []
    elif places:
        if model is not None:
            raise ValueError(f"'{places[0]}' is a run, which knows its model; leave out --model")
        sources = of_runs([place for place in places if not is_trace(place)], data, split, transform, where)
    else:
        sources = [of_name(model or "fashion", weights, random_weights, data, split, transform, where)]
        wanted = wanted or split_methods(METHODS[kind])
    schedules = _schedules(kind, sources, bool(places), rates, schedule)
    check(wanted, schedules)
    order = Order(kind, wanted, schedules, image, count, stages, strongest, seconds, 72 * side, colours, title, seed)
    if kind == "depth":
        traces = [place for place in places if is_trace(place)]
        page, columns = draw_depth(
            traces, sources, wanted, schedules, files=image, images=count, measure=measure, batch_size=batch_size,
            workers=workers, colours=colours, side=order.side, title=title, seed=seed,
        )  # fmt: skip
    else:
        page, columns = _draw_images(order, sources)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(page, list):
        animation.save_animation(page, path, seconds=seconds, dpi=dpi or 150)
    else:
        page.save(path, dpi=dpi or 300)
    print(f"written: {path}")
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, columns)
        print(f"written: {table}")
    for note in dict.fromkeys(note for source in sources for note in source.notes):
        print(f"note: {note}", file=sys.stderr)
    return 0


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


def _draw_images(order: Order, sources: Sequence[Source]) -> tuple[sheet.Page | list[sheet.Page], dict[str, list[Any]]]:
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


def _schedules(
    kind: Kind, sources: Sequence[Source], run: bool, rates: list[float] | None, schedules: list[str] | None
) -> list[str]:  # fmt: skip
    """The schedules that are asked for; none where runs keep their own."""
    if schedules and rates:
        raise ValueError("--schedule says it all; leave out --rates")
    if kind != "rates" and max(len(schedules or []), len(rates or [])) > 1:
        raise ValueError(f"{kind} is drawn under one schedule; give one --schedule or --rate, or draw rates")
    if schedules or not sources:
        return schedules or []
    first = sources[0]
    if kind == "layers" and not (run or rates):
        return [f"r(n={max(round(0.8 * first.grid[0] * first.grid[1] / first.depth), 1)})"]
    if run and not rates and kind != "rates":
        return []
    own: Any = SCHEDULES.build(first.schedule) if first.schedule else None
    blocks = getattr(own, "at", None) or sorted({first.depth // 4, first.depth // 2, 3 * first.depth // 4})
    return [f"keep(rate={rate:g}, at={list(blocks)})" for rate in rates or (RATES if kind == "rates" else (0.5,))]


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more; got {value}")


def _check_files(kind: Kind, path: Path, table: Path | None) -> None:
    """Refuse what cannot be written before anything is computed."""
    formats = animation.FORMATS if kind == "layers" else sheet.FORMATS
    if path.suffix.lower() not in formats:
        hint = "; layers is an animation, tokens a picture of all stages" if path.suffix.lower() in sheet.FORMATS else ""
        hint = "; animations are drawn by layers" if path.suffix.lower() in animation.FORMATS and kind != "layers" else hint
        raise ValueError(f"--out '{path}': {kind} is written as {', '.join(formats)}{hint}")
    if path.suffix.lower() == ".mp4":
        animation.require_ffmpeg()
    if table is not None and table.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--table '{table}': tables are written as .csv or .parquet")
    if table is not None and table.suffix == ".parquet":
        require_parquet()


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

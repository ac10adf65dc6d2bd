"""``vitrim draw``: pictures of token reduction for print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vitrim.analysis import animation, sheet
from vitrim.analysis.draw import COLOURS
from vitrim.cli.draw_depth import draw_depth, is_trace
from vitrim.cli.draw_images import Order, draw_images
from vitrim.cli.options import RATES, Files, Flag, Methods, Rates, Words, pick_device, split_methods
from vitrim.cli.sources import Source, check, of_name, of_runs
from vitrim.core.registry import SCHEDULES
from vitrim.experiments.results import require_parquet, write_table

Kind = Literal["tokens", "soft", "depth", "grid", "rates", "layers"]

# What is drawn of a model by name when nothing is said; runs have a method of their own.
METHODS = {"tokens": ["atc"], "soft": ["patchmerger"], "depth": ["topk", "tome"], "grid": ["all"], "rates": ["atc"],
           "layers": ["topk", "atc"]}  # fmt: skip
IMAGES = {"tokens": 3, "depth": 512}


def draw(
    kind: Kind,
    *runs: Path,
    model: str | None = None,
    weights: Path | None = None,
    random_weights: Flag = False,
    methods: Methods | None = None,
    schedule: Words | None = None,
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
    traces = [place for place in places if is_trace(place)]
    if traces and kind != "depth":
        raise ValueError("a trace holds no images; it can be drawn as depth, other kinds need the run itself")
    if places:
        if model is not None:
            raise ValueError(f"'{places[0]}' is a run, which knows its model; leave out --model")
        sources = of_runs([place for place in places if place not in traces], data, split, transform, where)
    else:
        sources = [of_name(model or "fashion", weights, random_weights, data, split, transform, where)]
        wanted = wanted or split_methods(METHODS[kind])
    schedules = _schedules(kind, sources, bool(places), rates, schedule)
    check(wanted, schedules)
    order = Order(kind, wanted, schedules, image, count, stages, strongest, 72 * side, colours, title, seed)
    if kind == "depth":
        page, columns = draw_depth(
            traces, sources, wanted, schedules, files=image, images=count, measure=measure, batch_size=batch_size,
            workers=workers, colours=colours, side=order.side, title=title, seed=seed,
        )  # fmt: skip
    else:
        page, columns = draw_images(order, sources)
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

"""``vitrim bench``: methods against the dense model on one machine, one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vitrim.cli.options import RATES, Flag, Integers, Rates, Words, pick_device, split_methods
from vitrim.core.backbone import find_backbone
from vitrim.core.registry import METHODS, SCHEDULES
from vitrim.core.schedule import Course
from vitrim.data.models import LoadedModel, load_model
from vitrim.measure.report import cells_of
from vitrim.measure.sweep import Row, Run, check_runs, plot, rows_to_csv, rows_to_json, rows_to_markdown, sweep_rows


def bench(
    *,
    model: str = "fashion",
    weights: Path | None = None,
    random_weights: Flag = False,
    images: str | None = None,
    methods: Words | None = None,
    rates: Rates | None = None,
    schedule: Words | None = None,
    at: Integers | None = None,
    batch_size: int = 64,
    limit: int = 500,
    rounds: int = 5,
    seed: int = 0,
    threads: int | None = None,
    device: str = "auto",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    compile: bool = False,
    strict: Flag = False,
    out: Path = Path("vitrim-bench"),
) -> int:
    """Measure accuracy, FLOPs and time of methods against the dense model.

    Prints one line per method and schedule as soon as it is measured, and writes results.csv, results.json, results.md
    and plot.png. GFLOPs are 1e9 multiply-adds per image, as in the papers. Speed-ups are measured in turns with the dense
    model; "realised" is the share of the FLOP gain that the clock shows.

    Args:
        model: fashion (comes with vitrim), timm/NAME, or vit with --weights.
        weights: safetensors file with the weights of the model.
        random_weights: do without weights: times and FLOPs are right, predictions mean nothing.
        images: folder of images, labelled when it has a sub-folder per class; "noise" for times alone.
        methods: names or full specs, such as tome "atc(linkage=complete)", or all.
        rates: shares of the patches that stay, one schedule each (0.9 0.7 0.5 0.25 when left out).
        schedule: full schedule specs instead of rates, such as "r(n=13)".
        at: blocks that reduce; a quarter, half and three quarters of the depth when left out (3 6 9 of 12).
        batch_size: images per batch.
        limit: images to predict; 0 takes all.
        rounds: readings of the clock for each line.
        seed: for methods with randomness and untrained parts.
        threads: CPU threads; PyTorch's choice when left out.
        device: cpu, cuda, or auto.
        dtype: number format of the model.
        compile: run models through torch.compile.
        strict: exit with 1 when image files had to be skipped.
        out: folder for the results.
    """
    for name, values in {"methods": methods, "rates": rates, "schedule": schedule, "at": at}.items():
        if values == []:
            raise ValueError(f"--{name} needs a value; leave it out for the default")
    _at_least_one(batch_size=batch_size, rounds=rounds, threads=1 if threads is None else threads)
    if limit < 0:
        raise ValueError(f"--limit is a number of images, or 0 for all of them; got {limit}")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_model(model, weights, device=pick_device(device), random_weights=random_weights)
    loaded.model.to(getattr(torch, dtype))
    wanted = split_methods(["all"] if methods is None else methods)
    runs = check_runs(loaded.model, [(m, s) for m in wanted for s in _schedules(loaded, rates, schedule, at)])
    runs, repeated = distinct(loaded, runs)
    data, labels, skipped = load_images(loaded, images, limit, batch_size)
    out.mkdir(parents=True, exist_ok=True)
    count = min(batch_size, len(data))
    where = f"{next(loaded.model.parameters()).device}, {dtype}, threads: {torch.get_num_threads()}"
    print(f"{loaded.name}: {len(data)} images, batches of {count}, {where}")
    if loaded.random or images == "noise":
        print(f"{'random weights' if loaded.random else 'noise for images'}: times and FLOPs are right, predictions mean nothing")
    for method, text in repeated:
        print(f"left out: {method} under {text} keeps the same tokens as under the schedule before")
    table = Table([run[0] for run in runs], [run[1] for run in runs])
    facts = {"model": loaded.name, "device": where, "batch_size": count, "images": len(data), "rounds": rounds, "seed": seed}
    facts |= {"compile": compile, "random_weights": loaded.random, "noise": images == "noise"}
    options: dict[str, Any] = {"batch_size": batch_size, "rounds": rounds, "seed": seed, "compile": compile}
    rows: list[Row] = []
    try:
        for row in sweep_rows(loaded.model, data, labels, runs, learned=loaded.reduction, progress=table.progress, **options):
            table.print(row)
            rows.append(row)
            write(rows, out, facts)
    finally:
        table.clear()
        if rows:
            draw(rows, out, f"{loaded.name}, {where}")
            print(f"\nwritten: {', '.join(str(out / n) for n in ('results.csv', 'results.json', 'results.md', 'plot.png'))}")
    return 1 if strict and skipped else report_failures(rows)


def distinct(loaded: LoadedModel, runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs that differ, and those that would only repeat another one (``fixed`` has one radius per block)."""
    backbone = find_backbone(loaded.model)
    grid, depth = backbone.layout(loaded.model).grid, len(backbone.blocks(loaded.model))
    patches = grid[0] * grid[1] if grid else 196
    seen: set[str] = set()
    first, repeated = [], []
    for method, schedule in runs:
        plan = METHODS.build(method).plan(Course(SCHEDULES.build(schedule), patches, depth))
        (repeated if f"{method} {plan}" in seen else first).append((method, schedule))
        seen.add(f"{method} {plan}")
    return first, repeated


def load_images(loaded: LoadedModel, source: str | None, limit: int, batch_size: int) -> tuple[Any, Tensor | None, int]:
    """Images for the model, their labels where there are any, and how many files had to be skipped.

    Raises:
        ValueError: when the model needs images and none are named.
    """
    if source is None and loaded.input_size[0] == 1 and loaded.classes is not None:
        from vitrim.data.embedded import fashion

        found = fashion(limit or None)
        if found.classes == loaded.classes:
            return found.images, found.labels, 0
    if source is None:
        raise ValueError(
            f"no images come with model '{loaded.name}'; give --images DIR (a sub-folder per class makes labels), or "
            "--images noise for times alone"
        )
    if source == "noise":
        return torch.randn(batch_size, *loaded.input_size, generator=torch.Generator().manual_seed(0)), None, 0
    from vitrim.data.images import load_folder

    folder = load_folder(source, loaded.transform, limit or None, classes=loaded.class_index or loaded.classes)
    for line in folder.report():
        print(line, file=sys.stderr)
    return folder.images, folder.labels, len(folder.skipped)


def write(rows: Sequence[Row], out: Path, facts: dict[str, Any]) -> None:
    """Write the tables; called after every row, so that nothing measured is lost."""
    (out / "results.csv").write_text(rows_to_csv(rows), encoding="utf-8")
    (out / "results.json").write_text(rows_to_json(rows, **facts), encoding="utf-8")
    (out / "results.md").write_text(rows_to_markdown(rows), encoding="utf-8")


def draw(rows: Sequence[Row], out: Path, title: str) -> None:
    """Write the plot."""
    plot(rows, out / "plot.png", title)


def report_failures(rows: Sequence[Row]) -> int:
    """Exit code: 1 when no method at all could be measured."""
    failed = [row for row in rows if row.failed]
    return 1 if failed and len(failed) == len(rows) - 1 else 0


class Table:
    """Prints rows as they come; a line of progress on a terminal, none elsewhere."""

    columns = ("method", "schedule", "tokens", "GFLOPs", "FLOP speed-up", "img/s", "speed-up", "realised", "top-1 %", "agree %")

    def __init__(self, methods: Sequence[str], schedules: Sequence[str]) -> None:
        self._widths = {column: max(len(column), 7) for column in self.columns}
        self._widths["method"] = max(map(len, [*methods, "method"]))
        self._widths["schedule"] = max(map(len, [*schedules, "schedule"]))
        self._widths["tokens"] = 14
        self._live = sys.stderr.isatty()
        print(self._line({column: column for column in self.columns}), flush=True)

    def print(self, row: Row) -> None:
        """Print one row."""
        cells = cells_of(row)
        self.clear()
        if row.failed:
            cells = {column: cells[column] for column in ("method", "schedule")}
            print(f"{self._line(cells).rstrip()}  {row.note}", flush=True)
        else:
            print(f"{self._line(cells)}  {row.note}".rstrip(), flush=True)

    def progress(self, text: str) -> None:
        """Show what is being measured."""
        if self._live:
            print(f"\r\033[K... {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the progress line off the screen."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _line(self, cells: dict[str, str]) -> str:
        left = ("method", "schedule", "tokens")
        parts = []
        for column in self.columns:
            text, width = cells.get(column, ""), self._widths[column]
            parts.append(text.ljust(width) if column in left else text.rjust(width))
        return "  ".join(parts)


def _schedules(loaded: LoadedModel, rates: list[float] | None, schedules: list[str] | None, at: list[int] | None) -> list[str]:
    if schedules:
        if rates or at:
            raise ValueError("--schedule says it all; leave out --rates and --at")
        return schedules
    depth = len(find_backbone(loaded.model).blocks(loaded.model))
    blocks = at or sorted({depth // 4, depth // 2, 3 * depth // 4})
    # The default locations are left out, for a narrower table.
    tail = "" if blocks == [3, 6, 9] else f", at={blocks}"
    return [f"keep(rate={rate:g}{tail})" for rate in rates or RATES]


def _at_least_one(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more; got {value}")

"""``vitrim demo``: every method on real images, offline, with a report."""

from __future__ import annotations

import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from vitrim.analysis.draw import contact_sheet, stage_sheet
from vitrim.cli.bench import Table, report_failures, write
from vitrim.cli.options import Words, split_methods
from vitrim.cli.page import in_order, page
from vitrim.core.attach import reduced
from vitrim.core.trace import Trace
from vitrim.data.embedded import Labelled, fashion
from vitrim.data.models import LoadedModel, load_model
from vitrim.measure.report import environment, plot
from vitrim.measure.sweep import Row, check_runs, sweep_rows

SCHEDULE = "keep(rate=0.5, at=[3, 6, 9])"
IMAGES, FEWEST = 500, 100
BATCH, ROUNDS = 32, 5
SECONDS = 120
SHOWN = (5, 8, 7, 3, 1)  # sandal, bag, sneaker, dress, trouser: shapes that are told apart at a glance


def demo(
    *,
    out: Path = Path("vitrim-demo"),
    methods: Words | None = None,
    limit: int | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> int:
    """Run every method on the model and the images that come with vitrim, and write a report.

    Keeps half of the tokens at blocks 3, 6 and 9; prints accuracy, GFLOPs and speed against the dense model; writes
    report.html, results.csv, results.json, results.md and pictures. Takes one to three minutes on two CPU cores.

    Args:
        out: folder for the report.
        methods: names or full specs, such as tome "atc(linkage=complete)"; all when left out.
        limit: images to predict; 500, or fewer on a slow machine, when left out.
        threads: CPU threads; PyTorch's choice when left out.
        seed: for methods with randomness and untrained parts.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is a number of images, 1 or more; got {limit}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be 1 or more; got {threads}")
        torch.set_num_threads(threads)
    started = perf_counter()
    loaded = load_model("fashion")
    names = split_methods(["all"] if methods is None else methods)
    # The pattern has a schedule of its own by default; here it keeps as many tokens as the others.
    names = ["fixed(contiguous=False)" if name == "fixed" else name for name in names]
    runs = check_runs(loaded.model, [(m, SCHEDULE) for m in names])
    data = fashion(limit or _affordable(loaded, len(runs)))
    out.mkdir(parents=True, exist_ok=True)
    print(f"{len(data)} images of Fashion-MNIST, the same number of each class; {len(runs)} methods at {SCHEDULE}\n")
    table = Table([run[0] for run in runs], [SCHEDULE])
    options: dict[str, Any] = {"batch_size": BATCH, "rounds": ROUNDS, "seed": seed, "extras": False}
    facts = {"model": loaded.name, "images": len(data), "batch_size": min(BATCH, len(data)), "rounds": ROUNDS, "seed": seed}
    rows: list[Row] = []
    try:
        for row in sweep_rows(
            loaded.model, data.images, data.labels, runs, learned=loaded.reduction, progress=table.progress, **options
        ):
            table.print(row)
            rows.append(row)
            write(rows, out, facts)
    finally:
        table.clear()
    pictures = _pictures(loaded, data, rows, seed, out)
    report = out / "report.html"
    report.write_text(page(rows, SCHEDULE, len(data), environment("cpu"), pictures), encoding="utf-8")
    _say_untrained(rows)
    print(f"\n{perf_counter() - started:.0f} s. Report: {report.resolve()}")
    print(f"Also in {out}: results.csv, results.json, results.md, {', '.join(p.name for p in pictures.values())}")
    return report_failures(rows)


def _affordable(loaded: LoadedModel, methods: int) -> int:
    """Images that fit the time on this machine: ``IMAGES``, or fewer where one batch already takes long."""
    batch = torch.zeros(BATCH, *loaded.input_size)
    readings: list[float] = []
    with torch.no_grad():
        for _ in range(5):
            start = perf_counter()
            loaded.model(batch)
            readings.append(perf_counter() - start)
    # The best of a few: the first passes are slow, and another program may have been in the way.
    second = min(readings) / BATCH
    # Timing runs cost a fixed number of passes: the dense model and the method, each round, and the warm-up.
    timed = 2 * BATCH * (ROUNDS + 2)
    images = SECONDS / second / (methods + 1) - timed
    return int(min(max(images // 100 * 100, FEWEST), IMAGES))


def _pictures(loaded: LoadedModel, data: Labelled, rows: list[Row], seed: int, out: Path) -> dict[str, Path]:
    """The plot and the contact sheets, methods in the order of the report."""
    good, untrained, failed = in_order(rows)
    paths = {"plot": out / "plot.svg", "methods": out / "methods.png", "stages": out / "stages.png"}
    if len(rows) == len(failed):
        return {}
    plot(rows, paths["plot"])
    plot(rows, out / "plot.png")
    indices = _examples(data.labels)
    images, pixels = data.images[indices], [data.pixels[i] for i in indices]
    traces = []
    for row in good + untrained:
        trace = _trace(loaded, images, row.method, seed)
        if len(trace):
            traces.append((f"{row.method} (untrained)" if row in untrained else row.method, trace))
    if not traces:
        return {"plot": paths["plot"]}
    model: Any = loaded.model
    height, width = model.patch_embed.grid_size
    contact_sheet(pixels, traces, (height, width), size=168).save(paths["methods"])
    stage_sheet(pixels[0], traces, (height, width), size=168).save(paths["stages"])
    return paths


def _examples(labels: Tensor) -> list[int]:
    """The first image of each of a few classes."""
    found = [int((labels == label).nonzero()[0]) for label in SHOWN if bool((labels == label).any())]
    return found or [0]


def _trace(loaded: LoadedModel, images: Tensor, method: str, seed: int) -> Trace:
    with warnings.catch_warnings(), torch.random.fork_rng(), torch.no_grad():
        warnings.simplefilter("ignore")  # the table has said it
        torch.manual_seed(seed)
        with reduced(loaded.model, method, SCHEDULE, seed=seed) as reduction:
            reduction.load_learned(loaded.reduction)
            loaded.model(images)
            return reduction.trace


def _say_untrained(rows: list[Row]) -> None:
    names = [row.method for row in in_order(rows)[1]]
    if names:
        print(
            f"\nuntrained: {', '.join(names)}. Their own parameters are random, so their accuracy says nothing about the method; "
            "GFLOPs and speed are right."
        )

"""``vitrim bench throughput``: whole models over batch sizes, by the protocol of ToMe and ATC."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from torch import Tensor

from vitrim.cli.bench import distinct
from vitrim.cli.options import RATES, Integers, Rates, Words, pick_device, split_methods
from vitrim.cli.published import BATCH_SIZES, Dtype, check, conditions, measure
from vitrim.core.attach import reduce
from vitrim.core.backbone import find_backbone
from vitrim.core.registry import SCHEDULES
from vitrim.data.models import LoadedModel, load_model
from vitrim.measure.cells import Bench, Cell, Entry
from vitrim.measure.curves import plot_curves
from vitrim.measure.ledger import Ledger, Row
from vitrim.measure.protocol import Protocol
from vitrim.measure.sweep import check_runs

METHODS = ("tome", "kmedoids", "dpcknn", "atc", "atc(linkage=single)", "atc(linkage=complete)")


def throughput(
    *,
    model: str = "timm/deit_small_patch16_224",
    weights: Path | None = None,
    random_weights: Annotated[bool, Parameter(negative="--pretrained")] = True,
    methods: Words | None = None,
    rates: Rates | None = None,
    at: Integers | None = None,
    batch_sizes: Integers | None = None,
    runs: int = 40,
    throw_out: float = 0.25,
    seconds: float = 2.0,
    patience: float = 60.0,
    threads: int | None = None,
    device: str = "auto",
    dtype: Dtype = "float32",
    out: Path = Path("vitrim-bench"),
) -> int:
    """Measure the throughput of whole models over batch sizes and keep rates, by the published protocol.

    Every model runs 40 times in a row on one batch of uniform noise, the first quarter of the runs is thrown out, and
    images are divided by time. The dense model and all methods at one rate and batch size take turns; ratios are against
    the dense model in the same turn, quartiles are over turns. Writes throughput.csv and .json after every batch size,
    and throughput.png and speedup.png; what these files hold already is not measured again.

    Args:
        model: timm/NAME, fashion (comes with vitrim), or vit with --weights.
        weights: safetensors file with the weights of the model.
        random_weights: times do not depend on weights, ats aside, so that none are needed.
        methods: names or full specs, or all; tome, kmedoids, dpcknn and atc with each linkage when left out.
        rates: shares of the patches that stay (0.9 0.7 0.5 0.25 when left out).
        at: blocks that reduce; a quarter, half and three quarters of the depth when left out (3 6 9 of 12).
        batch_sizes: images per batch; 1 2 4 ... 1024 when left out.
        runs: runs of a series.
        throw_out: share of the runs that is not counted.
        seconds: most seconds of a series, which is cut to fewer runs, at least 3 counted ones; 0 cuts nothing.
        patience: leave out a series that would take more seconds than this.
        threads: CPU threads; PyTorch's choice when left out.
        device: cpu, cuda, or auto.
        dtype: type of the input; float16 and bfloat16 run under autocast, as published.
        out: folder for the results.
    """
    check(methods=methods, rates=rates, at=at and [block + 1 for block in at], batch_sizes=batch_sizes)
    check(threads=None if threads is None else [threads])
    protocol = Protocol(runs, throw_out, seconds)
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_model(model, weights, device=pick_device(device), random_weights=random_weights and weights is None)
    wanted = check_runs(
        loaded.model,
        [(m, s) for s in schedules(loaded, rates or RATES, at) for m in split_methods(methods or METHODS)],
    )
    wanted, repeated = distinct(loaded, wanted)
    for method, schedule in repeated:
        print(f"left out: {method} under {schedule} keeps the same tokens as under the schedule before")
    where = next(loaded.model.parameters()).device
    facts = conditions(where, dtype, protocol)
    cells = list(model_cells(loaded, wanted, sorted(set(batch_sizes or BATCH_SIZES)), getattr(torch, dtype), facts))
    bench = Bench(Ledger(out, "throughput"), protocol, where, getattr(torch, dtype), patience)
    title = f"{loaded.name}, {facts['device']}, {dtype}, threads: {facts['threads']}"
    print(title)

    def draw(rows: list[Row]) -> list[Path | None]:
        rows = _under_every_rate(rows)
        options: dict[str, Any] = {"line": "method", "across": "reduction_ratio", "title": title}
        ratio: dict[str, Any] = {"value": "ratio", "label": "times faster than dense"}
        return [
            plot_curves(rows, out / "throughput.png", **options),
            plot_curves(rows, out / "speedup.png", **options, **ratio),
        ]

    heads = {"batch_size": "batch", "reduction_ratio": "keep", "method": "method"}
    return measure(bench, cells, heads, draw)


def schedules(loaded: LoadedModel, rates: Rates | tuple[float, ...], at: list[int] | None) -> list[str]:
    """One schedule per rate."""
    depth = len(find_backbone(loaded.model).blocks(loaded.model))
    blocks = at or sorted({depth // 4, depth // 2, 3 * depth // 4})
    return [f"keep(rate={rate:g}, at={blocks})" for rate in dict.fromkeys(rates)]


def model_cells(
    loaded: LoadedModel, runs: list[tuple[str, str]], batch_sizes: list[int], dtype: torch.dtype, facts: dict[str, Any]
) -> Iterator[Cell]:
    """For each schedule and batch size, the dense model and all methods."""
    where = next(loaded.model.parameters()).device

    def images(count: int) -> Tensor:
        noise = torch.rand(count, *loaded.input_size, generator=torch.Generator().manual_seed(0))
        return noise.to(where, dtype)

    question = {"model": loaded.name, "input_size": loaded.input_size[-1]}
    dense = Entry("dense", {**question, "method": "dense", "schedule": "", "reduction_ratio": 1.0, **facts}, loaded.model)
    for schedule in dict.fromkeys(s for _, s in runs):
        rate: Any = SCHEDULES.build(schedule)
        about = {"schedule": schedule, "reduction_ratio": rate.rate, **facts}
        entries = [Entry(m, {**question, "method": m, **about}, _reduced(loaded, m, s)) for m, s in runs if s == schedule]
        for size in batch_sizes:
            yield Cell(size, [dense, *entries], images)


def _reduced(loaded: LoadedModel, method: str, schedule: str) -> Any:
    """A reduced copy that shares the weights."""
    shared = [*loaded.model.parameters(), *loaded.model.buffers()]
    model: Any = copy.deepcopy(loaded.model, {id(t): t for t in shared})
    with warnings.catch_warnings():
        # That learned parts are untrained says nothing about time.
        warnings.simplefilter("ignore")
        reduction = reduce(model, method, schedule)
    reduction.to(next(loaded.model.parameters()).device)
    return model.eval()


def _under_every_rate(rows: list[Row]) -> list[Row]:
    """The rows, with those of the dense model repeated in the panel of every rate."""
    rates = {row["reduction_ratio"] for row in rows if row["method"] != "dense"}
    dense = [{**row, "reduction_ratio": rate} for rate in rates for row in rows if row["method"] == "dense"]
    return dense + [row for row in rows if row["method"] != "dense"]

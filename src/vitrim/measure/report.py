"""Rows of a sweep as CSV, JSON, Markdown and a plot."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vitrim.core.registry import parse_spec

if TYPE_CHECKING:
    from vitrim.measure.sweep import Row

# Okabe and Ito's colours, told apart with every common form of colour blindness, without the yellow that white swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "d", "8")


def rows_to_csv(rows: Sequence[Row]) -> str:
    """One line per row, numbers in full; tokens joined by spaces, empty cells where there is no number."""
    names = list(_cells(rows[0])) if rows else []
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = _cells(row)
        writer.writerow({**cells, "tokens": " ".join(map(str, row.tokens))})
    return out.getvalue()


def rows_to_json(rows: Sequence[Row], **facts: Any) -> str:
    """The rows, with what their times depend on: versions, processor, threads.

    Args:
        rows: the rows.
        facts: more to put on record, such as the name of the model and the device.
    """
    return json.dumps({"environment": environment(), **facts, "rows": [_cells(row) for row in rows]}, indent=2) + "\n"


def environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """Versions and machine, for the record."""
    import timm

    import vitrim

    on_gpu = torch.cuda.is_available() and (device is None or torch.device(device).type == "cuda")
    return {
        "vitrim": vitrim.__version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
    }


def rows_to_markdown(rows: Sequence[Row]) -> str:
    """A table for people; columns without any number are left out. GFLOPs are 1e9 multiply-adds, as in the papers."""
    table = [cells_of(row) for row in rows]
    heads = [head for head in COLUMNS if any(cells[head] for cells in table)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(":--" if h in _LEFT else "--:" for h in heads) + "|"]
    lines += ["| " + " | ".join(cells[h].replace("|", "\\|") for h in heads) + " |" for cells in table]
    return "\n".join(lines) + "\n"


COLUMNS = (
    "method", "schedule", "tokens", "GFLOPs", "FLOP speed-up", "img/s", "speed-up", "realised", "latency ms", "peak MB",
    "params M", "top-1 %", "agree %", "note",
)  # fmt: skip
_LEFT = ("method", "schedule", "tokens", "note")


def cells_of(row: Row) -> dict[str, str]:
    """The row as text by column, empty where there is no number."""
    return {
        "method": row.method,
        "schedule": row.schedule,
        "tokens": _tokens(row.tokens),
        "GFLOPs": _number(row.gflops, digits(row.gflops)),
        "FLOP speed-up": _number(row.flop_speedup, 2, "x"),
        "img/s": _number(row.images_per_second, 0 if row.images_per_second >= 100 else 1),
        "speed-up": _number(row.speedup, 2, "x"),
        "realised": _number(row.realised, 2),
        "latency ms": _number(row.latency_ms, 1),
        "peak MB": _number(row.peak_mb, 1),
        "params M": "" if row.failed else _number(row.params / 1e6, 2),
        "top-1 %": _number(row.top1, 1, scale=100),
        "agree %": _number(row.agreement, 1, scale=100),
        "note": row.note,
    }


def digits(gflops: float) -> int:
    """Decimals that show three figures of a number of GFLOPs, at least two decimals."""
    return 2 if not gflops or gflops != gflops or gflops >= 1 else min(6, 2 - math.floor(math.log10(gflops)))


def plot(rows: Sequence[Row], path: str | Path, title: str = "") -> Path:
    """Draw accuracy (agreement, without labels) against measured speed-up: a line per method, a point per schedule.

    Args:
        rows: rows of one sweep; those without numbers are left out.
        path: file to write; its ending says the format.
        title: text over the plot.

    Raises:
        ValueError: when no row has numbers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if not row.failed]
    if not shown:
        raise ValueError("no row to plot: no method could be measured")
    measure = "top1" if any(row.top1 is not None for row in shown) else "agreement"
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines: dict[str, list[Row]] = {}
    for row in shown:
        lines.setdefault(row.method, []).append(row)
    dense = lines.pop("dense", [])
    # Untrained methods last, so that those whose numbers mean something get colours of their own.
    for i, (untrained, method) in enumerate(sorted((any("untrained" in p.note for p in lines[m]), m) for m in lines)):
        points = sorted(lines[method], key=lambda r: r.flop_speedup)
        axes.plot(
            [p.speedup for p in points],
            [100 * getattr(p, measure) for p in points],
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            linestyle=":" if untrained else ("-", "--")[i // len(_COLOURS) % 2],
            linewidth=1.1 if untrained else 1.8,
            alpha=0.75 if untrained else 1.0,
            markersize=8,
            markeredgecolor="white",
            markeredgewidth=0.7,
            label=f"{_name(method)} (untrained)" if untrained else _name(method),
        )
    for row in dense:
        level = 100 * getattr(row, measure)
        axes.axhline(level, color="0.55", linewidth=1, zorder=0)
        axes.plot([1.0], [level], marker="*", markersize=14, color="0.25", linestyle="", label="dense", zorder=5)
    axes.axvline(1.0, color="0.8", linewidth=1, zorder=0)
    axes.set_xlabel("measured speed-up over the dense model (higher is faster)")
    axes.set_ylabel("top-1 accuracy (%)" if measure == "top1" else "same prediction as the dense model (%)")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, loc="left")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
    return Path(path)


def _name(method: str) -> str:
    name, _, settings = parse_spec(method)
    return f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else name


def _tokens(tokens: tuple[int, ...]) -> str:
    return " ".join(map(str, tokens)) if len(tokens) <= 4 else f"{tokens[0]} {tokens[1]} .. {tokens[-1]}"


def _number(value: float | None, decimals: int, unit: str = "", scale: float = 1.0) -> str:
    return "" if value is None or math.isnan(value) else f"{value * scale:.{decimals}f}{unit}"


def _cells(row: Row) -> dict[str, Any]:
    """The row by field; numbers that there are not become None, since JSON knows no NaN."""
    cells = asdict(row)
    for f in fields(row):
        if isinstance(cells[f.name], float) and math.isnan(cells[f.name]):
            cells[f.name] = None
    return {**cells, "tokens": list(row.tokens)}

"""What the two published protocols share on the command line: settings, the printed table, files."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

import vitrim
from vitrim.measure.cells import Bench, Cell
from vitrim.measure.ledger import Row
from vitrim.measure.protocol import Protocol

BATCH_SIZES = tuple(2**i for i in range(11))
Dtype = Literal["float32", "float16", "bfloat16"]


def check(**lists: Sequence[object] | None) -> None:
    """Refuse options without a value, and numbers that nothing can be measured at.

    Raises:
        ValueError: naming the option.
    """
    for name, values in lists.items():
        option = f"--{name.replace('_', '-')}"
        if values is not None and not values:
            raise ValueError(f"{option} needs a value; leave it out for the default")
        for value in values or ():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{option} must be 1 or more; got {value}")
            if isinstance(value, float) and not 0 < value <= 1:
                raise ValueError(f"{option} is a share of the tokens, in (0, 1]; got {value:g}")


def conditions(device: torch.device, dtype: str, protocol: Protocol) -> dict[str, Any]:
    """What times depend on besides the question itself; rows that differ here are rows of their own."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "runs": protocol.runs,
        "throw_out": protocol.throw_out,
        "seconds": protocol.seconds,
        "torch": str(torch.__version__),
        "vitrim": vitrim.__version__,
    }


def processor() -> str:
    """Name of the CPU."""
    try:
        names = [s.split(":", 1)[1] for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def measure(
    bench: Bench, cells: Sequence[Cell], heads: dict[str, str], draw: Callable[[list[Row]], Iterable[Path | None]]
) -> int:
    """Measure, print rows as they come, and draw what there is at the end, Ctrl-C included.

    Args:
        bench: with the ledger to write to.
        cells: what to measure.
        heads: heading by column of a row, for the columns to print; the names of things come left, numbers right.
        draw: makes the pictures of the rows asked for, those of earlier runs included.

    Returns:
        The exit code: 1 when there are no numbers at all.
    """
    questions = [cell.question(entry) for cell in cells for entry in cell.entries]
    # In a cell of its own each, the reference is asked for more than once.
    asked = list({repr(q): q for q in questions}.values())
    there = sum(bench.ledger.measured(q) for q in asked)
    if there:
        print(f"{there} of {len(asked)} rows are in {bench.ledger.json} already")
    widths = {head: max([len(head), *(len(str(q.get(column, ""))) for q in asked)]) for column, head in heads.items()}
    live = sys.stderr.isatty()

    def say(text: str) -> None:
        if live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    bench.progress = lambda text: say(f"... {text}")
    print(_line({head: head for head in [*heads.values(), *_SPEED]}, widths), flush=True)
    told: set[str] = set()
    try:
        for row in bench.run(cells):
            say("")
            cells_of = {head: str(row[column]) for column, head in heads.items()}
            # What is not installed is told once, not in every cell.
            if (reason := f"{list(cells_of.values())[-1]} {row['note']}") not in told or not row["note"]:
                print(_line(cells_of | _speeds(row), widths), flush=True)
            told.add(reason)
    finally:
        say("")
        rows = [row for q in asked if (row := bench.ledger.find(q))]
        pictures = [path for path in draw(rows) if path]
        if rows:
            files = [bench.ledger.csv, bench.ledger.json, *pictures]
            print(f"\nwritten: {', '.join(map(str, files))}")
    return 0 if any(row["throughput"] is not None for row in rows) else 1


_SPEED = {"img/s": 9, "quartiles": 17, "ratio": 7, "of quartiles": 13}


def _speeds(row: Row) -> dict[str, str]:
    if row["throughput"] is None:
        return {"note": row["note"]}
    cells = {"img/s": _number(row["median"]), "quartiles": f"{_number(row['low'])} - {_number(row['high'])}"}
    if row["ratio"] is not None:
        cells |= {"ratio": f"{row['ratio']:.2f}x", "of quartiles": f"{row['ratio_low']:.2f} - {row['ratio_high']:.2f}"}
    return cells


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: dict[str, str], widths: dict[str, int]) -> str:
    parts = [cells.get(head, "").ljust(width) for head, width in widths.items()]
    if "note" in cells:
        parts.append(cells["note"])
    else:
        parts += [cells.get(head, "").rjust(width) for head, width in _SPEED.items()]
    return "  ".join(parts).rstrip()

"""``vitrim runs``: what has been trained."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vitrim.cli.options import Flag
from vitrim.experiments.rows import chosen_columns, columns_of, in_order, to_csv
from vitrim.experiments.rows import where as filter_rows
from vitrim.experiments.runs import Row, find_runs

Words = Annotated[list[str], Parameter(consume_multiple=True, negative="", allow_leading_hyphen=True)]


def runs(
    place: Path = Path(),
    /,
    *,
    where: str | None = None,
    columns: Words | None = None,
    sort: Words | None = None,
    csv: Flag = False,
) -> int:
    """List the runs below a folder: options, metrics, state, GFLOPs, seconds.

    Columns are run, state, the metrics of the last evaluation (top1, ...) and of the best (best_top1, ...), gflops, parameters,
    trainable, images_per_second (in training), seconds, and every option of the recipes. A terminal gets those that differ
    between the runs.

    Args:
        place: folder to search.
        where: SQL over the columns, such as "method like 'evit%' and top1 > 80"; needs duckdb.
        columns: columns to show; all for every one.
        sort: columns to sort by, with - before the name for the largest first.
        csv: print CSV, with every column unless --columns names some.
    """
    found = find_runs(place)
    rows = [run.row() for run in found]
    if not rows:
        print(f"no runs in {place}; a run is a folder with config.yaml, as vitrim train writes it", file=sys.stderr)
        return 1
    known = columns_of(rows)
    if where is not None:
        rows = filter_rows(rows, where)
    rows = in_order(rows, sort or [])
    keys = {key for run in found for key in run.recipe}
    shown = _columns(columns, known, known if csv else chosen_columns(rows, keys))
    if csv:
        print(to_csv(rows, shown), end="")
    else:
        print(_table(rows, shown))
        told = f" of {len(found)}" if where is not None else ""
        print(f"{len(rows)}{told} runs")
    return 0


def _columns(wanted: Sequence[str] | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    if not wanted:
        return list(default)
    names = [name for text in wanted for name in text.split(",") if name]
    if names == ["all"]:
        return list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"--columns {name}: no such column; there are: {', '.join(known)}")
    return names


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Aligned text; numbers to the right. Long texts are cut only where the terminal is too narrow for them."""
    cells = [[_text(row.get(name)) for name in columns] for row in rows]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in columns]
    room = shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else 10_000
    widths = [max([len(name), *(len(line[i]) for line in cells)]) for i, name in enumerate(columns)]
    while sum(widths) + 2 * len(widths) > room and max(widths) > 24:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for line in [list(columns), *cells]:
        cut = [text if len(text) <= width else f"{text[: width - 1]}…" for text, width in zip(line, widths, strict=True)]
        parts = [t.rjust(w) if n else t.ljust(w) for t, w, n in zip(cut, widths, numeric, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("\n", " ")

"""Speed against batch size, with error bars: one line for each thing compared, one panel for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vitrim.measure.ledger import Row
from vitrim.measure.report import _COLOURS, _MARKERS  # pyright: ignore[reportPrivateUsage] - one palette for all pictures

_WORDS = {"n_patches": "{} tokens", "reduction_ratio": "keep {}"}
_BARS = {"median": ("low", "high"), "ratio": ("ratio_low", "ratio_high")}


def plot_curves(
    rows: Sequence[Row],
    path: str | Path,
    *,
    line: str,
    across: str,
    down: str | None = None,
    value: Literal["median", "ratio"] = "median",
    label: str = "images / s",
    title: str = "",
) -> Path | None:
    """Draw medians with quartiles as error bars over the batch size, both axes logarithmic.

    Args:
        rows: rows of a ledger; those without numbers are left out.
        path: file to write; its ending says the format.
        line: column that tells lines apart.
        across: column that tells panels from left to right apart.
        down: column that tells panels from top to bottom apart; one row of panels when None.
        value: images per second, or times faster than the reference.
        label: of the vertical axis.
        title: text over the plot.

    Returns:
        The path, or None when there was nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [row for row in rows if row[value] is not None]
    if not shown:
        return None
    lines, columns = _values(shown, line), sorted(_values(shown, across))
    levels = _values(shown, down) if down else [None]
    figure = Figure(figsize=(3.2 * len(columns) + 2, 2.9 * len(levels) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(levels), len(columns), squeeze=False, sharex=True, sharey="row")
    for axes_row, level in zip(grid, levels, strict=True):
        for axes, column in zip(axes_row, columns, strict=True):
            for i, name in enumerate(lines):
                points = [r for r in shown if r[line] == name and r[across] == column and (not down or r[down] == level)]
                _draw(axes, points, value, str(name), i)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            # Plain numbers: a ratio of 0.8 is not 8 x 10^-1.
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            if value == "ratio":
                axes.axhline(1, color="0.7", linewidth=1, zorder=0)
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(_WORDS.get(across, "{}").format(column) + (f", {level}" if level else ""), fontsize="medium")
        axes_row[0].set_ylabel(label)
    for axes in grid[-1]:
        axes.set_xlabel("batch size")
    handles = {text: handle for axes in grid.flat for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    figure.savefig(path, dpi=130)
    return Path(path)


def _draw(axes: Any, rows: Sequence[Row], value: str, name: str, i: int) -> None:
    points = sorted(rows, key=lambda row: row["batch_size"])
    if not points:
        return
    low, high = _BARS[value]
    # A bar of no length instead of a negative one, which rounding could make.
    bars = [[max(0.0, p[value] - p[low]) for p in points], [max(0.0, p[high] - p[value]) for p in points]]
    axes.errorbar(
        [p["batch_size"] for p in points],
        [p[value] for p in points],
        yerr=bars,
        label=name,
        color=_COLOURS[i % len(_COLOURS)],
        marker=_MARKERS[i % len(_MARKERS)],
        linestyle=("-", "--")[i // len(_COLOURS) % 2],
        markersize=4.5,
        linewidth=1.3,
        capsize=2.5,
    )


def _values(rows: Sequence[Row], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))

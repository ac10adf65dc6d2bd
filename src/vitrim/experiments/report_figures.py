"""The figures of a report. One style: colour says the method or the schedule, the kind of line what else differs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitrim.experiments.report_data import Setting, Spread, Value

# Okabe and Ito's colours, told apart with every common form of colour blindness, without the yellow that white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "d", "8")
LINES = ("-", "--", ":", "-.")

Point = tuple[Setting, Value, Value]  # a setting, its cost, its score

NAMES = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "mAP": "mAP (%)",
    "CF1": "CF1 (%)",
    "OF1": "OF1 (%)",
    "loss": "loss",
}


def accuracy_against(settings: Sequence[Setting], metric: str, x: Callable[[Setting], Value | None], label: str) -> Figure | None:
    """A metric against a cost: a line for each method and variant, a point for each schedule, bars over the seeds.

    Args:
        settings: to show; those without finished runs are left out.
        metric: name of the metric.
        x: gives the cost.
        label: of the x axis.

    Returns:
        The figure, or None when no setting has both numbers.
    """
    points = [(s, at, score) for s in settings if (at := x(s)) is not None and (score := s.value(metric)) is not None]
    if not points:
        return None
    return _lines(points, label, NAMES.get(metric, metric), [(s, v) for s in settings if s.dense and (v := s.value(metric))])


def gradients_against(settings: Sequence[Setting], x: Callable[[Setting], Value | None], label: str) -> Figure | None:
    """The mean over the training of the largest gradient against a cost, as :func:`accuracy_against`."""
    points = [(s, at, size) for s in settings if (at := x(s)) is not None and (size := s.gradients[0]) is not None]
    if not points:
        return None
    dense = [(s, size) for s, _, size in points if s.dense]
    return _lines(points, label, "largest gradient, mean over the steps", dense, log=True)


def training_curves(settings: Sequence[Setting], kind: str, name: str, label: str) -> Figure | None:
    """A column of metrics.jsonl over the epochs: a panel for each method."""
    return _panels(settings, lambda s: s.curves.get((kind, name), ([], [], [])), "epoch", label)


def gradient_curves(settings: Sequence[Setting]) -> Figure | None:
    """The largest gradient over the steps: a panel for each method."""
    return _panels(settings, lambda s: s.gradients[2], "step", "largest gradient", log=True)


def to_svg(figure: Figure, salt: str) -> str:
    """The figure as SVG text with real letters; ``salt`` keeps its ids apart from those of other figures on a page."""
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def _lines(
    points: Sequence[Point], xlabel: str, ylabel: str, level: Sequence[tuple[Setting, Value]], log: bool = False
) -> Figure:
    """Points joined by method and variant, in order of their cost; ``level`` draws the dense model's lines across."""
    reduced = [point for point in points if not point[0].dense]
    methods = list(dict.fromkeys(s.method for s, _, _ in reduced))
    variants = _variants([s for s, _, _ in reduced])
    figure = _figure(9.6, 5.4)
    axes = figure.add_subplot()
    handles: list[Line2D] = []
    for i, method in enumerate(methods):
        for j, variant in enumerate(variants):
            line = [(at, y) for s, at, y in reduced if (s.method, s.variant) == (method, variant)]
            if line:
                style = _style(i, j)
                _bars(axes, sorted(line, key=lambda p: p[0].mean), style)
                handles.append(Line2D([], [], label=f"{method} {variant}".strip(), **style))
    star: dict[str, Any] = {"color": "0.25", "marker": "*", "markersize": 13, "linestyle": ""}
    for setting, at, y in points:
        if setting.dense:
            _bars(axes, [(at, y)], star)
            handles.append(Line2D([], [], label=setting.name, **star))
    for k, (_, y) in enumerate(level):
        axes.axhline(y.mean, color="0.6", linewidth=0.9, linestyle=LINES[k % len(LINES)], zorder=0)
    if log:
        axes.set_yscale("log")
        _plain_ticks(axes)
    _finish(axes, xlabel, ylabel)
    columns = 1 + len(handles) // 24
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, ncols=columns, handlelength=3.2)
    return figure


def _style(i: int, j: int) -> dict[str, Any]:
    """Of the i-th method in its j-th variant: colour and marker say the one, line and filling the other."""
    colour = COLOURS[i % len(COLOURS)]
    return {
        "color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[j % len(LINES)], "linewidth": 1.6,
        "markersize": 6.5, "markerfacecolor": colour if j % 2 == 0 else "white", "markeredgewidth": 1.3,
    }  # fmt: skip


def _bars(axes: Any, line: Sequence[tuple[Value, Value]], style: dict[str, Any]) -> None:
    axes.errorbar(
        [at.mean for at, _ in line], [y.mean for _, y in line], xerr=[at.std or 0.0 for at, _ in line],
        yerr=[y.std or 0.0 for _, y in line], capsize=2.5, elinewidth=0.9, **style,
    )  # fmt: skip


def _variants(settings: Sequence[Setting]) -> list[str]:
    """The variants, the plain one first."""
    return sorted({s.variant for s in settings}, key=lambda v: (v != "", v))


def _panels(
    settings: Sequence[Setting],
    read: Callable[[Setting], Spread],
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> Figure | None:
    curves = [(s, *found) for s in settings if (found := read(s))[0]]
    if not curves:
        return None
    methods = list(dict.fromkeys(s.method for s, *_ in curves))
    schedules = _by_cost([s for s, *_ in curves if s.schedule])
    variants = _variants([s for s, *_ in curves if not s.dense])
    columns = min(len(methods), 3)
    rows = math.ceil(len(methods) / columns)
    figure = _figure(max(3.4 * columns, 6.0) + 1.7, 2.5 * rows + 0.9)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for method, axes in zip(methods, grid.flat, strict=False):
        for setting, mean, low, high in curves:
            if setting.method != method:
                continue
            colour = _shade(schedules, setting.schedule)
            style = LINES[variants.index(setting.variant) % len(LINES)] if setting.variant in variants else "-"
            axes.plot([a for a, _ in mean], [b for _, b in mean], color=colour, linestyle=style, linewidth=1.3)
            if len(setting.runs) > 1:
                axes.fill_between(
                    [a for a, _ in mean], [b for _, b in low], [b for _, b in high], color=colour, alpha=0.15, linewidth=0
                )
        axes.set_title(method, loc="left", fontsize=10)
        if log:
            axes.set_yscale("log")
            _plain_ticks(axes)
        _finish(axes, "", "")
    for axes in list(grid.flat)[len(methods) :]:
        axes.remove()
    for column in grid.T:  # also above a panel that is not there
        column[sum(axes in figure.axes for axes in column) - 1].tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    handles = [Line2D([], [], color=_shade(schedules, s), linewidth=2, label=s) for s in schedules]
    if len(variants) > 1:
        handles += [
            Line2D([], [], color="0.35", linestyle=LINES[i % len(LINES)], label=v or "plain") for i, v in enumerate(variants)
        ]
    if handles:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, handlelength=2.8)
    return figure


def _by_cost(settings: Sequence[Setting]) -> list[str]:
    """The schedules, the one with most work first, so that neighbours in cost are neighbours in shade."""
    cost: dict[str, list[float]] = {}
    for setting in settings:
        value = setting.fact("gflops")
        cost.setdefault(setting.schedule, []).extend([value.mean] if value else [])
    return sorted(cost, key=lambda s: -(sum(cost[s]) / len(cost[s])) if cost[s] else 0.0)


def _shade(schedules: Sequence[str], schedule: str) -> Any:
    if schedule not in schedules:
        return "0.25"
    place = schedules.index(schedule) / max(len(schedules) - 1, 1)
    return colormaps["viridis"](0.88 * place)  # its bright end is hard to see on white


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain_ticks(axes: Any) -> None:
    """Numbers as people write them, also where the axis spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    narrow = high / low < 30
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)

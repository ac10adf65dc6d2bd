"""The figures of an analysis: similarity against accuracy, correlations, matrices of similarities, maps of token depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from vitrim.analysis.paint import heat
from vitrim.analysis.sheet import Key, Page, Panel, Row
from vitrim.experiments.analyze_correlations import ALL, holds
from vitrim.experiments.analyze_facts import RunFacts
from vitrim.experiments.analyze_pairs import By, Pair
from vitrim.experiments.analyze_runs import TracedRun
from vitrim.experiments.analyze_tables import FAMILIES, Rows
from vitrim.experiments.names import name_all
from vitrim.experiments.report_figures import COLOURS, MARKERS

# The measure of each family that stands for it in figures, and what all are called.
HEADLINE = {"features": "cka", "pruning": "adjusted_iou", "merging": "ami", "maps": "pcc"}
LABELS = {
    "cka": "CKA", "svcca": "SVCCA", "pwcca": "PWCCA", "pwcca_ba": "PWCCA, weights of B", "mean_cca": "mean CCA",
    "mean_sq_cca": "mean squared CCA", "procrustes": "Procrustes", "rsa": "RSA", "iou": "IoU", "ioa": "IoA",
    "dice": "Dice", "hamming": "Hamming distance", "adjusted_iou": "IoU against chance", "adjusted_ioa": "IoA against chance",
    "kappa": "Cohen's kappa",
    "homogeneity": "homogeneity", "completeness": "completeness", "v_measure": "V-measure", "nmi": "NMI", "ami": "AMI",
    "ari": "ARI", "purity": "purity", "kl12": "KL(B, A)", "kl21": "KL(A, B)", "js": "JS divergence",
    "pcc": "Pearson", "scc": "Spearman",
    "sim": "SIM", "emd": "EMD (distance)",
}  # fmt: skip
FAMILY = {
    "features": "features", "pruning": "kept patches", "merging": "merged patches", "maps": "maps of token depth",
}  # fmt: skip
_HEAT = "cividis"  # even in lightness, and told apart with every common form of colour blindness
_NUMBERED = 12  # runs: with more, numbers in a matrix cannot be read


def similarity_accuracy(tables: Mapping[str, Rows], correlations: Rows, by: By) -> Figure | None:
    """The leading measure of each family, block by block, against the difference in accuracy: a point for each pair."""
    panels: list[tuple[str, Any, Rows]] = []
    for family in FAMILIES:
        rows = [row for row in tables[family] if row["measure"] == HEADLINE[family] and row["difference"] is not None]
        blocks = sorted({row.get("block") for row in rows}, key=lambda block: -1 if block is None else block)
        panels += [(family, block, [row for row in rows if row.get("block") == block]) for block in _spread(blocks, 4)]
    if not panels or by == "dataset":
        return None
    lines = [family for family in FAMILIES if any(found == family for found, _, _ in panels)]
    width = max(sum(found == family for found, _, _ in panels) for family in lines)
    groups = list(dict.fromkeys(row["group"] for _, _, rows in panels for row in rows))
    figure = _figure(2.45 * width + (2.1 if 1 < len(groups) <= _GROUPS else 0.2), 2.25 * len(lines) + 0.5)
    grid: Any = figure.subplots(len(lines), width, squeeze=False, sharey=True)
    for axes in grid.flat:
        axes.set_visible(False)
    for line, family in enumerate(lines):
        own = [panel for panel in panels if panel[0] == family]
        for axes, (_, block, rows) in zip(grid[line], own, strict=False):
            axes.set_visible(True)
            _scatter(axes, rows, groups, by)
            axes.set_title(
                FAMILY[family] if block is None else f"{FAMILY[family]}, block {block}", loc="left", fontsize=9, pad=16
            )
            axes.set_xlabel(LABELS[HEADLINE[family]], fontsize=9)
            _coefficient(axes, correlations, family, block)
        # An axis without a neighbour at its left keeps its numbers.
        grid[line][0].tick_params(labelleft=True)
    what = "difference in accuracy" if by == "method" else "accuracy of A minus B"
    figure.supylabel(f"{what} (points)", fontsize=9.5)
    if 1 < len(groups) <= _GROUPS:
        handles = [Line2D([], [], linestyle="", markersize=5.5, label=name, **_mark(i)) for i, name in enumerate(groups)]
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5, handletextpad=0.2)
    return figure


_GROUPS = 24  # with more, neither colours nor a legend tell them apart


def correlation_figure(correlations: Rows) -> Figure | None:
    """Spearman's coefficient of every measure over all pairs, with its interval; filled where it holds after the correction."""
    rows = [row for row in correlations if row["group"] == ALL]
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    if not families:
        return None
    names = {family: list(dict.fromkeys(r["measure"] for r in rows if r["family"] == family)) for family in families}
    blocks = sorted({row["block"] for row in rows if row["block"] is not None})
    shown = _spread(blocks, 6)
    heights = [len(names[family]) for family in families]
    figure = _figure(7.6, 0.36 * sum(heights) + 0.5 * len(families) + 0.6)
    grid: Any = figure.subplots(len(families), 1, squeeze=False, sharex=True, height_ratios=[h + 0.6 for h in heights])[:, 0]
    for axes, family in zip(grid, families, strict=True):
        for place, measure in enumerate(names[family]):
            own = [r for r in rows if r["family"] == family and r["measure"] == measure and r["block"] in (None, *shown)]
            for i, row in enumerate(sorted(own, key=lambda r: -1 if r["block"] is None else r["block"])):
                y = place + (i - (len(own) - 1) / 2) * 0.8 / max(len(shown), 1)
                colour = _shade(shown, row["block"])
                if row["spearman_low"] is not None:
                    axes.plot([row["spearman_low"], row["spearman_high"]], [y, y], color=colour, linewidth=1.1)
                sure = holds(row)
                axes.plot(row["spearman"], y, "o", markersize=4, color=colour, markerfacecolor=colour if sure else "white")
        axes.set_yticks(range(len(names[family])), [LABELS.get(name, name) for name in names[family]], fontsize=8.5)
        axes.set_ylim(len(names[family]) - 0.4, -0.6)
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_title(FAMILY[family], loc="left", fontsize=9.5)
        _plain(axes)
    grid[0].set_xlim(-1.03, 1.03)
    grid[-1].set_xlabel("Spearman correlation with the difference in accuracy", fontsize=9)
    handles = [Line2D([], [], color=_shade(shown, b), marker="o", markersize=4, linewidth=1.1, label=f"block {b}") for b in shown]
    if handles:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


def matrices(pairs: Sequence[Pair], rows: Rows, family: str) -> Figure | None:
    """The leading measure of a family at the last block, pair by pair: a matrix for each group of runs.

    The cell of a pair carries the id ``pair-NUMBER`` in SVG.
    """
    own = [row for row in rows if row["measure"] == HEADLINE[family] and (row.get("value", row.get("mean")) is not None)]
    last: dict[int, Any] = {}
    for row in own:
        if row["pair"] not in last or (row.get("block") or 0) >= (last[row["pair"]].get("block") or 0):
            last[row["pair"]] = row
    values = {number: float(row["mean"] if "mean" in row else row["value"]) for number, row in last.items()}
    if not values:
        return None
    groups: dict[str, list[int]] = {}
    for number in sorted(values):
        groups.setdefault(pairs[number].group, []).append(number)
    shown = [(name, numbers, _members(pairs, numbers)) for name, numbers in groups.items()]
    columns = min(len(shown), max(1, 10 // max(2, round(max(len(m) for _, _, m in shown) * 0.45))), 4)
    lines = math.ceil(len(shown) / columns)
    side = [min(max(0.42 * len(members), 1.1), 6.5) for _, _, members in shown]
    figure = _figure(max(columns * (max(side) + 1.15) + 0.9, 4.4), lines * (max(side) + 1.0) + 0.3)
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    low = min(values.values())
    scale = Normalize(min(0.0, math.floor(10 * low) / 10), 1.0)
    for axes, (name, numbers, members) in zip(grid.flat, shown, strict=False):
        _matrix(axes, pairs, {n: values[n] for n in numbers}, members, scale)
        axes.set_title(name if len(shown) > 1 else "", loc="left", fontsize=9)
    for axes in list(grid.flat)[len(shown) :]:
        axes.remove()
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(scale, _HEAT), ax=list(grid.flat)[: len(shown)], shrink=0.8, aspect=28, pad=0.02)
    bar.set_label(LABELS[HEADLINE[family]], fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def depth_maps(runs: Sequence[TracedRun], facts: Mapping[str, RunFacts], by: By) -> Page | None:
    """Mean token depth by position: methods in rows, and rates, models or data sets in columns."""
    shown = [run for run in runs if run.grid is not None and facts[run.digest].depth and not facts[run.digest].mixed]
    if not shown:
        return None
    key: Callable[[TracedRun], Any] = {
        "capacity": lambda run: run.model, "dataset": lambda run: run.data,
    }.get(by, lambda run: run.schedule)  # fmt: skip
    name = {"capacity": "model", "dataset": "data"}.get(by, "schedule")
    across = sorted({key(run) for run in shown}, key=lambda k: -_mean([_left(facts[r.digest]) for r in shown if key(r) == k]))
    heads = [text or str(value) for text, value in zip(name_all([{name: k} for k in across]), across, strict=True)]
    rest = [{k: v for k, v in run.options().items() if k != name} for run in shown]
    texts = [text or run.method or "" for text, run in zip(name_all(rest, joint=" "), shown, strict=True)]
    ends = (float(min(run.stages[0] for run in shown)), float(max(run.depth for run in shown)))
    rows: list[Row] = []
    for text in dict.fromkeys(texts):
        own = {key(run): run for run, other in zip(shown, texts, strict=True) if other == text}
        panels = [_depth(own[k], facts[own[k].digest], ends) if k in own else _nothing for k in across]
        rows.append(Row(text, panels))
    ticks = [f"{value:.3g}" for value in np.linspace(*ends, 3)]
    label = "block at which a patch stops being a token of its own, mean over images"
    return Page(rows, heads if len(heads) > 1 else (), key=Key(_HEAT, ticks, label), side=72)


def _depth(run: TracedRun, found: RunFacts, ends: tuple[float, float]) -> Callable[[int], Panel]:
    assert run.grid is not None
    values = np.asarray(found.depth)
    return heat(values, run.grid, ends, _HEAT, caption=f"mean {values.mean():.1f}")


def _nothing(side: int) -> Panel:
    return Panel(np.full((side, side, 3), 255, dtype=np.uint8))


def _left(found: RunFacts) -> float:
    return found.stages[-1].kept if found.stages else 1.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _members(pairs: Sequence[Pair], numbers: Sequence[int]) -> dict[str, str]:
    """Runs of a group by name, and what tells them apart within it."""
    runs = {run.name: run for n in numbers for run in (pairs[n].a, pairs[n].b)}
    options = [{k: v for k, v in run.options().items() if k != "schedule" or not run.dense} for run in runs.values()]
    # Within a group, the dense model has no schedule to be told by.
    alike = len({run.schedule for run in runs.values() if not run.dense}) == 1
    options = [{k: v for k, v in one.items() if k != "schedule"} for one in options] if alike else options
    short = name_all(options, joint=" ")
    unique = len(set(short)) == len(short) and all(short)
    return dict(zip(runs, short if unique else list(runs), strict=True))


def _matrix(axes: Any, pairs: Sequence[Pair], values: Mapping[int, float], members: Mapping[str, str], scale: Normalize) -> None:
    place = {name: i for i, name in enumerate(members)}
    count = len(place)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
    for i in range(count):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, facecolor="0.9", edgecolor="white", linewidth=0.8))
    colours = colormaps[_HEAT]
    for number, value in values.items():
        a, b = place[pairs[number].a.name], place[pairs[number].b.name]
        colour = colours(scale(value))
        for x, y in ((a, b), (b, a)):
            cell = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8)
            cell.set_gid(f"pair-{number}")
            axes.add_patch(cell)
            if count <= _NUMBERED:
                ink = "white" if scale(value) < 0.55 else "black"
                text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.0f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color=ink)
    turned = max(map(len, members.values())) > 4
    axes.set_xticks(
        range(count), list(members.values()), fontsize=8, rotation=45 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_yticks(range(count), list(members.values()), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if turned:
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")


def _scatter(axes: Any, rows: Rows, groups: Sequence[str], by: By) -> None:
    for i, group in enumerate(groups):
        own = [row for row in rows if row["group"] == group]
        style = _mark(i) if len(groups) <= _GROUPS else _mark(0)
        x = [row["mean"] if "mean" in row else row["value"] for row in own]
        y = [abs(row["difference"]) if by == "method" else row["difference"] for row in own]
        axes.plot(x, y, linestyle="", markersize=4.5, alpha=0.85, **style)
    _plain(axes)
    axes.margins(0.08)


def _mark(i: int) -> dict[str, Any]:
    colour = COLOURS[i % len(COLOURS)]
    filled = i // len(COLOURS) % 2 == 0
    return {
        "color": colour, "marker": MARKERS[i % len(MARKERS)], "markerfacecolor": colour if filled else "white",
        "markeredgewidth": 0.9,
    }  # fmt: skip


def _coefficient(axes: Any, correlations: Rows, family: str, block: Any) -> None:
    wanted = (ALL, family, block, HEADLINE[family])
    for row in correlations:
        if (row["group"], row["family"], row["block"], row["measure"]) == wanted:
            ends = "" if row["spearman_low"] is None else f" [{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"
            text = f"$\\rho$ = {row['spearman']:.2f}{ends}".replace("-", "\u2212")
            axes.annotate(text, (0, 1.02), xycoords="axes fraction", ha="left", va="bottom", fontsize=8, color="0.35")


def _shade(blocks: Sequence[Any], block: Any) -> Any:
    if block not in blocks:
        return "0.2"
    return colormaps["viridis"](0.85 * blocks.index(block) / max(len(blocks) - 1, 1))


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most ``most``, evenly spread, the last one always."""
    if len(values) <= most:
        return list(values)
    return [values[round((i + 1) * len(values) / most) - 1] for i in range(most)]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

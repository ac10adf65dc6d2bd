"""What a search for a schedule gives: the plan, its curve as tables and a picture, and the file that keeps measurements."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

KINDS = ("latency", "flops")


@dataclass(frozen=True)
class Target:
    """What to reach: a share of the dense model's ``latency`` or ``flops``, in (0, 1)."""

    kind: str
    share: float

    @staticmethod
    def parse(text: str) -> Target:
        """From ``latency=0.6`` or ``flops=0.6``.

        Raises:
            ValueError: for another kind, or a share out of (0, 1).
        """
        kind, _, value = (part.strip() for part in text.partition("="))
        if kind not in KINDS:
            raise ValueError(f"unknown target '{text}'; write latency=0.6 (a share of the dense model's time) or flops=0.6")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            raise ValueError(f"target '{text}': the share of the dense model lies between 0 and 1, as in {kind}=0.6")
        return Target(kind, share)

    def __str__(self) -> str:
        return f"{self.kind}={self.share:g}"


@dataclass(frozen=True)
class Point:
    """One schedule on the images of the report.

    Attributes:
        kind: ``found`` or ``fixed`` (``keep(rate)`` at a quarter, half and three quarters of the depth).
        schedule: its spec.
        tokens: patch tokens after each block that reduces.
        budget: what was asked for, as a share of the dense model.
        predicted: what the model of the costs says.
        latency: measured time as a share of the dense model's, timed in turns with it.
        flops: share of the dense model's FLOPs, the method's own included.
        divergence: mean Kullback-Leibler divergence from the dense model, in nats.
        agreement: share of images predicted as by the dense model.
        top1: accuracy, where there are labels.
    """

    kind: str
    schedule: str
    tokens: tuple[int, ...]
    budget: float
    predicted: float
    latency: float
    flops: float
    divergence: float
    agreement: float
    top1: float | None = None


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        method: spec of the method.
        target: what was asked for.
        schedule: spec of the schedule, for :func:`vitrim.reduce` and ``vitrim bench --schedule``.
        tokens: patch tokens after each block that reduces.
        predicted: share of the dense model's latency or FLOPs, by the model of the costs.
        measured: the same, measured; of FLOPs, with the method's own work.
        curve: the found and the fixed schedules at several budgets, on the images of the report.
        dense_top1: accuracy of the dense model on them, where there are labels.
        calibration_images: number of images that the schedule was chosen on.
        report_images: number of other images that the curve was measured on; 0 where the same ones had to serve.
        interrupted: whether Ctrl-C ended the search early.
    """

    method: str
    target: Target
    schedule: str
    tokens: tuple[int, ...]
    predicted: float
    measured: float
    curve: tuple[Point, ...]
    dense_top1: float | None
    calibration_images: int
    report_images: int
    interrupted: bool = False

    @property
    def axis(self) -> str:
        """The measured column that the target speaks of."""
        return "latency" if self.target.kind == "latency" else "flops"

    def gains(self) -> list[tuple[Point, float | None]]:
        """For each found schedule, by how much it agrees more than the fixed one of equal measured cost, in [-1, 1].

        The fixed schedules are joined by lines, with the dense model at the end. A found schedule cheaper than all of them is
        compared with the cheapest where it agrees more than that, and is None else: then nothing can be said.
        """
        fixed = [*sorted((getattr(p, self.axis), p.agreement) for p in self.curve if p.kind == "fixed"), (1.0, 1.0)]
        gains: list[tuple[Point, float | None]] = []
        for p in (p for p in self.curve if p.kind == "found"):
            level = _at(fixed, getattr(p, self.axis))
            if level is None and p.agreement > fixed[0][1]:
                level = fixed[0][1]
            gains.append((p, None if level is None else p.agreement - level))
        return gains


class Store:
    """What was measured, kept in a file and used again when the same question is asked.

    Args:
        path: the JSON file, or None to keep nothing.
        key: what the measurements depend on; those of another key are dropped.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.path = path
        self.values: dict[str, Any] = {"key": dict(key)}
        if path is not None and path.is_file():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                known = {}  # cut off while it was written: measured anew
            if isinstance(known, dict) and known.get("key") == self.values["key"]:
                self.values = known

    @property
    def scores(self) -> dict[str, Any]:
        """Scores on the calibration images, by schedule."""
        return self.values.setdefault("scores", {})

    def save(self) -> None:
        """Write the file whole, or not at all."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.with_suffix(".part")
            draft.write_text(json.dumps(self.values) + "\n", encoding="utf-8")
            draft.replace(self.path)


def curve_to_csv(plan: Plan) -> str:
    """One line per schedule of the curve, numbers in full; tokens joined by spaces."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Point)], lineterminator="\n")
    writer.writeheader()
    for point in plan.curve:
        writer.writerow({**asdict(point), "tokens": " ".join(map(str, point.tokens))})
    return out.getvalue()


def plan_to_json(plan: Plan, **facts: Any) -> str:
    """The plan and its curve, with what they depend on.

    Args:
        plan: the plan.
        facts: more to put on record, such as the name of the model and the device.
    """
    values = {**asdict(plan), "target": str(plan.target)}
    return json.dumps({**facts, **values}, indent=2) + "\n"


def plan_from_json(text: str) -> Plan:
    """The plan that :func:`plan_to_json` wrote."""
    values: dict[str, Any] = json.loads(text)
    known: dict[str, Any] = {f.name: values[f.name] for f in fields(Plan)}
    points: list[dict[str, Any]] = [{**point, "tokens": tuple(point["tokens"])} for point in values["curve"]]
    known["curve"] = tuple(Point(**point) for point in points)
    known["target"], known["tokens"] = Target.parse(values["target"]), tuple(values["tokens"])
    return Plan(**known)


def curve_to_markdown(plan: Plan) -> str:
    """A table for people: at each budget the found schedule, and how much it agrees more than the fixed one of equal cost."""
    gains = {p.schedule: gain for p, gain in plan.gains()}
    with_labels = plan.dense_top1 is not None
    heads = [
        "",
        "schedule",
        "tokens",
        f"{plan.target.kind} asked",
        "time",
        "FLOPs",
        "agree %",
        *["top-1 %"] * with_labels,
        "gain",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join([":--"] * 3 + ["--:"] * (len(heads) - 3)) + "|"]
    for p in sorted(plan.curve, key=lambda p: (-p.budget, p.kind == "fixed")):
        gain = gains.get(p.schedule) if p.kind == "found" else None
        cells = [p.kind, f"`{p.schedule}`", " ".join(map(str, p.tokens)), f"{p.budget:g}", f"{p.latency:.3f}", f"{p.flops:.3f}"]
        cells += [f"{100 * p.agreement:.1f}", *([f"{100 * (p.top1 or 0):.1f}"] * with_labels)]
        lines.append("| " + " | ".join([*cells, "" if gain is None else f"{100 * gain:+.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def plot_plans(plans: Sequence[Plan], path: str | Path, title: str = "") -> Path:
    """Draw agreement against the measured share of time or FLOPs: found and fixed schedules, a panel per plan.

    Args:
        plans: one, or several of different methods.
        path: file to write; its ending says the format.
        title: text over the plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 4.6 * len(plans), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for i, plan in enumerate(plans):
        axes = figure.add_subplot(1, len(plans), i + 1)
        axis = plan.axis
        for kind, colour, marker, label in (
            ("fixed", "#D55E00", "s", "keep(rate) at a quarter, half, three quarters"),
            ("found", "#0072B2", "o", "vitrim schedule"),
        ):
            points = sorted((getattr(p, axis), 100 * p.agreement) for p in plan.curve if p.kind == kind)
            axes.plot(*zip(*points, (1.0, 100.0), strict=True), color=colour, marker=marker, label=label, markeredgecolor="white")
        axes.plot([1.0], [100.0], marker="*", markersize=14, color="0.25", linestyle="", label="dense", zorder=5)
        if axis == plan.target.kind:
            axes.axvline(plan.target.share, color="0.7", linewidth=1, linestyle=":", label=f"target {plan.target}", zorder=0)
        axes.set_xlabel(f"measured share of the dense model's {'time' if axis == 'latency' else 'FLOPs'}")
        axes.set_ylabel("same prediction as the dense model (%)")
        axes.set_title(plan.method, loc="left")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=150)
    return Path(path)


def _at(line: Sequence[tuple[float, float]], x: float) -> float | None:
    """The height of a line through points in ascending order; None before its first point."""
    for (x0, y0), (x1, y1) in pairwise(line):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None

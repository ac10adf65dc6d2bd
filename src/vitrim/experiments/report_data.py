"""Runs that differ in their seed only, put together: means, spreads, curves."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrim.experiments.names import name_all
from vitrim.experiments.runs import METRICS, Run, read_gradients, read_metrics

# Options that do not change what a run computes, but for its chance.
_CHANCE = ("seed", "workers", "threads", "log", "checkpoint_every", "keep_checkpoints")
# Curves are averaged down to so many points: more cannot be seen, and 200 runs fit on a page.
POINTS = 100
# An option that more than this share of the settings have in common goes without saying.
_USUAL = 2 / 3

Curve = list[tuple[float, float]]
Spread = tuple[Curve, Curve, Curve]  # mean, lowest and highest over the seeds


@dataclass(frozen=True)
class Value:
    """A number over seeds.

    Attributes:
        mean: over the seeds.
        std: sample standard deviation; None for a single seed.
        count: number of seeds.
    """

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, numbers: Sequence[float | None]) -> Value | None:
        """Over the numbers that there are; None when there is none."""
        found = [number for number in numbers if number is not None and math.isfinite(number)]
        if not found:
            return None
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


@dataclass(frozen=True)
class Setting:
    """The runs of one recipe, over seeds.

    Attributes:
        name: what tells it from the other settings.
        method: the method alone, as written in names; ``dense`` without one.
        variant: what else differs, the schedule left out; empty for the plainest.
        schedule: the schedule in short; empty for the dense model.
        runs: all runs of the setting.
    """

    name: str
    method: str
    variant: str
    schedule: str
    runs: tuple[Run, ...]

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.runs[0].recipe

    @property
    def finished(self) -> list[Run]:
        """Those whose numbers are final."""
        return [run for run in self.runs if run.state == "finished"]

    @property
    def dense(self) -> bool:
        return not self.recipe.get("method")

    def value(self, metric: str, which: str = "last") -> Value | None:
        """A metric of the finished runs."""
        return Value.of([getattr(run, which).get(metric) for run in self.finished])

    def fact(self, name: str) -> Value | None:
        """A number of the summaries: gflops, seconds, parameters, trainable, images_per_second."""
        return Value.of([_number(run.summary.get(name)) for run in self.finished])

    @cached_property
    def curves(self) -> dict[tuple[str, str], Spread]:
        """Columns of metrics.jsonl over the epochs, by kind of line and name: the metrics, and the training loss."""
        found: dict[tuple[str, str], list[Curve]] = {}
        for run in self.runs:
            points: dict[tuple[str, str], Curve] = {}
            for row in read_metrics(run.folder):
                epoch, kind = _number(row.get("epoch")), str(row.get("kind"))
                names = ("loss",) if kind == "train" else METRICS if kind == "eval" and row.get("weights") != "ema" else ()
                for name in names:
                    value = _number(row.get(name))
                    if epoch is not None and value is not None and math.isfinite(value):
                        points.setdefault((kind, name), []).append((epoch, value))
            for key, line in points.items():
                found.setdefault(key, []).append(_thin(line))
        return {key: _over_seeds(lines) for key, lines in found.items()}

    @cached_property
    def gradients(self) -> tuple[Value | None, Value | None, Spread]:
        """``max_grad_all``: its mean and its standard deviation over the steps, each over the seeds, and its curve."""
        means: list[float | None] = []
        stds: list[float | None] = []
        curves: list[Curve] = []
        for run in self.runs:
            points = [(s, v) for s, v in read_gradients(run.folder) if math.isfinite(v)]
            curves.append(_thin(points))
            if run.state == "finished" and points:
                means.append(statistics.fmean(v for _, v in points))
                stds.append(statistics.stdev(v for _, v in points) if len(points) > 1 else None)
        return Value.of(means), Value.of(stds), _over_seeds(curves)

    def speed(self, measured: bool) -> Value | None:
        """Images per second: of the forward pass as evaluated, or in training."""
        return Value.of([run.images_per_second for run in self.finished]) if measured else self.fact("images_per_second")


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Runs grouped by recipe without the seed, in order of first appearance, the dense model first.

    A recipe that starts from the weights of another run of the report counts as the same whatever that run's seed was.
    """
    folders = {run.folder.resolve(): run for run in runs}
    keys: dict[Path, str] = {}

    def key(run: Run) -> str:
        where = run.folder.resolve()
        if where not in keys:
            keys[where] = ""  # ends a circle, which no sweep makes
            keys[where] = json.dumps(_plain(run.recipe, folders, key), sort_keys=True, default=str)
        return keys[where]

    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.recipe:
            groups.setdefault(key(run), []).append(run)
    found: list[Setting] = []
    # Named apart: that the dense model was trained for longer is nothing that the others differ in.
    for dense in (True, False):
        members = [g for g in groups.values() if (not g[0].recipe.get("method")) == dense]
        recipes = [_plain(g[0].recipe, folders, lambda _: "") for g in members]
        if dense:
            recipes = [{**recipe, "schedule": None} for recipe in recipes]
        methods = name_all([{"method": r.get("method")} for r in recipes], joint=" ")
        schedules = name_all([{"schedule": r.get("schedule")} for r in recipes], joint=" ")
        variants = _without_usual([{k: v for k, v in r.items() if k not in ("method", "schedule")} for r in recipes])
        for group, recipe, method, schedule, variant in zip(members, recipes, methods, schedules, variants, strict=True):
            method = method or str(recipe.get("method") or "dense").partition("(")[0]
            name = " ".join(part for part in (method, schedule, variant) if part)
            found.append(Setting(name, method, variant, schedule, tuple(group)))
    return _in_order(found)


def metrics_of(settings: Sequence[Setting]) -> list[str]:
    """The metrics that the runs have, the one that ranks them first."""
    names = {name for s in settings for run in s.runs for name in (*run.last, *run.best)}
    return [*(m for m in METRICS if m in names), *sorted(names - set(METRICS))]


def _plain(recipe: Mapping[str, Any], folders: Mapping[Path, Run], key: Callable[[Run], object]) -> dict[str, Any]:
    """The recipe without chance, and with weights of a run of the report told by that run's recipe."""
    plain = {name: value for name, value in recipe.items() if name not in _CHANCE}
    for name in ("weights", "teacher_weights"):
        value = plain.get(name)
        source = folders.get(Path(value).parent.resolve()) if isinstance(value, str) else None
        if source is not None:
            plain[name] = f"run: {key(source)}"
    return plain


def _without_usual(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names in which options that are off, or as in most of the others, are silent, where the names still differ."""
    silent = list[dict[str, Any]]()
    for one in options:
        counts = {k: sum(other.get(k) == v for other in options) for k, v in one.items()}
        silent.append({k: v for k, v in one.items() if v is not None and counts[k] <= _USUAL * len(options)})
    full, short = name_all(options, joint=" "), name_all(silent, joint=" ")
    return short if len(set(short)) == len(set(full)) else full


def _in_order(settings: Sequence[Setting]) -> list[Setting]:
    """The dense model, then method by method, the plain variant first, from much to little work."""
    methods = list(dict.fromkeys(s.method for s in settings))

    def place(setting: Setting) -> tuple[bool, int, str, float]:
        work = setting.fact("gflops")
        return not setting.dense, methods.index(setting.method), setting.variant, -work.mean if work else 0.0

    return sorted(settings, key=place)


def _thin(points: Curve) -> Curve:
    """At most POINTS points, each the mean of its neighbours."""
    if len(points) <= POINTS:
        return points
    edges = [round(i * len(points) / POINTS) for i in range(POINTS + 1)]
    parts = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)) for part in parts]


def _over_seeds(curves: Sequence[Curve]) -> Spread:
    """Mean, lowest and highest at every place that all curves have, so that a run that is behind bends nothing."""
    curves = [c for c in curves if c]
    if not curves:
        return [], [], []
    tables = [dict(c) for c in curves]
    places = [x for x, _ in max(curves, key=len)]
    shared = [x for x in places if all(x in table for table in tables)]
    if not shared:  # thinned at other places: the longest one speaks for all
        table = dict(max(curves, key=len))
        tables, shared = [table], places
    values = [[table[x] for table in tables] for x in shared]
    return (
        [(x, statistics.fmean(v)) for x, v in zip(shared, values, strict=True)],
        [(x, min(v)) for x, v in zip(shared, values, strict=True)],
        [(x, max(v)) for x, v in zip(shared, values, strict=True)],
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

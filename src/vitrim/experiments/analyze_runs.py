"""The runs of an analysis: their trace stores, what they are of, and short names for them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vitrim.core.registry import SCHEDULES, SpecError
from vitrim.experiments.names import name_all
from vitrim.experiments.runs import METRICS
from vitrim.experiments.tracestore import TraceError, TraceStore

_EXTRAS = ("cache", "head", "tune", "recognise")


@dataclass(frozen=True)
class TracedRun:
    """A model whose patterns and features were recorded.

    Attributes:
        name: short, different for every run of an analysis.
        path: folder of the store.
        digest: hash of what was recorded.
        model: spec.
        method: spec; None for a dense model.
        schedule: spec; None for a dense model.
        extras: cache, head, tuning, recogniser and averaged weights, as far as there are.
        seed: of the training; None where it is not known.
        data: spec of the data set.
        split: of the data set.
        images_digest: hash of the paths and targets of the whole split: equal for equal images.
        images: number of images recorded.
        metric: name of the accuracy.
        accuracy: in percent; NaN where none was recorded.
        dim: width of the tokens.
        depth: number of blocks.
        grid: rows and columns of patches; None where they are not known.
        patches: of an image; None for a dense model.
        stages: blocks that reduce.
        blocks: blocks with features.
        kinds: of the features: cls, mean.
        soft: whether whole soft maps were recorded.
    """

    name: str
    path: Path
    digest: str
    model: str
    method: str | None
    schedule: str | None
    extras: tuple[tuple[str, str], ...]
    seed: int | None
    data: str
    split: str
    images_digest: str
    images: int
    metric: str
    accuracy: float
    dim: int
    depth: int
    grid: tuple[int, int] | None
    patches: int | None
    stages: tuple[int, ...]
    blocks: tuple[int, ...]
    kinds: tuple[str, ...]
    soft: bool

    @property
    def dense(self) -> bool:
        """Whether it reduces nothing."""
        return not self.stages

    @property
    def locations(self) -> tuple[str, str]:
        """Kind of the schedule and the blocks where it reduces: what stays the same while the rate changes."""
        if self.schedule is None:
            return "", ""
        try:
            built: Any = SCHEDULES.build(self.schedule)
        except (SpecError, ValueError):  # of a project that is not imported here
            return self.schedule.partition("(")[0], ""
        return self.schedule.partition("(")[0], str(getattr(built, "at", ""))

    @property
    def rate(self) -> float | None:
        """The single rate of the schedule, where it has one."""
        try:
            rate: Any = getattr(SCHEDULES.build(self.schedule or "keep"), "rate", None) if self.schedule else None
        except (SpecError, ValueError):
            return None
        return float(rate) if isinstance(rate, int | float) else None

    def options(self) -> dict[str, Any]:
        """What names are made of."""
        found: dict[str, Any] = {"data": self.data.removesuffix(" (fake)"), "model": self.model, "method": self.method}
        found |= {} if self.schedule is None else {"schedule": self.schedule}
        found |= dict(self.extras)
        return found if self.seed is None else {**found, "seed": self.seed}


def find_traces(places: Sequence[Path]) -> list[TracedRun]:
    """The runs with a trace in or below several folders, each once, by name.

    Args:
        places: runs, trace stores, or folders above them; evaluations of a run with another reduction are runs of their own.

    Raises:
        FileNotFoundError: for a place that is not there, or without a trace.
        TraceError: for a store that is not complete, or when two stores of one data set and split have other images.
        ValueError: when there is only one run.
    """
    stores: dict[Path, None] = {}
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"'{place}' does not exist; give runs, or folders above them")
        found = list(_stores(place))
        if not found:
            of = place if (place / "config.yaml").is_file() else "RUN"
            raise FileNotFoundError(f"'{place}' holds no trace; record one with: vitrim eval {of} --trace")
        stores |= dict.fromkeys(path.resolve() for path in found)
    runs = [_read(path) for path in stores]
    if len(runs) < 2:
        raise ValueError(f"one run ('{runs[0].path}') cannot be compared with others; name two runs or more")
    _check_images(runs)
    return _named(runs)


def untraced(places: Sequence[Path]) -> list[Path]:
    """Runs in or below the places that have no trace, which the user may have forgotten."""
    found: list[Path] = []
    for place in places:
        for path, below, files in os.walk(place):
            if "config.yaml" in files and not any(True for _ in _stores(Path(path))):
                found.append(Path(path))
                below.clear()
    return found


def _stores(place: Path) -> Iterator[Path]:
    for path, below, files in os.walk(place):
        if "store.json" in files:
            below.clear()
            yield Path(path)
        else:
            below[:] = sorted(name for name in below if not name.startswith(".") and name != "checkpoints")


def _read(path: Path) -> TracedRun:
    store = TraceStore(path)
    meta: Mapping[str, Any] = store.meta
    if not len(store):
        raise TraceError(f"the trace '{path}' has no images; record it again with --overwrite")
    scores: Mapping[str, float] = meta.get("metrics") or {}
    metric = next((name for name in METRICS if name in scores and name != "loss"), "top1")
    grid = meta.get("grid")
    extras = tuple((key, str(meta[key])) for key in _EXTRAS if meta.get(key))
    extras += (("weights", "ema"),) if meta.get("weights") == "ema" else ()
    return TracedRun(
        "", path, store.digest, str(meta["model"]), meta.get("method"), meta.get("schedule"), extras, _seed(path),
        str(meta["data"]), str(meta["split"]), str(meta["images_digest"]), len(store), metric,
        float(scores.get(metric, float("nan"))), int(meta["dim"]), int(meta["depth"]),
        None if grid is None else (int(grid[0]), int(grid[1])), meta.get("patches"), tuple(store.stages), tuple(store.blocks),
        tuple(meta["features"]), any(name.endswith(".soft") for name in store.columns),
    )  # fmt: skip


def _seed(path: Path) -> int | None:
    """Of the run around a store."""
    for folder in list(path.parents)[:3]:
        file = folder / "config.yaml"
        if file.is_file():
            try:
                recipe: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
                return int(recipe["seed"])
            except (yaml.YAMLError, KeyError, TypeError, ValueError, OSError):
                return None
    return None


def _check_images(runs: Sequence[TracedRun]) -> None:
    """Two lists of images under one name would be compared image by image with no image the same."""
    first: dict[tuple[str, str], TracedRun] = {}
    for run in runs:
        other = first.setdefault((run.data, run.split), run)
        if other.images_digest != run.images_digest:
            raise TraceError(
                f"'{other.path}' and '{run.path}' are both of {run.data}, split {run.split}, but hold different images; record "
                "one of them again with: vitrim eval RUN --trace --overwrite"
            )


def _named(runs: Sequence[TracedRun]) -> list[TracedRun]:
    names = name_all([run.options() for run in runs], joint=" ")
    alike = Counter(names)
    counts: Counter[str] = Counter()
    found: list[TracedRun] = []
    for run, name in zip(runs, names, strict=True):
        # Equal but for what options do not say (other epochs, say): the folder tells.
        text = name if name and alike[name] == 1 else f"{name} {_folder(run.path)}".strip()
        counts[text] += 1
        found.append(replace(run, name=text if counts[text] == 1 else f"{text} {counts[text]}"))
    return sorted(found, key=lambda run: (run.data, run.model, run.method or "", -(run.rate or 0), run.name))


def _folder(path: Path) -> str:
    return path.parent.name if path.name == "trace" else path.name

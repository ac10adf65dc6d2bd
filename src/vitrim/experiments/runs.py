"""Training runs on disk: find their folders, read them whatever state they are in, filter them with SQL."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

Row = dict[str, Any]

# PyYAML's own parser is ten times slower than libyaml's, which is not in every build of it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# A run that says "running" but has written nothing for so long (seconds) was most likely killed.
STALLED = 1800.0
# What the evaluation measures, in the order of the table; the first one present ranks runs.
METRICS = ("top1", "mAP", "top5", "CF1", "OF1", "loss")
_FACTS = ("gflops", "parameters", "trainable", "images_per_second", "seconds", "device")


@dataclass(frozen=True)
class Run:
    """One run folder, as far as it could be read.

    Attributes:
        id: path of the folder below the place that was searched.
        folder: the folder.
        recipe: the resolved recipe (config.yaml).
        summary: summary.json; empty when there is none yet.
        state: finished, running, stalled, interrupted, failed, or broken (a file cannot be read).
        note: why it failed, or which file is broken.
        last: metrics of the last evaluation, in the units of the task (percent).
        best: metrics of the best evaluation.
    """

    id: str
    folder: Path
    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]
    state: str
    note: str
    last: Mapping[str, float]
    best: Mapping[str, float]

    @property
    def metric(self) -> str:
        """The name of the metric that ranks this run: top1 or mAP."""
        return next((name for name in METRICS if name in self.last or name in self.best), "top1")

    @property
    def images_per_second(self) -> float | None:
        """Throughput of the forward pass where ``vitrim eval`` measured it, else None."""
        found = _json(self.folder / "evaluation.json")
        return _float(found.get("images_per_second")) if found else None

    def row(self) -> Row:
        """Everything as one flat row: facts first, then the recipe; a metric called as a recipe key becomes ``eval_KEY``."""
        row: Row = {"run": self.id, "state": self.state}
        for prefix, metrics in (("", self.last), ("best_", self.best)):
            for name in (*METRICS, *metrics):
                if name in metrics:
                    row[prefix + name if prefix or name not in self.recipe else f"eval_{name}"] = metrics[name]
        row |= {name: self.summary[name] for name in _FACTS if name in self.summary}
        row |= {key: _flat(value) for key, value in self.recipe.items() if key not in row}
        return {**row, "note": self.note}


def find_runs(place: Path | str) -> list[Run]:
    """All runs in or below a folder, in the order of their paths.

    A folder is a run when it holds config.yaml, or metrics.jsonl with summary.json. Runs do not nest; hidden folders are
    left out.

    Raises:
        ValueError: when the folder does not exist.
    """
    place = Path(place)
    if not place.is_dir():
        raise ValueError(f"{place} is no folder; give a run, a sweep, or a folder above them")
    return [read_run(folder, place) for folder in sorted(_folders(place))]


def read_run(folder: Path | str, place: Path | str | None = None) -> Run:
    """Read one run folder. Never fails over its content: what cannot be read is told in ``state`` and ``note``.

    Args:
        folder: the run folder.
        place: the folder that the run's id is relative to; its parent when left out.
    """
    folder = Path(folder)
    below = folder.relative_to(place).as_posix() if place is not None else folder.name
    recipe, summary, faults = _mapping(folder / "config.yaml"), _mapping(folder / "summary.json"), list[str]()
    for name, found in (("config.yaml", recipe), ("summary.json", summary)):
        if isinstance(found, str):
            faults.append(f"{name}: {found}")
    recipe, summary = ({} if isinstance(found, str) else found for found in (recipe, summary))
    last, best = (_numbers(summary.get(name)) for name in ("last", "best"))
    if not last or not best:
        # Runs that were killed before their summary: the log of metrics has what was measured until then.
        found_last, found_best = _from_metrics(folder)
        last, best = last or found_last, best or found_best
    state, note = _state(folder, summary)
    return Run(
        below if below != "." else folder.resolve().name, folder, recipe, summary,
        "broken" if faults else state, "; ".join(faults) or note, last, best,
    )  # fmt: skip


def read_metrics(folder: Path, kind: str | None = None) -> Iterator[Row]:
    """The lines of metrics.jsonl, of one kind when named; a line that is cut off (the run was killed) is left out."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and (kind is None or row.get("kind") == kind):
            yield cast(Row, row)


def last_metrics(folder: Path, size: int = 8192) -> Row:
    """The last whole line of metrics.jsonl, without reading more than ``size`` bytes; empty when there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return cast(Row, row)
    return {}


def read_gradients(folder: Path) -> list[tuple[float, float]]:
    """Step and largest gradient (``max_grad_all``) from gradients.csv, rows that are cut off left out."""
    try:
        lines = (folder / "gradients.csv").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    heads = lines[0].split(",") if lines else []
    if "max_grad_all" not in heads:
        return []
    at, step_at = heads.index("max_grad_all"), heads.index("step") if "step" in heads else None
    points: list[tuple[float, float]] = []
    for i, line in enumerate(lines[1:], 1):
        cells = line.split(",")
        value = _float(cells[at]) if len(cells) == len(heads) else None
        step = float(i) if step_at is None or value is None else _float(cells[step_at])
        if value is not None and step is not None:
            points.append((step, value))
    return points


def _folders(place: Path) -> Iterator[Path]:
    for path, below, files in os.walk(place):
        if "config.yaml" in files or {"metrics.jsonl", "summary.json"} <= set(files):
            below.clear()
            yield Path(path)
        else:
            below[:] = [name for name in below if not name.startswith(".")]


def _mapping(path: Path) -> dict[str, Any] | str:
    """The content of a YAML or JSON file: empty when there is no file, or in words what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.load(text, _LOADER)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    return cast(dict[str, Any], found) if isinstance(found, dict) else "holds no mapping (cut off?)"


def _json(path: Path) -> dict[str, Any]:
    found = _mapping(path)
    return {} if isinstance(found, str) else found


def _state(folder: Path, summary: Mapping[str, Any]) -> tuple[str, str]:
    state = str(summary.get("state") or "interrupted")
    note = str(summary.get("error") or summary.get("reason") or "")
    if state == "running":
        from vitrim.experiments.launch import held

        lock = folder.parent / ".sweep" / f"{folder.name}.lock"
        quiet = time.time() - max((_changed(folder / name) for name in ("metrics.jsonl", "summary.json")), default=0.0)
        if lock.exists():
            return ("running", note) if held(lock) else ("interrupted", "its process is gone; the sweep's next call resumes it")
        if quiet > STALLED:
            return "stalled", f"nothing written for {quiet / 3600:.1f} h"
    return state, note


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _from_metrics(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the last and of the best evaluation in metrics.jsonl."""
    found = [_numbers(row) for row in read_metrics(folder, "eval") if row.get("weights") != "ema"]
    if not found:
        return {}, {}
    name = next((name for name in METRICS if name in found[-1]), "top1")
    return found[-1], max(found, key=lambda row: row.get(name, float("-inf")))


def _numbers(found: Any) -> dict[str, float]:
    """The metrics of an evaluation; those of the moving average's weights get ``ema_`` in front."""
    numbers: dict[str, float] = {}
    if isinstance(found, Mapping):
        for name, value in cast(Mapping[str, Any], found).items():
            if isinstance(value, Mapping):
                prefix = "" if name == "model" else f"{name}_"
                numbers |= {prefix + inner: number for inner, number in _numbers(value).items()}
            elif name not in _COUNTERS and (number := _float(value)) is not None:
                numbers[name] = number
    return numbers


_COUNTERS = (
    "step",
    "epoch",
    "time",
    "seconds",
    "kind",
    "split",
    "weights",
    "images",
    "skipped",
    "images_per_second",
    "memory_mb",
)


def _float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _flat(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)

"""The tidy tables of an analysis: one row for each run, stage, pair and measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrim.experiments.analyze_facts import RunFacts
from vitrim.experiments.analyze_pairs import Pair
from vitrim.experiments.analyze_runs import TracedRun
from vitrim.experiments.results import write_table

Row = dict[str, Any]
Rows = list[Row]
FAMILIES = ("features", "pruning", "merging", "maps")


def run_rows(runs: Sequence[TracedRun], facts: Mapping[str, RunFacts]) -> Rows:
    """A row for each run."""
    rows: Rows = []
    for run in runs:
        found = facts[run.digest]
        rows.append({
            "run": run.name, "model": run.model, "method": run.method, "schedule": run.schedule, "rate": run.rate,
            **dict.fromkeys(("cache", "head", "tune", "recognise", "weights")), **dict(run.extras), "seed": run.seed,
            "data": run.data, "split": run.split, "images": run.images, "metric": run.metric, "accuracy": finite(run.accuracy),
            "dim": run.dim, "depth": run.depth, "patches": run.patches, "prunes": found.prunes, "merges": found.merges,
            "soft_maps": run.soft, "tokens_left": found.stages[-1].tokens if found.stages else None, "path": str(run.path),
        })  # fmt: skip
    return rows


def stage_rows(runs: Sequence[TracedRun], facts: Mapping[str, RunFacts]) -> Rows:
    """A row for each run and stage."""
    return [{"run": run.name, **vars(stage)} for run in runs for stage in facts[run.digest].stages]


def map_rows(runs: Sequence[TracedRun], facts: Mapping[str, RunFacts]) -> Rows:
    """A row for each run and patch: mean depth with its deviation over images, mean size of its token."""
    rows: Rows = []
    for run in runs:
        found = facts[run.digest]
        for patch, values in enumerate(zip(found.depth, found.depth_std, found.size, strict=True)):
            row, column = divmod(patch, run.grid[1]) if run.grid is not None else (None, None)
            names = ("depth", "depth_std", "size")
            rows.append({"run": run.name, "patch": patch, "row": row, "column": column, **dict(zip(names, values, strict=True))})
    return rows


def pair_rows(pairs: Sequence[Pair], results: Sequence[Mapping[str, Any]], family: str) -> Rows:
    """A row for each pair, block and measure of one of :data:`FAMILIES`; ``difference`` is accuracy of A minus that of B."""
    rows: Rows = []
    for number, (pair, found) in enumerate(zip(pairs, results, strict=True)):
        head = {
            "pair": number, "group": pair.group, "a": pair.a.name, "b": pair.b.name, "accuracy_a": finite(pair.a.accuracy),
            "accuracy_b": finite(pair.b.accuracy), "difference": difference(pair),
        }  # fmt: skip
        rows += [{**head, **row} for row in found[family]]
    return rows


def difference(pair: Pair) -> float | None:
    """Accuracy of A minus accuracy of B, in percentage points; None where one of them is not known or they are of two kinds."""
    return finite(pair.a.accuracy - pair.b.accuracy) if pair.a.metric == pair.b.metric else None


def finite(value: float) -> float | None:
    """None in place of what is not a number."""
    return value if abs(value) < float("inf") else None


def write_tables(folder: Path, tables: Mapping[str, Rows]) -> list[Path]:
    """Each table as CSV and Parquet; the paths. Empty ones are not written, and removed where an earlier call wrote them."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, rows in tables.items():
        for ending in (".csv", ".parquet"):
            path = folder / f"{name}{ending}"
            if not rows:
                path.unlink(missing_ok=True)
                continue
            columns = dict.fromkeys(key for row in rows for key in row)
            write_table(path, {key: [row.get(key) for row in rows] for key in columns})
            written.append(path)
    return written

"""One pair of runs: features block by block, pruning and merging stage by stage, and the maps of mean token depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrim.analysis import similarity
from vitrim.analysis.agreement import compare_merging, compare_pruning
from vitrim.analysis.heatmaps import compare_maps
from vitrim.analysis.pairs import Features
from vitrim.experiments.analyze_facts import RunFacts, pieces, spread
from vitrim.experiments.analyze_pairs import Pair
from vitrim.experiments.tracestore import TraceStore

VERSION = 2  # of the measures; results of another version are not used again
# Features of up to so many numbers are decomposed once for many pairs, and so many of them are held: at most 700 MB a process.
_PREPARED_NUMBERS, _PREPARED = 1_000_000, 48
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Task:
    """What is compared of a pair; plain values, so that it can be sent to another process and hashed.

    Attributes:
        a: folder of the one store.
        b: folder of the other.
        features: blocks of A and of B.
        kind: ``cls`` or ``mean``.
        pruning: stages of A and of B.
        merging: stages of A and of B.
        soft: whether A and whether B give whole soft maps, otherwise labels.
        swap: take B as the truth of homogeneity and completeness: the coarser clustering, as published.
        maps: mean token depth of A and of B, ``(rows, columns)``; empty when they are not compared.
        images: look at this many at most; None at all.
    """

    a: str
    b: str
    features: list[tuple[int, int]]
    kind: str
    pruning: list[tuple[int, int]]
    merging: list[tuple[int, int]]
    soft: tuple[bool, bool]
    swap: bool
    maps: list[list[list[float]]]
    images: int | None


def task_of(pair: Pair, facts: Mapping[str, RunFacts], by: str, images: int | None) -> tuple[Task, list[str]]:
    """What can be compared of a pair, and what cannot be and why."""
    a, b = pair.a, pair.b
    one, two = facts[a.digest], facts[b.digest]
    notes: list[str] = []
    blocks: list[tuple[int, int]] = []
    kind = next((kind for kind in a.kinds if kind in b.kinds), "")
    same_images = by != "dataset"
    if same_images:
        blocks = match(a.blocks, b.blocks, a.depth == b.depth) if kind else []
        for run, found, at in ((a, one, 0), (b, two, 1)):
            bad = {block: n for block, n in found.broken.items() if int(block) in [pair[at] for pair in blocks]}
            for block, count in bad.items():
                notes.append(
                    f"{run.name}: features after block {block} are not finite for {count} of {run.images} images, and were left "
                    "out; did it diverge? Otherwise record it with --precision fp32 --features-dtype float32"
                )
            blocks = [pair for pair in blocks if str(pair[at]) not in bad]
    stages = match(a.stages, b.stages, a.depth == b.depth) if same_images else []
    reduced = not (a.dense or b.dense)
    same_grid = a.grid == b.grid and a.patches == b.patches
    if reduced and not same_grid:
        notes.append(
            f"{a.name} and {b.name} cut images into different patches ({_grid(a)} and {_grid(b)}); only features can be compared"
        )
    maps: list[list[list[float]]] = []
    if reduced and same_grid and a.grid is not None and not (one.mixed or two.mixed):
        maps = [np.asarray(found.depth).reshape(a.grid).tolist() for found in (one, two)]
    patterns = stages if reduced and same_grid else []
    task = Task(
        str(a.path), str(b.path), blocks, kind, patterns if one.prunes and two.prunes else [],
        patterns if one.merges and two.merges else [], (a.soft, b.soft), by == "rate", maps, images,
    )  # fmt: skip
    return task, notes


def match(a: Sequence[int], b: Sequence[int], same_depth: bool) -> list[tuple[int, int]]:
    """Blocks of two models that belong together: of one number, or of one place in order where the models differ in depth."""
    if same_depth:
        return [(block, block) for block in a if block in b]
    return list(zip(a, b, strict=True)) if len(a) == len(b) else []


def compare(task: Mapping[str, Any], chunk: int = 256) -> dict[str, Any]:
    """Compare the two runs of a pair.

    Args:
        task: a :class:`Task` as a dictionary.
        chunk: images in memory at once.

    Returns:
        Plain JSON values: ``images``, and rows for each of ``features``, ``pruning``, ``merging`` and ``maps``; what is not a
        number is None.

    Raises:
        ValueError: when the stores have fewer than two images in common.
    """
    job = Task(**task)
    a, b = TraceStore(Path(job.a)), TraceStore(Path(job.b))
    found: dict[str, Any] = {"images": 0, "features": [], "pruning": [], "merging": [], "maps": []}
    if job.features or job.pruning or job.merging:
        at_a, at_b = common_rows(a, b, job.images)
        found["images"] = len(at_a)
        parts = list(zip(pieces(at_a, chunk), pieces(at_b, chunk), strict=True))
        found["features"] = _features(job, a, b, parts)
        found["pruning"] = _pruning(job, a, b, parts)
        found["merging"] = _merging(job, a, b, parts)
    if job.maps:
        one, two = (np.asarray(values) for values in job.maps)
        found["maps"] = [{"measure": name, "value": _number(value)} for name, value in compare_maps(one, two).items()]
    return found


def common_rows(a: TraceStore, b: TraceStore, most: int | None = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the images that are in both stores.

    Raises:
        ValueError: when there are fewer than two.
    """
    _, at_a, at_b = np.intersect1d(a.index, b.index, assume_unique=True, return_indices=True)
    if len(at_a) < 2:
        raise ValueError(
            f"'{a.path}' and '{b.path}' have {len(at_a)} images in common; record both with the same --limit: vitrim eval RUN "
            "--trace --overwrite"
        )
    chosen = spread(len(at_a), most)
    return at_a[chosen], at_b[chosen]


Parts = Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def _features(job: Task, a: TraceStore, b: TraceStore, parts: Parts) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for block_a, block_b in job.features:
        for name, value in _similarities(job.kind, a, block_a, b, block_b, parts).items():
            rows.append({"block": block_a, "block_b": block_b, "kind": job.kind, "measure": name, "value": _number(value)})
    return rows


def _similarities(kind: Any, a: TraceStore, block_a: int, b: TraceStore, block_b: int, parts: Parts) -> dict[str, float]:
    images = sum(len(one) for one, _ in parts)
    if images * max(int(store.meta["dim"]) for store in (a, b)) <= _PREPARED_NUMBERS:
        at = [np.concatenate(side) for side in zip(*parts, strict=True)]
        return similarity.compare(
            _prepared(str(a.path), a.digest, block_a, kind, at[0].tobytes()),
            _prepared(str(b.path), b.digest, block_b, kind, at[1].tobytes()),
        )
    streamed = similarity.Similarity()
    for one, two in parts:
        streamed.add(a.features(block_a, kind, one), b.features(block_b, kind, two))
    return streamed.result()


@lru_cache(maxsize=_PREPARED)
def _prepared(path: str, digest: str, block: int, kind: Any, rows: bytes) -> Features:
    """Features of a store, decomposed; ``digest`` tells a store from one that was recorded anew in its place."""
    store = TraceStore(Path(path))
    if store.digest != digest:
        raise ValueError(f"'{path}' was recorded anew while it was read; call again")
    return Features(store.features(block, kind, np.frombuffer(rows, dtype=np.int64)))


def _pruning(job: Task, a: TraceStore, b: TraceStore, parts: Parts) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for stage_a, stage_b in job.pruning:
        found = [compare_pruning(a.kept(stage_a, one), b.kept(stage_b, two)) for one, two in parts]
        rows += [{"block": stage_a, "block_b": stage_b, **row} for row in _over_images(found)]
    return rows


def _merging(job: Task, a: TraceStore, b: TraceStore, parts: Parts) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for stage_a, stage_b in job.merging:
        found: list[Mapping[str, Array]] = []
        for one, two in parts:
            pair = _grouping(a, stage_a, one, job.soft[0]), _grouping(b, stage_b, two, job.soft[1])
            found.append(compare_merging(*(pair[::-1] if job.swap else pair)))
        form = "soft" if all(job.soft) else "mixed" if any(job.soft) else "hard"
        rows += [{"block": stage_a, "block_b": stage_b, "form": form, **row} for row in _over_images(found)]
    return rows


def _grouping(store: TraceStore, stage: int, rows: npt.NDArray[np.int64], soft: bool) -> Array:
    return store.soft(stage, rows) if soft else store.assignment(stage, rows)


def _over_images(found: Sequence[Mapping[str, Array]]) -> list[dict[str, Any]]:
    """Mean and population standard deviation of each measure; images without a number (nothing kept in either) are left out."""
    rows: list[dict[str, Any]] = []
    for name in found[0] if found else ():
        values = np.concatenate([np.asarray(part[name], dtype=np.float64) for part in found])
        values = values[np.isfinite(values)]
        mean, std = (float(values.mean()), float(values.std())) if len(values) else (None, None)
        rows.append({"measure": name, "mean": mean, "std": std, "images": len(values)})
    return rows


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _grid(run: Any) -> str:
    return "unknown" if run.grid is None else f"{run.grid[0]} x {run.grid[1]}"

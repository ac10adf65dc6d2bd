"""Which runs are compared with which: pairs that differ in one thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from vitrim.experiments.analyze_facts import RunFacts
from vitrim.experiments.analyze_runs import TracedRun
from vitrim.experiments.names import name_all

By = Literal["rate", "capacity", "method", "dataset"]


@dataclass(frozen=True)
class Pair:
    """Two runs, A and B.

    Attributes:
        a: the one with the higher rate or the larger model; the first by name otherwise.
        b: the other.
        group: what both have in common, in short.
    """

    a: TracedRun
    b: TracedRun
    group: str


def select_pairs(runs: Sequence[TracedRun], facts: Mapping[str, RunFacts], by: By) -> list[Pair]:
    """The pairs of an analysis, after section 3 of "Which Tokens to Use?" (arXiv:2308.04657).

    ``rate``: same model and method, same kind of schedule at the same blocks, another schedule; A keeps more tokens.
    ``capacity``: same method and schedule, models of another width or depth; A is the larger.
    ``method``: same model and schedule, other methods; a dense model is compared with all of them.
    ``dataset``: same model, method and schedule, trained on other data.

    In all of them images, cache, head, tuning and seed are the same (``dataset``: but for the images).

    Args:
        runs: all runs.
        facts: of each, by its digest.
        by: what differs.

    Raises:
        ValueError: when there is no pair, with what is in the way.
    """
    found: list[tuple[TracedRun, TracedRun]] = []
    for first, second in combinations(runs, 2):
        if _key(first, by) != _key(second, by) or not _differ(first, second, by):
            continue
        found.append((first, second) if _order(first, facts, by) >= _order(second, facts, by) else (second, first))
    if not found:
        raise ValueError(_why(runs, by))
    names = _groups(found, by)
    return [Pair(a, b, name) for (a, b), name in zip(found, names, strict=True)]


def _key(run: TracedRun, by: By) -> tuple[Any, ...]:
    """What the two runs of a pair have in common."""
    images = () if by == "dataset" else (run.images_digest,)
    return (*images, run.extras, run.seed, *(() if by == "capacity" else (run.model,)), *_shared(run, by))


def _shared(run: TracedRun, by: By) -> tuple[Any, ...]:
    if by == "rate":
        return run.method, *run.locations
    return () if by == "method" else (run.method, run.schedule)


def _differ(a: TracedRun, b: TracedRun, by: By) -> bool:
    if by == "rate":
        return a.schedule != b.schedule
    if by == "capacity":
        return (a.dim, a.depth) != (b.dim, b.depth)
    if by == "dataset":
        return a.images_digest != b.images_digest and not (a.dense or b.dense)
    return a.method != b.method and (a.schedule == b.schedule or a.dense or b.dense)


def _order(run: TracedRun, facts: Mapping[str, RunFacts], by: By) -> tuple[float, ...]:
    if by == "rate":
        return (facts[run.digest].left,)
    return (run.dim, run.depth) if by == "capacity" else ()


def _groups(pairs: Sequence[tuple[TracedRun, TracedRun]], by: By) -> list[str]:
    """Names made of the options that the runs of each pair share and pairs do not."""
    common = [{k: v for k, v in a.options().items() if k != "seed" and b.options().get(k) == v} for a, b in pairs]
    # Of pairs with the dense model the schedule is that of the other.
    for options, (a, b) in zip(common, pairs, strict=True):
        if by == "method" and (a.dense or b.dense):
            options |= {"schedule": b.schedule if a.dense else a.schedule}
    fallback = "all methods" if by in ("method", "dataset") else "all"
    return [name or (pairs[0][0].method or fallback) for name in name_all(common, joint=" ")]


_WHAT = {
    "rate": "in the rate of their schedule alone",
    "capacity": "in the size of the model alone",
    "method": "in the method alone",
    "dataset": "in the data set alone",
}


def _why(runs: Sequence[TracedRun], by: By) -> str:
    """The other analyses that these runs allow, or the option that is in the way."""
    tests: dict[By, Callable[[TracedRun, TracedRun], bool]] = {
        other: (lambda a, b, other=other: _key(a, other) == _key(b, other) and _differ(a, b, other)) for other in _others(by)
    }
    possible = [other for other, test in tests.items() if any(test(a, b) for a, b in combinations(runs, 2))]
    if possible:
        return f"no two of the {len(runs)} runs differ {_WHAT[by]}; they can be compared with: --by {' or --by '.join(possible)}"
    if by != "dataset" and len({run.images_digest for run in runs}) == len(runs):
        sets = ", ".join(sorted({f"{run.data} {run.split}" for run in runs})[:3])
        return (
            f"no two of the {len(runs)} runs saw the same images ({sets}); evaluate all of them on one data set: "
            "vitrim eval RUN --trace --data SPEC --split SPLIT"
        )
    return f"no two of the {len(runs)} runs differ {_WHAT[by]}, with everything else the same; they are: " + "; ".join(
        run.name for run in runs[:4]
    )


def _others(by: By) -> list[By]:
    every: list[By] = ["rate", "capacity", "method", "dataset"]
    return [one for one in every if one != by]

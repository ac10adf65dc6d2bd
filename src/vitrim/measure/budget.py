"""The schedule that loses least at a budget of time or FLOPs, found on one machine for one model and method."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.core.attach import reduce
from vitrim.core.backbone import find_backbone
from vitrim.core.reducer import Reducer
from vitrim.core.registry import METHODS, SCHEDULES, SpecError, spec
from vitrim.core.schedule import Course, Keep
from vitrim.core.sites import resolve_site
from vitrim.measure.accuracy import Images, batch_of, top1
from vitrim.measure.distortion import Judge, distortion_table
from vitrim.measure.flops import count_flops
from vitrim.measure.latency import LatencyModel, Progress, measure_latency
from vitrim.measure.plan import Plan, Point, Store, Target
from vitrim.measure.search import Costs, FlopsCosts, Found, Space, search
from vitrim.measure.stages import path_of
from vitrim.measure.throughput import Timing, interleave

BUDGETS = (0.8, 0.7, 0.6, 0.5, 0.4)
# A measured share this near to the target is the target; nearer is within the noise of the clock.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Question:
    """What is fixed while a schedule is sought."""

    model: nn.Module
    method: Reducer
    target: Target
    batch: Tensor
    patches: int
    depth: int
    site: str
    layers: tuple[int, ...]
    fixed_at: tuple[int, ...]
    rounds: int
    evaluations: int
    seed: int
    say: Progress


def solve(
    model: nn.Module,
    method: str | Reducer,
    target: str | Target,
    images: Images,
    *,
    labels: Tensor | None = None,
    report: Images | None = None,
    budgets: Sequence[float] = BUDGETS,
    batch_size: int = 64,
    evaluations: int = 60,
    rounds: int = 7,
    at: Sequence[int] | None = None,
    seed: int = 0,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Find the token counts per block that lose least at a share of the dense model's time or FLOPs.

    Args:
        model: a dense model, on the device and in the type to run.
        method: the method; one without learned parts, which would belong to one schedule.
        target: ``"latency=0.6"`` or ``"flops=0.6"``.
        images: calibration images, ``(N, C, H, W)`` or a sequence of ``(C, H, W)``; the schedule is chosen on them.
        labels: ``(M,)`` classes of the images of the report, or None.
        report: other images, on which the curve is measured; the calibration images when None.
        budgets: shares for the curve, besides the target.
        batch_size: images per batch, in the timings too.
        evaluations: neighbouring schedules to try at the target; a third of it at the other budgets.
        rounds: readings of the clock.
        at: blocks that may reduce; all when None.
        seed: of the search, and of methods with randomness.
        store: JSON file that keeps what was measured, for the next time.
        progress: called with a line of text before each step.

    Raises:
        SpecError: for a method that has learned parts, or no counts to choose.
        ValueError: without images, for a target out of (0, 1), or one that the method cannot reach, with the smallest.
    """
    target = Target.parse(target) if isinstance(target, str) else target
    if len(images) < 2:
        raise ValueError(f"{len(images)} calibration images say nothing; give some hundred")
    question = _question(model, METHODS.build(method), target, images, batch_size, rounds, evaluations, at, seed, progress)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = images[order] if isinstance(images, Tensor) else [images[i] for i in order]
    judge = Judge(model, question.method, mixed, None, batch_size, seed)
    kept = Store(store, _key(question, judge))
    judge.known = kept.scores
    try:
        space = Space(question.method, _costs(question, kept), question.patches, question.depth, question.layers)
        shares = sorted({target.share, *(b for b in budgets if 0 < b < 1)}, reverse=True)
        found = _find(question, space, judge, shares, kept)
        critic = Judge(model, question.method, images if report is None else report, labels, batch_size, seed)
        critic.known = kept.values.setdefault(f"report {critic.fingerprint} {labels is not None}", {})
        plan = _finish(question, space, judge, critic, found, kept)
        return replace(plan, report_images=0 if report is None else len(report))
    finally:
        kept.save()


def _question(
    model: nn.Module, method: Reducer, target: Target, images: Images, batch_size: int, rounds: int, evaluations: int,
    at: Sequence[int] | None, seed: int, progress: Progress | None,
) -> Question:  # fmt: skip
    """The question, refused where it has no answer."""
    name = spec(method)
    if method.family == "fixed":
        raise SpecError(f"{name} keeps a pattern that no schedule changes much; choose a method that looks at the image")
    if "patch count" in method.needs:
        raise SpecError(
            f"{name} has learned parts that are made for one number of patches at each block, so counts cannot be varied; "
            "choose a method without them, such as tome or atc, or train it for the schedule found for one of those"
        )
    if "parameters" in method.needs:
        raise SpecError(
            f"{name} has learned parts that belong to the blocks of one schedule; choose one without, such as tome or atc"
        )
    backbone = find_backbone(model)
    layout, blocks = backbone.layout(model), backbone.blocks(model)
    batch = batch_of(images, 0, batch_size, model)
    patches = layout.grid[0] * layout.grid[1] if layout.grid else 0
    site, _ = resolve_site(method.site, backbone, blocks)
    if not patches:
        raise ValueError("this model takes any image size; load it with a fixed one, such as img_size=224")
    depth = len(blocks)
    first = 1 if site == "before" and method.reads_attention else 0
    layers = tuple(range(first, depth)) if at is None else tuple(sorted(set(at)))
    if any(not first <= layer < depth for layer in layers):
        raise ValueError(f"at: blocks {first} to {depth - 1} of this model may reduce; got {list(layers)}")
    fixed = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))
    return Question(model, method, target, batch, patches, depth, site, layers, fixed, rounds, evaluations, seed, progress or str)


def _key(question: Question, judge: Judge) -> dict[str, Any]:
    """What the measurements depend on; answers of the dense model tell weights and images apart."""
    device = question.batch.device
    return {
        "method": spec(question.method),
        "dense": judge.fingerprint,
        "images": len(judge.images),
        "batch": list(question.batch.shape),
        "dtype": str(question.batch.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "seed": question.seed,
        "torch": str(torch.__version__),
    }


def _costs(question: Question, kept: Store) -> Costs:
    if question.target.kind == "flops":
        prefix = find_backbone(question.model).layout(question.model).prefix
        return FlopsCosts.of(question.model, question.patches, prefix, question.site)
    if "latency" not in kept.values:
        found = measure_latency(
            question.model, question.method, question.batch, question.patches,
            rounds=question.rounds, seed=question.seed, progress=question.say,
        )  # fmt: skip
        kept.values["latency"] = found.to_dict()
        kept.save()
    return LatencyModel.from_dict(kept.values["latency"])


def _find(question: Question, space: Space, judge: Judge, shares: Sequence[float], kept: Store) -> dict[float, Found]:
    """The best schedule at every share that the method can reach; the target's last, since the others give it starts."""
    table = distortion_table(judge, space.grid, space.layers, space.patches, space.depth, progress=question.say)
    kept.save()
    # Guesses of how the losses of several layers add up; the calibration images judge.
    tables = [space.tables(table**power, relative) for power in (0.5, 1.0, 2.0) for relative in (False, True)]
    target = question.target.share
    least = space.smallest(tables[0])
    if target < least:
        raise ValueError(
            f"target {question.target} cannot be reached by {spec(question.method)} here: the smallest is {least:.3f}; ask for "
            f"{question.target.kind}={math.ceil(100 * least) / 100:g} or more"
        )
    found: dict[float, Found] = {}
    stopped = False
    for share in [s for s in shares if s != target and s >= least] + [target]:
        starts = [space.solve(t, share) for t in tables] + [f.path for f in found.values()]
        fixed = fixed_rate(question, space, share)
        starts += [] if fixed is None else [fixed[1]]
        limit = 0 if stopped else question.evaluations if share == target else question.evaluations // 3
        found[share] = search(space, judge, share, starts, limit, question.seed, question.say)
        stopped = stopped or found[share].interrupted
        kept.save()
    return found


def fixed_rate(question: Question, space: Space, share: float) -> tuple[str, tuple[int, ...]] | None:
    """The largest ``keep(rate)`` at the usual locations within the share, and its counts; None where there is none."""
    for per_mille in range(995, 0, -5):
        schedule = Keep(per_mille / 1000, question.fixed_at)
        path = path_of(question.method.plan(Course(schedule, space.patches, space.depth)), space.patches, space.depth)
        if space.share(path) <= share:
            return f"keep(rate={schedule.rate:g}, at={list(question.fixed_at)})", path
    return None


def _finish(question: Question, space: Space, judge: Judge, critic: Judge, found: dict[float, Found], kept: Store) -> Plan:
    """Verify the target, correct it once, and measure the curve."""
    share, interrupted, ratio = question.target.share, any(f.interrupted for f in found.values()), 1.0
    if question.target.kind == "latency":
        found[share], ratio = _corrected(question, space, judge, found, 0 if interrupted else question.evaluations // 3)
        kept.save()
    rows = [("found", f.schedule, b, f.path) for b, f in found.items()]
    # One more rival below the smallest share, so that the found schedule there lies between two of them.
    rivals = {b: fixed_rate(question, space, b) for b in [*found, round(0.92 * min(found), 3)]}
    rows += [("fixed", rival[0], b, rival[1]) for b, rival in rivals.items() if rival is not None]
    points, dense_top1 = _measure(question, space, critic, rows)
    points = [replace(p, predicted=p.predicted * ratio) if p.kind == "found" and p.budget == share else p for p in points]
    mine = next(p for p in points if p.kind == "found" and p.budget == share)
    value = mine.latency if question.target.kind == "latency" else mine.flops
    return Plan(
        spec(question.method), question.target, mine.schedule, mine.tokens, mine.predicted, value, tuple(points), dense_top1,
        len(judge.images), len(critic.images), interrupted,
    )  # fmt: skip


def _corrected(
    question: Question, space: Space, judge: Judge, found: dict[float, Found], evaluations: int
) -> tuple[Found, float]:
    """The schedule whose measured time is nearest to the target, and the factor by which the model of the costs is off.

    What misses the target by more than its readings scatter is sought again once, with the budget divided by the miss.
    """
    share = question.target.share
    first = found[share]
    question.say("time of the schedule against the dense model")
    timing = _times(question, [first.schedule], 2)[0]
    low, high = sorted(1 / speedup for speedup in timing.speedup_quartiles)
    if abs(share * timing.speedup - 1) <= TOLERANCE or low <= share <= high:
        return first, 1.0
    ratio = 1 / timing.speedup / space.share(first.path)
    starts = [f.path for f in found.values()]
    try:
        second = search(space, judge, share / ratio, starts, evaluations, question.seed, question.say)
    except ValueError:  # a method at its limit stays where it is
        return first, ratio
    question.say("time of the corrected schedule against the dense model")
    misses = [abs(share * timing.speedup - 1) for timing in _times(question, [first.schedule, second.schedule], 2)]
    # Another program may have been what was corrected for.
    return (second, ratio) if misses[1] < misses[0] else (first, 1.0)


def _measure(
    question: Question, space: Space, critic: Judge, rows: Sequence[tuple[str, str, float, tuple[int, ...]]]
) -> tuple[list[Point], float | None]:
    question.say("time of all schedules, in turns with the dense model")
    times = [1 / timing.speedup for timing in _times(question, [row[1] for row in rows])]
    flops = count_flops(question.model, question.batch[:1]).flops
    points: list[Point] = []
    for i, (kind, schedule, budget, path) in enumerate(rows):
        question.say(f"images of the report: {i + 1}/{len(rows)} schedules")
        score = critic.score(schedule)
        assert score is not None  # nothing to beat
        reduced = _copy(question, schedule)
        points.append(
            Point(
                kind, schedule, _tokens(path, space.patches), budget, space.share(path), times[i],
                count_flops(reduced, question.batch[:1]).flops / flops, score.loss, score.agreement, score.top1,
            )
        )  # fmt: skip
    return points, None if critic.labels is None else top1(critic.dense, critic.labels)


def _tokens(path: Sequence[int], patches: int) -> tuple[int, ...]:
    return tuple(after for before, after in pairwise([patches, *path]) if after != before)


def _times(question: Question, schedules: Sequence[str], factor: int = 1) -> list[Timing]:
    """Times in turns with the dense model, in ``factor`` times as many rounds as asked for."""

    def call(model: nn.Module) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return model(question.batch)

        return run

    runs = {"dense": call(_copy(question, None))} | {s: call(_copy(question, s)) for s in dict.fromkeys(schedules)}
    timings = interleave(runs, factor * question.rounds, 1)
    return [timings[schedule] for schedule in schedules]


def _copy(question: Question, schedule: str | None) -> nn.Module:
    """A copy that shares its weights, reduced by the schedule or not."""
    tensors = [*question.model.parameters(), *question.model.buffers()]
    model = copy.deepcopy(question.model, {id(t): t for t in tensors}).eval()
    if schedule is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # counts that a method cannot reach are shown as they are
            reduce(model, question.method, SCHEDULES.build(schedule), seed=question.seed)
    return model

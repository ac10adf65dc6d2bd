"""The time of a block as a function of its token counts, read inside whole forward passes of the reduced model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from vitrim.core.attach import reduce
from vitrim.core.backbone import find_backbone
from vitrim.core.reducer import Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Counts
from vitrim.core.sites import resolve_site
from vitrim.measure.stages import follow, path_of, spec_of

# Shares of the patches that the probes leave, cut by cut: small and large cuts at every length.
LEVELS = (
    (0.97, 0.93, 0.70, 0.66, 0.45),
    (0.90, 0.60, 0.56, 0.30, 0.27),
    (0.80, 0.50, 0.47, 0.20, 0.17),
    (0.65, 0.62, 0.35, 0.32, 0.10),
    (0.50, 0.40, 0.37, 0.15, 0.05),
    (0.85, 0.75, 0.55, 0.25, 0.22),
)
KNOTS = 7
Progress = Callable[[str], object]


@dataclass(frozen=True)
class LatencyModel:
    """Time of a reduced model as a share of the dense model's, from the patch tokens after each block.

    Attributes:
        patches: patch tokens of the input.
        site: where the method reduces.
        counts: patch tokens at which blocks without a cut were timed, ascending.
        blocks: share of the dense model's time that one such block takes, never falling with the count.
        step: what a cut from n to m tokens adds: a constant, and factors of n / patches, of its square, and of
            -(n - m) / patches, which is the part of the block that runs on fewer tokens already.
        rest: share of everything outside the blocks (patch embedding, head).
        dense_seconds: median seconds of the dense model for one batch.
    """

    patches: int
    site: str
    counts: tuple[int, ...]
    blocks: tuple[float, ...]
    step: tuple[float, float, float, float]
    rest: float
    dense_seconds: float

    def block(self, count: int) -> float:
        """Share of one block on ``count`` patch tokens that cuts nothing."""
        return float(np.interp(count, self.counts, self.blocks))

    def cost(self, layer: int, before: int, after: int) -> float:
        """Share of a block that gets ``before`` patch tokens and leaves ``after``; the same in every layer."""
        if after == before:
            return self.block(before)
        base = self.block(after if self.site == "before" else before)
        return max(base + float(np.dot(_features(before, after, self.patches), self.step)), 0.0)

    def predict(self, path: Sequence[int]) -> float:
        """Share of the whole model.

        Args:
            path: patch tokens after each block.
        """
        return self.rest + sum(self.cost(i, *pair) for i, pair in enumerate(pairwise([self.patches, *path])))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> LatencyModel:
        """The model that :meth:`to_dict` wrote."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return LatencyModel(**plain)


@dataclass(frozen=True)
class Reading:
    """What blocks with the same counts took.

    Attributes:
        before: patch tokens that come in.
        after: patch tokens that go out.
        time: share of the dense model's time in the same round, median of all readings.
        readings: how many there were.
    """

    before: int
    after: int
    time: float
    readings: int = 1


def measure_latency(
    model: nn.Module,
    method: str | Reducer,
    batch: Tensor,
    patches: int,
    *,
    rounds: int = 7,
    warmup: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> LatencyModel:
    """Time the blocks of the dense model and of probes that cut to different counts, in turns, and fit the model.

    Readings are taken around every block of ordinary forward passes. So they hold what a block costs in its place: the
    method's own work, proportional attention, positions that follow the tokens. Each is divided by the dense model's time in
    the same round, which takes out the drift of a shared machine.

    Args:
        model: a dense model, on the device and in the type to measure.
        method: the method.
        batch: ``(B, C, H, W)`` images of the batch size to measure.
        patches: patch tokens of such an image.
        rounds: readings of every probe.
        warmup: passes of each before the first reading.
        seed: of methods with randomness.
        progress: called with a line of text before each round.

    Raises:
        ValueError: without rounds, or for a reduction around sub-modules.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more; got {rounds}")
    backbone = find_backbone(model)
    blocks = backbone.blocks(model)
    reducer = METHODS.build(method)
    site, _ = resolve_site(reducer.site, backbone, blocks)
    probes = [_Probe(model, None, seed)]
    for schedule in probe_schedules(reducer, patches, len(blocks), site):
        probes += [_Probe(model, (reducer, schedule), seed), probes[0]]
    # The dense model between all probes: everything is divided by its time, so that its noise would be in all of it.
    dense: list[float] = []
    rests: list[float] = []
    readings: dict[tuple[int, int], list[float]] = {}
    for turn in range(-warmup, rounds):
        if progress is not None:
            progress(f"time of a block by token count: {'warm-up' if turn < 0 else f'round {turn + 1}/{rounds}'}")
        found = [(probe, *probe.read(batch)) for probe in probes]
        if turn < 0:
            continue
        passes = [(seconds, times) for probe, seconds, times in found if probe is probes[0]]
        whole = median(seconds for seconds, _ in passes)
        dense.append(whole)
        rests += [1 - sum(times) / seconds for seconds, times in passes]
        for probe, _, times in found:
            for pair, seconds in zip(probe.pairs(patches), times, strict=True):
                # Blocks before the first cut are the dense model's, and read there.
                if pair != (patches, patches) or probe is probes[0]:
                    readings.setdefault(pair, []).append(seconds / whole)
    flat = [Reading(n, m, median(times), len(times)) for (n, m), times in readings.items()]
    return fit(flat, patches, site, max(median(rests), 0.0), median(dense))


def probe_schedules(reducer: Reducer, patches: int, depth: int, site: str = "inside") -> list[Counts]:
    """Schedules that lead through all counts, with blocks between the cuts that cut nothing."""
    first = 1 if site == "before" else 0
    cuts = max(1, min(len(LEVELS[0]), (depth - first) // 2))
    at = [first + (depth - first) * i // cuts for i in range(cuts)]
    found: dict[str, Counts] = {}
    for levels in LEVELS:
        wanted = [patches * levels[max(i for i, block in enumerate(at) if block <= layer)] for layer in range(at[0], depth)]
        targets = follow(reducer, [patches] * at[0] + wanted, at, patches)
        if targets:
            found[spec_of(targets)] = Counts(list(targets.values()), list(targets))
    return list(found.values())


def fit(readings: Sequence[Reading], patches: int, site: str, rest: float, seconds: float) -> LatencyModel:
    """The model that explains the readings: a rising, piecewise linear curve for the block, and the terms of a cut.

    Both at once, by least squares of the relative error with coefficients that are never negative.

    Raises:
        ValueError: when no block without a cut was read.
    """
    plain = [r.before for r in readings if r.before == r.after]
    if not plain:
        raise ValueError("no block without a cut was timed; a model of at least three blocks is needed")
    inner = np.quantile(plain, np.linspace(0, 1, min(KNOTS, len(set(plain)))))
    knots = np.unique(np.round([*inner, patches]))
    rows: list[np.ndarray] = []
    for r in readings:
        cut = np.zeros(4) if r.before == r.after else np.array(_features(r.before, r.after, patches))
        if site != "inside":
            cut[3] = 0  # the whole block runs on one count
        rows.append(np.concatenate([_ramps(r.after if site == "before" else r.before, knots), cut]))
    times = np.array([r.time for r in readings])
    weight = np.sqrt([r.readings for r in readings]) / np.maximum(times, 1e-9)
    solution, _ = nnls(np.array(rows) * weight[:, None], times * weight)
    blocks = solution[: len(knots)].cumsum()
    step = solution[len(knots) :]
    return LatencyModel(patches, site, tuple(int(k) for k in knots), tuple(blocks.tolist()), tuple(step.tolist()), rest, seconds)


def _ramps(count: int, knots: np.ndarray) -> np.ndarray:
    """The curve's terms at ``count``: the first value, then how much of each rise has been passed."""
    if len(knots) == 1:
        return np.ones(1)
    passed = np.clip((count - knots[:-1]) / np.diff(knots), 0, 1)
    return np.concatenate([[1.0], passed])


def _features(before: int, after: int, patches: int) -> tuple[float, float, float, float]:
    n, m = before / patches, after / patches
    return 1.0, n, n * n, m - n


class _Probe:
    """A copy of the model that shares its weights, reduced or not, with clocks around its blocks."""

    def __init__(self, model: nn.Module, run: tuple[Reducer, Counts] | None, seed: int) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.model: Any = copy.deepcopy(model, {id(t): t for t in tensors}).eval()
        self.blocks = find_backbone(self.model).blocks(self.model)
        self.reduction = None if run is None else reduce(self.model, *run, seed=seed)

    def pairs(self, patches: int) -> list[tuple[int, int]]:
        """Patch tokens before and after every block."""
        plan = {} if self.reduction is None else self.reduction.plan(patches)
        return list(pairwise([patches, *path_of(plan, patches, len(self.blocks))]))

    def read(self, batch: Tensor) -> tuple[float, list[float]]:
        """Seconds of one pass, and of each of its blocks."""
        with _clocks(self.blocks, batch.device) as clocks:
            whole = clocks.whole(self.model, batch)
        return whole, clocks.seconds()


class _Clocks:
    """Clock readings around every block of one forward pass; events in the stream on a GPU, which no block waits for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[Any, Any]] = []
        self._open: Any = None

    def start(self, *_: Any) -> None:
        self._open = self._now()

    def stop(self, *_: Any) -> None:
        self.marks.append((self._open, self._now()))

    def whole(self, model: nn.Module, batch: Tensor) -> float:
        """Run the model once; its seconds."""
        begin = self._now()
        with torch.no_grad():
            model(batch)
        return self._between(begin, self._now())

    def seconds(self) -> list[float]:
        """Seconds of every block."""
        return [self._between(*pair) for pair in self.marks]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if self.device.type != "cuda":
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


@contextmanager
def _clocks(blocks: Sequence[nn.Module], device: torch.device) -> Generator[_Clocks]:
    clocks = _Clocks(device)
    hooks = [block.register_forward_pre_hook(clocks.start) for block in blocks]
    hooks += [block.register_forward_hook(clocks.stop) for block in blocks]
    try:
        yield clocks
    finally:
        for hook in hooks:
            hook.remove()

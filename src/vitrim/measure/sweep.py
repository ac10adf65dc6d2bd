"""Many methods on one model: accuracy, FLOPs and time of each against the dense model, as rows of one table."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.core.attach import reduce
from vitrim.core.backbone import find_backbone
from vitrim.core.reduction import Reduction
from vitrim.core.registry import METHODS, SCHEDULES, spec
from vitrim.measure.accuracy import Images, agreement, batch_of, predict, top1
from vitrim.measure.flops import count_flops, parameters
from vitrim.measure.memory import peak_memory
from vitrim.measure.report import plot as plot
from vitrim.measure.report import rows_to_csv as rows_to_csv
from vitrim.measure.report import rows_to_json as rows_to_json
from vitrim.measure.report import rows_to_markdown as rows_to_markdown
from vitrim.measure.throughput import Timing, interleave

DENSE = "dense"
Run = tuple[str, str]
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """One method at one schedule.

    Attributes:
        method: canonical spec of the method, or ``dense``.
        schedule: canonical spec of the schedule, empty for the dense model.
        tokens: patch tokens after each stage in the timed batch; the mean over images for ragged methods.
        gflops: multiply-adds / 1e9 per image, the method's own work included.
        flop_speedup: FLOPs of the dense model / FLOPs of this one.
        params: parameters, those of a learned method included.
        images_per_second: in batches of ``batch_size``, from the median time.
        speedup: median over the rounds of the time of the dense model / time of this one.
        realised: ``(speedup - 1) / (flop_speedup - 1)``, the share of the promised gain that the clock shows; None where
            FLOPs fall by less than 2 %.
        latency_ms: milliseconds for a single image.
        peak_mb: activation memory of one batch in MB, see :func:`vitrim.measure.memory.peak_memory`.
        top1: accuracy in [0, 1], when there are labels.
        agreement: share of images predicted as by the dense model.
        note: what the reader must know, such as that learned parts are untrained, or why there are no numbers.
    """

    method: str
    schedule: str
    tokens: tuple[int, ...] = ()
    gflops: float = float("nan")
    flop_speedup: float = float("nan")
    params: int = 0
    images_per_second: float = float("nan")
    speedup: float = float("nan")
    realised: float | None = None
    latency_ms: float | None = None
    peak_mb: float | None = None
    top1: float | None = None
    agreement: float | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether the method could not be measured; the reason is the note."""
        return self.images_per_second != self.images_per_second


@dataclass(frozen=True)
class _Setup:
    """What all rows of a sweep share."""

    model: nn.Module
    images: Images
    labels: Tensor | None
    batch_size: int
    rounds: int
    warmup: int
    seed: int
    compile: bool
    extras: bool
    learned: Mapping[str, Tensor]
    progress: Progress

    @property
    def batch(self) -> Tensor:
        return batch_of(self.images, 0, self.batch_size, self.model)


@dataclass(frozen=True)
class _Dense:
    """What every row is compared with."""

    run: Callable[[], object]
    single: Callable[[], object]
    logits: Tensor
    flops: int


def sweep(model: nn.Module, images: Images, labels: Tensor | None = None, runs: Sequence[Run] = (), **options: Any) -> list[Row]:
    """As :func:`sweep_rows`, in a list. Ctrl-C ends it early with the rows that are finished, and a warning."""
    rows: list[Row] = []
    try:
        for row in sweep_rows(model, images, labels, runs, **options):
            rows.append(row)
    except KeyboardInterrupt:
        warnings.warn(f"interrupted: {len(rows)} of {len(runs) + 1} rows", stacklevel=2)
    return rows


def sweep_rows(
    model: nn.Module,
    images: Images,
    labels: Tensor | None = None,
    runs: Sequence[Run] = (),
    *,
    batch_size: int = 64,
    rounds: int = 5,
    warmup: int = 1,
    seed: int = 0,
    compile: bool = False,
    extras: bool = True,
    learned: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> Iterator[Row]:
    """Measure the dense model, then each run, giving a row as soon as it is finished.

    Accuracy comes from all images, FLOPs, tokens, time and memory from the first batch. Each method is timed in turns
    with the dense model (see :func:`vitrim.measure.throughput.interleave`), so ratios hold on a machine that drifts,
    also between rows. The model itself is not touched; every row works on a copy that shares its weights.

    Args:
        model: a dense model, on the device and in the type to measure.
        images: ``(N, C, H, W)`` or a sequence of ``(C, H, W)``, ready for the model.
        labels: ``(N,)`` classes, or None: then agreement with the dense model alone is reported.
        runs: pairs of a method spec and a schedule spec.
        batch_size: images per batch.
        rounds: readings of the clock per row.
        warmup: untimed calls before the first reading.
        seed: of methods with randomness, and of the initial values of learned ones.
        compile: time models under ``torch.compile``; compilation happens in the warm-up.
        extras: measure latency of one image and peak memory, too.
        learned: weights of a learned method by the names of ``model.reduction``; used by the runs that they fit.
        progress: called with a line of text before each step.

    Yields:
        The dense row, then one row for each run, in order. A method that cannot run gives a row with the reason as
        its note.

    Raises:
        SpecError: for a spec that cannot be right on any model, before anything is measured.
        ValueError: without images, or for a schedule with blocks that the model does not have.
    """
    if len(images) == 0:
        raise ValueError("no images to measure with")
    if isinstance(getattr(model, "reduction", None), Reduction):
        raise ValueError("this model is reduced already; call model.reduction.detach() first")
    runs = check_runs(model, runs)
    size = min(batch_size, len(images))
    say = progress or str  # str() of a line does nothing
    setup = _Setup(_shared_copy(model).eval(), images, labels, size, rounds, warmup, seed, compile, extras, learned or {}, say)
    say("dense: predictions and time")
    row, dense = _measure_dense(setup)
    yield row
    for number, (method, schedule) in enumerate(runs, 1):
        say(f"{number}/{len(runs)} {method}  {schedule}")
        try:
            row = _measure(setup, dense, method, schedule)
        except Exception as error:
            # One method that does not work on this model must not cost the others; the reason stays visible.
            row = Row(method, schedule, note=f"{type(error).__name__}: {error}".splitlines()[0])
        yield row


def check_runs(model: nn.Module, runs: Sequence[Run]) -> list[Run]:
    """The runs in canonical spelling, refused early when one can never work on this model.

    Raises:
        SpecError: for an unknown name or setting.
        ValueError: for a schedule with blocks that the model does not have.
    """
    backbone = find_backbone(model)
    grid, depth = backbone.layout(model).grid, len(backbone.blocks(model))
    checked = []
    for method, schedule in runs:
        SCHEDULES.build(schedule).targets(grid[0] * grid[1] if grid else 196, depth)
        METHODS.build(method)
        # As written, not with defaults left out: a table that says "keep" alone does not say how many tokens stay.
        checked.append((spec(method), spec(schedule)))
    return checked


def _measure_dense(setup: _Setup) -> tuple[Row, _Dense]:
    logits = predict(setup.model, setup.images, setup.batch_size)
    flops = count_flops(setup.model, setup.batch).flops
    timed: Any = torch.compile(_shared_copy(setup.model)) if setup.compile else setup.model
    dense = _Dense(_call(timed, setup.batch), _call(timed, setup.batch[:1]), logits, flops)
    timing = interleave({DENSE: dense.run}, setup.rounds, setup.warmup)[DENSE]
    single = interleave({DENSE: dense.single}, setup.rounds, setup.warmup)[DENSE] if setup.extras else None
    row = Row(
        method=DENSE,
        schedule="",
        gflops=flops / 2e9 / setup.batch_size,
        flop_speedup=1.0,
        params=parameters(setup.model),
        images_per_second=timing.per_second(setup.batch_size),
        speedup=1.0,
        latency_ms=single.milliseconds if single else None,
        peak_mb=_peak_mb(setup, setup.model) if setup.extras else None,
        top1=None if setup.labels is None else top1(logits, setup.labels),
        agreement=1.0,
    )
    return row, dense


def _measure(setup: _Setup, dense: _Dense, method: str, schedule: str) -> Row:
    model: Any = _shared_copy(setup.model)
    with torch.random.fork_rng():
        torch.manual_seed(setup.seed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            reduction = reduce(model, method, schedule, seed=setup.seed)
    trained = reduction.load_learned(setup.learned)
    logits = predict(model, setup.images, setup.batch_size)
    flops = count_flops(model, setup.batch).flops
    tokens = _tokens_left(reduction)
    peak = _peak_mb(setup, model) if setup.extras else None
    timed: Any = torch.compile(model) if setup.compile else model
    timing = _against(dense.run, _call(timed, setup.batch), setup)
    single = _against(dense.single, _call(timed, setup.batch[:1]), setup) if setup.extras else None
    gain = dense.flops / flops
    return Row(
        method=method,
        schedule=schedule,
        tokens=tokens,
        gflops=flops / 2e9 / setup.batch_size,
        flop_speedup=gain,
        params=parameters(model),
        images_per_second=timing.per_second(setup.batch_size),
        speedup=timing.speedup,
        realised=realised_fraction(timing.speedup, gain),
        latency_ms=single.milliseconds if single else None,
        peak_mb=peak,
        top1=None if setup.labels is None else top1(logits, setup.labels),
        agreement=agreement(logits, dense.logits),
        note="; ".join([*([] if trained else ["untrained"]), *(str(w.message).split(":")[0] for w in said)]),
    )


def realised_fraction(speedup: float, flop_speedup: float) -> float | None:
    """``(speedup - 1) / (flop_speedup - 1)``; None where FLOPs fall by less than 2 % and it would be noise."""
    return (speedup - 1) / (flop_speedup - 1) if flop_speedup >= 1.02 else None


def _against(first: Callable[[], object], second: Callable[[], object], setup: _Setup) -> Timing:
    return interleave({DENSE: first, "this": second}, setup.rounds, setup.warmup)["this"]


def _call(model: nn.Module, batch: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(batch)

    return run


def _peak_mb(setup: _Setup, model: nn.Module) -> float:
    batch = setup.batch
    return peak_memory(lambda: model(batch), batch.device) / 1e6


def _tokens_left(reduction: Reduction) -> tuple[int, ...]:
    prefix, left = reduction.layout.prefix, []
    for step in reduction.trace.values():
        valid = step.map.valid
        count = step.map.m if valid is None else valid.sum(dim=1).float().mean().item()
        left.append(round(count - prefix))
    return tuple(left)


def _shared_copy(model: nn.Module) -> nn.Module:
    """A copy that shares weights and buffers: rows cannot disturb each other, and a large model is stored once."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})

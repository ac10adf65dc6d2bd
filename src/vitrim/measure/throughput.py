"""Wall-clock time, measured so that two numbers can be compared: interleaved, synchronised, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch


@dataclass(frozen=True)
class Timing:
    """Times of one callable.

    Attributes:
        seconds: seconds per call, one number for each round.
        ratios: how many times faster than the first callable, in the same round; all 1 for the first one.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds per call."""
        return _quartiles(self.seconds)

    @property
    def speedup(self) -> float:
        """Median over the rounds of the ratio against the first callable.

        Rounds that a busy machine slows down slow both, so this holds better than a ratio of medians.
        """
        return median(self.ratios)

    @property
    def speedup_quartiles(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        return _quartiles(self.ratios)

    @property
    def milliseconds(self) -> float:
        """Median milliseconds per call: the latency, for a batch of one."""
        return 1e3 * self.median

    def per_second(self, batch: int) -> float:
        """Images per second for calls that process ``batch`` images."""
        return batch / self.median


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int = 10, warmup: int = 2, repeat: int = 1) -> dict[str, Timing]:
    """Time callables in turn: A B C, A B C, ... after a warm-up of each.

    Machines drift (heat, other users, caches): what is measured one after the other is not comparable, what is
    measured in turns is. CUDA is synchronised before every clock reading, if it is in use.

    Args:
        runs: callables by name; the first one is the reference of the ratios.
        rounds: number of rounds.
        warmup: calls of each before the first round (compilation, autotuning, allocation).
        repeat: calls for one reading, for calls shorter than about a millisecond.

    Raises:
        ValueError: without anything to run.
    """
    if not runs or rounds < 1 or repeat < 1:
        raise ValueError(f"nothing to time: {len(runs)} callables, {rounds} rounds, {repeat} calls each; all need at least 1")
    for run in runs.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(_clock(run, repeat))
    first = next(iter(seconds.values()))
    return {
        name: Timing(tuple(times), tuple(a / b for a, b in zip(first, times, strict=True))) for name, times in seconds.items()
    }


def _clock(run: Callable[[], object], repeat: int) -> float:
    _synchronise()
    start = perf_counter()
    for _ in range(repeat):
        run()
    _synchronise()
    return (perf_counter() - start) / repeat


def _synchronise() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high

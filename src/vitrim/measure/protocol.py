"""The timer of the published throughput benchmarks: a series of runs of which a share is thrown out, taken in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import torch

from vitrim.measure.throughput import Timing

LEAST = 3
Call = Callable[[], object]


@dataclass(frozen=True)
class Protocol:
    """How a series is timed.

    The benchmarks of ToMe and ATC run a model ``runs`` times in a row on one fixed input, restart clock and counter at
    run ``int(runs * throw_out)``, and report images counted / time elapsed. So does this, with two additions. What is
    compared takes turns, so that ratios hold on a machine that drifts, and every turn is a reading, which gives quartiles.
    And a series is cut where it would take longer than ``seconds``.

    Attributes:
        runs: runs of a series; 40 in the libraries, 1000 and 2000 in the scripts of ATC.
        throw_out: share of the runs at the start that is not counted, in [0, 1).
        seconds: most seconds of a series, which is cut to fewer runs, though never under 3 counted ones; 0 cuts nothing.
        turns: most turns in which the counted runs are taken; 1 runs every series as a whole, as published.
    """

    runs: int = 40
    throw_out: float = 0.25
    seconds: float = 2.0
    turns: int = 10

    def __post_init__(self) -> None:
        if self.runs < 1 or self.turns < 1:
            raise ValueError(f"a series has at least 1 run and 1 turn; got {self.runs} runs, {self.turns} turns")
        if not 0 <= self.throw_out < 1:
            raise ValueError(f"the share of runs thrown out is in [0, 1); got {self.throw_out}")
        if self.seconds < 0:
            raise ValueError(f"seconds of a series are 0 (no limit) or more; got {self.seconds}")

    def length(self, seconds_per_run: float) -> int:
        """Runs of a series, those to throw out included, for calls that take this long."""
        if not self.seconds or self.runs * seconds_per_run <= self.seconds:
            return self.runs
        # 3 runs are counted when int() throws out the rest of so many.
        least = math.ceil(LEAST / (1 - self.throw_out))
        return min(self.runs, max(least, int(self.seconds / seconds_per_run)))

    def thrown(self, runs: int) -> int:
        """How many of ``runs`` are not counted; at this run, clock and counter start again."""
        return int(runs * self.throw_out)


@dataclass(frozen=True)
class Series:
    """The counted part of a series.

    Attributes:
        timing: seconds per run, one number for each turn, and ratios against the first series in the same turn.
        counts: runs in each turn.
    """

    timing: Timing
    counts: tuple[int, ...]

    @property
    def elapsed(self) -> float:
        """Seconds of all counted runs."""
        return sum(seconds * count for seconds, count in zip(self.timing.seconds, self.counts, strict=True))

    def throughput(self, batch: int) -> float:
        """Images counted / time elapsed, the published number."""
        return batch * sum(self.counts) / self.elapsed


def time_series(
    calls: Mapping[str, Call],
    protocol: Protocol,
    seconds_per_run: Mapping[str, float] | None = None,
    *,
    clock: Callable[[], float] = perf_counter,
    synchronise: Callable[[], object] | None = None,
) -> dict[str, Series]:
    """Run one series of each call: first what is thrown out of each, then turns A B C, A B C, ...

    Within a turn calls follow each other without synchronisation, as in the published timer, so that a GPU's queue stays
    filled; the clock is read, after a synchronisation, at the ends of a turn. Calls run without gradients.

    Args:
        calls: by name; the first one is the reference of the ratios. Warm: compiled, with memory allocated.
        protocol: number of runs, the share to throw out, the limit.
        seconds_per_run: what a call takes, to know how many runs fit into the limit; those that are not named are timed once.
        clock: gives seconds.
        synchronise: waits for the device; CUDA is waited for when None, if it is in use.

    Raises:
        ValueError: without anything to run.
    """
    if not calls:
        raise ValueError("nothing to time: name at least one call")
    wait = _synchronise if synchronise is None else synchronise

    def turn(call: Call, count: int) -> float:
        wait()
        start = clock()
        for _ in range(count):
            call()
        wait()
        return clock() - start

    with torch.no_grad():
        known = dict(seconds_per_run or {})
        if protocol.seconds:
            known |= {name: turn(call, 1) for name, call in calls.items() if name not in known}
        lengths = {name: protocol.length(known.get(name, 0.0)) for name in calls}
        counted = {name: length - protocol.thrown(length) for name, length in lengths.items()}
        rounds = min(protocol.turns, *counted.values())
        for name, call in calls.items():
            turn(call, lengths[name] - counted[name])
        counts = {name: _shares(count, rounds) for name, count in counted.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(rounds):
            for name, call in calls.items():
                # A clock that does not tick between two readings must not make a division by zero.
                seconds[name].append(max(turn(call, counts[name][i]), 1e-9) / counts[name][i])
    first = next(iter(seconds.values()))
    return {
        name: Series(Timing(tuple(times), tuple(a / b for a, b in zip(first, times, strict=True))), counts[name])
        for name, times in seconds.items()
    }


def _shares(count: int, parts: int) -> tuple[int, ...]:
    return tuple(count // parts + (i < count % parts) for i in range(parts))


def _synchronise() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()

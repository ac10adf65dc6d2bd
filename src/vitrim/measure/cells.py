"""Cells of a benchmark: what is compared at one batch size, timed in turns, without running out of time or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from vitrim.measure.ledger import Ledger, Row, answer
from vitrim.measure.memory import peak_memory
from vitrim.measure.protocol import Protocol, Series, time_series

# A first call that takes this long says well enough what the next ones will take.
_LONG = 0.5
# Share of the free memory that may be taken: estimates from one image are not exact.
_USABLE = 0.8


@dataclass(frozen=True)
class Entry:
    """One thing that is compared.

    Attributes:
        name: for the line of progress.
        question: what its row says about it, without the batch size; no two entries share one.
        run: takes a batch.
        why_not: why it cannot run, if so.
    """

    name: str
    question: dict[str, Any]
    run: Callable[[Tensor], object]
    why_not: str = ""


@dataclass(frozen=True)
class Cell:
    """What is compared at one batch size.

    Attributes:
        batch: images.
        entries: in the order of their turns; the first is the reference.
        images: makes the input of so many images, on the device and in the type to measure.
    """

    batch: int
    entries: Sequence[Entry]
    images: Callable[[int], Tensor]

    def question(self, entry: Entry) -> dict[str, Any]:
        """With the batch size."""
        return {**entry.question, "batch_size": self.batch}


@dataclass(frozen=True)
class _Probe:
    """What one image takes."""

    seconds: float
    bytes: int


@dataclass
class Bench:
    """Measures cells that are not in the ledger yet.

    Attributes:
        ledger: where rows go, and what is not measured again.
        protocol: of the timer.
        device: where the entries run.
        dtype: other than float32, calls run under autocast to it, as in the published scripts.
        patience: seconds that one series may take; longer ones are left out with a note.
        progress: called with a line of text before each step.
    """

    ledger: Ledger
    protocol: Protocol
    device: torch.device
    dtype: torch.dtype = torch.float32
    patience: float = 60.0
    progress: Callable[[str], object] = str  # str() of a line does nothing
    _probes: dict[str, _Probe] = field(default_factory=dict[str, _Probe])

    def run(self, cells: Iterable[Cell]) -> Iterator[Row]:
        """Measure cells in order; a row is in the ledger when it is given.

        Batch sizes best ascend: a series that would take too long is told from the next smaller batch.
        """
        for cell in cells:
            rows = self._measure(cell)
            if rows:
                self.ledger.add(rows)
            yield from rows

    def _measure(self, cell: Cell) -> list[Row]:
        # Rows without a ratio are from a time when the reference could not run.
        missing = [e for e in cell.entries if (self.ledger.find(cell.question(e)) or {}).get("ratio") is None]
        if not missing:
            return []
        # The reference runs again for the ratios of the others; its row stays what it was.
        compared = [e for e in cell.entries if e in missing or e is cell.entries[0]]
        notes: dict[int, str] = {}
        found: dict[int, Series] = {}
        with torch.no_grad(), self._autocast():
            for i, entry in enumerate(compared):
                self.progress(f"{cell.batch} images a batch: {entry.name}")
                notes[i] = _attempt(partial(self._refuse, cell, entry))
            if notes[0]:
                missing = [e for e in missing if not self.ledger.measured(cell.question(e))]
            ready = [i for i in range(len(compared)) if not notes[i]]
            if any(compared[i] in missing for i in ready):
                found = self._time(cell, compared, ready, notes)
        rows: list[Row] = []
        for i, entry in enumerate(compared):
            if entry in missing:
                values = _numbers(found[i], cell.batch, 0 in found) if i in found else {"note": notes[i]}
                rows.append(answer(cell.question(entry), **values))
        return rows

    def _time(self, cell: Cell, entries: Sequence[Entry], ready: Sequence[int], notes: dict[int, str]) -> dict[int, Series]:
        images = cell.images(cell.batch)
        seconds: dict[str, float] = {}

        def warm(i: int) -> str:
            seconds[str(i)] = _clock(lambda: entries[i].run(images))
            return self._too_long(seconds[str(i)])

        for i in ready:
            notes[i] = _attempt(partial(warm, i))
        calls = {str(i): partial(entries[i].run, images) for i in ready if not notes[i]}
        if not calls:
            return {}
        self.progress(f"{cell.batch} images a batch: {len(calls)} in turns")
        series = time_series(calls, self.protocol, {name: seconds[name] for name in calls if seconds[name] >= _LONG})
        return {int(name): s for name, s in series.items()}

    def _refuse(self, cell: Cell, entry: Entry) -> str:
        """Why the entry is left out of the cell; empty when it is not."""
        if entry.why_not:
            return entry.why_not
        probe = self._probe(cell, entry)
        need, free = probe.bytes * cell.batch, free_memory(self.device)
        if need > _USABLE * free:
            return f"left out: needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; take smaller batches"
        return self._too_long(cell.batch * self._seconds_per_image(cell, entry, probe.seconds))

    def _seconds_per_image(self, cell: Cell, entry: Entry, single: float) -> float:
        """From the largest smaller batch that was measured, else from a single image: at most what the batch will take."""
        found = (self.ledger.find({**entry.question, "batch_size": batch}) for batch in range(cell.batch - 1, 0, -1))
        return next((1 / row["median"] for row in found if row and row["median"]), single)

    def _too_long(self, seconds: float) -> str:
        total = (1 + self.protocol.length(seconds)) * seconds
        if total <= self.patience:
            return ""
        return f"left out: would take about {total:.0f} s; --patience is {self.patience:g} s"

    def _probe(self, cell: Cell, entry: Entry) -> _Probe:
        """What one image takes; compiles what needs to be compiled. Remembered for larger batches."""
        name = repr(entry.question)
        if name not in self._probes:
            image = cell.images(1)
            entry.run(image)
            memory = peak_memory(lambda: entry.run(image), self.device) + image.nbytes
            self._probes[name] = _Probe(_clock(lambda: entry.run(image)), memory)
        return self._probes[name]

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated, as far as the system says; infinite where it does not."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    free = [float("inf")]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(1024 * float(lines["MemAvailable"].split()[0]))
        # A container's own limit, which ends the process where the machine's memory would last.
        limit, used, stat = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current", "stat"))
        cached = dict(line.split() for line in stat.splitlines())["inactive_file"]
        free.append(float(limit) - float(used) + float(cached))  # a limit of "max" is no number, and ends here
    except (OSError, KeyError, ValueError):
        pass
    return min(free)


def _numbers(series: Series, batch: int, compared: bool) -> dict[str, Any]:
    timing = series.timing
    slow, fast = timing.quartiles[1], timing.quartiles[0]
    low, high = timing.speedup_quartiles
    return {
        "throughput": series.throughput(batch),
        "median": timing.per_second(batch),
        "low": batch / slow,
        "high": batch / fast,
        "ratio": timing.speedup if compared else None,
        "ratio_low": low if compared else None,
        "ratio_high": high if compared else None,
        "counted_runs": sum(series.counts),
    }


def _attempt(step: Callable[[], str]) -> str:
    """What the step says, or what went wrong in it: one entry must not cost the others their numbers."""
    try:
        return step()
    except (MemoryError, torch.OutOfMemoryError):
        reason = "left out: does not fit into memory; take smaller batches"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    # Here, where the error no longer holds on to the tensors of its frames.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason


def _clock(call: Callable[[], object]) -> float:
    _wait()
    start = perf_counter()
    call()
    _wait()
    return perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()

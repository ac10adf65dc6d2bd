"""Run the cells of a sweep: in order of need, several at once, whatever happens to some of them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vitrim.experiments.cells import Cell, Options, read_cells, substitute, write_cells
from vitrim.experiments.launch import Commands, Handle, Job, Launcher, Result, finished, held
from vitrim.experiments.runs import Run, last_metrics, read_run

# States of a cell. "elsewhere": another process is at it (another call of the sweep, or one whose parent was killed).
WAITING, RUNNING, ELSEWHERE, FINISHED, FAILED, INTERRUPTED, BLOCKED = (
    "waiting", "running", "elsewhere", "finished", "failed", "interrupted", "blocked",
)  # fmt: skip
_OPEN = (WAITING, RUNNING, ELSEWHERE)


@dataclass
class Status:
    """Where a cell stands.

    Attributes:
        cell: the cell.
        state: one of the states above.
        note: the error of a failed cell, or what a blocked one misses.
        attempts: starts in this call.
        began: clock reading of the last start.
        seconds: of this call's work on it.
        skipped: finished before this call.
    """

    cell: Cell
    state: str = WAITING
    note: str = ""
    attempts: int = 0
    began: float = 0.0
    seconds: float = 0.0
    skipped: bool = False


@dataclass
class Sweep:
    """A folder of cells.

    Attributes:
        folder: of the sweep; a cell's run folder is ``folder/NAME``.
        cells: to run, each after those that it needs.
        commands: how a cell is started and continued.
        threads: CPU threads for each cell; 0 leaves them alone.
        retries: times that a killed cell is taken up again in the same call.
        said: told of every change of a cell.
        beat: told twice a second.
    """

    folder: Path
    cells: Sequence[Cell]
    commands: Commands = field(default_factory=Commands.train)
    threads: int = 0
    retries: int = 0
    said: Callable[[Sweep, Status], object] | None = None
    beat: Callable[[Sweep], object] | None = None
    statuses: dict[str, Status] = field(init=False)

    def __post_init__(self) -> None:
        self.statuses = {cell.name: Status(cell) for cell in self.cells}
        self._handles: dict[str, Handle] = {}
        for status in self.statuses.values():
            if finished(self.run_folder(status.cell.name)):
                status.state, status.skipped = FINISHED, True

    def run_folder(self, name: str) -> Path:
        """The run folder of a cell."""
        return self.folder / name

    def state_path(self, name: str, ending: str) -> Path:
        """A file that the sweep keeps about a cell: ``yaml`` (its recipe), ``log``, ``lock``, ``json`` (how it ended)."""
        return self.folder / ".sweep" / f"{name}.{ending}"

    def run(self, launcher: Launcher, workers: int, wait: float = 0.1) -> None:
        """Run every cell that is not finished, ``workers`` at once.

        A cell that fails is put on record and does not stop the others; those that need it are blocked. Ctrl-C ends the
        cells that run (they save their state) and is raised again.

        Args:
            launcher: where cells run.
            workers: cells at once.
            wait: seconds between looks at the cells.
        """
        complete, beaten = False, 0.0
        try:
            while any(status.state in _OPEN for status in self.statuses.values()):
                self._collect()
                self._start(launcher, workers)
                if self.beat is not None and time.monotonic() - beaten >= 0.5:
                    self.beat(self)
                    beaten = time.monotonic()
                time.sleep(wait)
            complete = True
        finally:
            launcher.close(cancel=not complete)

    def left(self, workers: int) -> float | None:
        """Seconds until the end, from the cells that this sweep has finished so far; None before the first one."""
        done = [s for s in self.statuses.values() if s.state == FINISHED]
        # The clock of this call sees the start of a process too, which the run's own summary does not.
        known = [s.seconds for s in done if s.seconds] or [t for s in done if (t := seconds_of(self.run_folder(s.cell.name)))]
        if not known:
            return None
        typical = statistics.fmean(known)
        work = 0.0
        for status in self.statuses.values():
            if status.state in _OPEN:
                work += typical * (1 - (share_done(self.run_folder(status.cell.name), status.cell.options) or 0.0))
        return work / workers

    def count(self, *states: str) -> int:
        """Number of cells in any of these states."""
        return sum(status.state in states for status in self.statuses.values())

    def _start(self, launcher: Launcher, workers: int) -> None:
        for name, status in self.statuses.items():
            if status.state == ELSEWHERE and not held(self.state_path(name, "lock")):
                self._set(status, FINISHED if finished(self.run_folder(name)) else WAITING)
            if status.state != WAITING:
                continue
            needed = [(need, self._state_of(need)) for need in status.cell.needs]
            lost = [need for need, state in needed if state in (FAILED, INTERRUPTED, BLOCKED)]
            if lost:
                self._set(status, BLOCKED, f"needs {', '.join(lost)}")
            elif all(state == FINISHED for _, state in needed) and self.count(RUNNING) < workers:
                if held(self.state_path(name, "lock")):
                    self._set(status, ELSEWHERE)
                    continue
                status.attempts += 1
                status.began = time.monotonic()
                self._handles[name] = launcher.submit(self._job(status.cell))
                self._set(status, RUNNING)

    def _collect(self) -> None:
        for name, handle in list(self._handles.items()):
            if not handle.done():
                continue
            del self._handles[name]
            status = self.statuses[name]
            status.seconds += time.monotonic() - status.began
            try:
                result = handle.result()
            except Exception as error:  # the launcher's own: the node died, the job was cancelled, ...
                result = Result(-1, f"{type(error).__name__}: {error}".splitlines()[0])
            self._judge(status, result)

    def _judge(self, status: Status, result: Result) -> None:
        name = status.cell.name
        if finished(self.run_folder(name)):
            self._set(status, FINISHED)
        elif result.code is None:
            self._set(status, ELSEWHERE)
        elif killed(result.code):
            if status.attempts <= self.retries:
                self._set(status, WAITING, "killed; taken up again")
            else:
                self._set(status, INTERRUPTED, f"ended by {_signal(result.code)}; the next call goes on from its last checkpoint")
        else:
            self._set(status, FAILED, result.error or f"ended with code {result.code} before it was finished")
        end = {"state": status.state, "note": status.note, "code": result.code, "seconds": round(result.seconds, 3)}
        _write(self.state_path(name, "json"), json.dumps(end, indent=1) + "\n")

    def _job(self, cell: Cell) -> Job:
        recipe = self.state_path(cell.name, "yaml")
        options = substitute(cell.options, self.folder)
        _write(recipe, yaml.safe_dump(options, sort_keys=False, width=10_000, allow_unicode=True))
        state = str(recipe.with_name(cell.name))
        return Job(cell.name, str(self.run_folder(cell.name)), str(recipe), state, self.commands, self.threads)

    def _state_of(self, name: str) -> str:
        status = self.statuses.get(name)
        if status is not None:
            return status.state
        return FINISHED if finished(self.run_folder(name)) else BLOCKED

    def _set(self, status: Status, state: str, note: str = "") -> None:
        if state != status.state:
            status.state, status.note = state, note
            if self.said is not None:
                self.said(self, status)


def record(folder: Path, cells: Sequence[Cell]) -> None:
    """Put the cells into ``sweep.yaml``, beside those of earlier calls."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {cell.name: cell for cell in read_cells(folder / "sweep.yaml")}
    write_cells(list({**known, **{cell.name: cell for cell in cells}}.values()), folder / "sweep.yaml")


def with_needs(cells: Sequence[Cell], known: Sequence[Cell]) -> list[Cell]:
    """The cells and all that they need, each after what it needs."""
    by_name = {cell.name: cell for cell in (*known, *cells)}
    found: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        for need in cell.needs:
            if need not in by_name:
                raise ValueError(f"cell '{cell.name}' needs '{need}', which is not in this sweep")
            add(by_name[need])
        found.setdefault(cell.name, cell)

    for cell in cells:
        add(cell)
    return list(found.values())


def resolve_recipe(base: Mapping[str, Any], options: Mapping[str, Any]) -> Options:
    """A whole recipe with canonical specs; the dense model has no schedule of its own.

    Raises:
        ValueError: for an unknown option or a value that it does not take.
    """
    from vitrim.training.recipe import Recipe

    recipe = Recipe.from_mapping(base, options).to_dict()
    reads_schedule = any(recipe[key] is not None for key in ("method", "cache", "head"))
    return recipe if reads_schedule else {**recipe, "schedule": Recipe().schedule}


def state_of(folder: Path, cell: Cell) -> tuple[str, Run | None]:
    """State of a cell on disk, without starting anything, and its run if there is one."""
    run = folder / cell.name
    if not (run / "config.yaml").exists() and not (run / "summary.json").exists():
        return WAITING, None
    found = read_run(run)
    if found.state == "finished":
        return FINISHED, found
    return (RUNNING if held(folder / ".sweep" / f"{cell.name}.lock") else found.state), found


def killed(code: int) -> bool:
    """Whether an exit code says that the cell was ended from outside: a signal, Ctrl-C (130), SIGTERM (143), SIGKILL (137)."""
    return code < 0 or code in (130, 137, 143)


def share_done(run: Path, options: Mapping[str, Any]) -> float | None:
    """Share of the epochs that a run has done, from its log of metrics; None before its first line."""
    total = sum(float(options.get(key) or 0) for key in ("epochs", "cooldown_epochs"))
    epoch = last_metrics(run).get("epoch")
    return min(float(epoch) / total, 1.0) if total and isinstance(epoch, int | float) else None


def seconds_of(run: Path) -> float | None:
    """Seconds that a run took, from its summary."""
    try:
        value = json.loads((run / "summary.json").read_text(encoding="utf-8")).get("seconds")
    except (OSError, ValueError, AttributeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def _signal(code: int) -> str:
    return {2: "Ctrl-C", 9: "SIGKILL", 15: "SIGTERM"}.get(-code if code < 0 else code - 128, f"signal {-code}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)

"""``vitrim sweep``: train every combination of options."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from vitrim.cli.options import Flag, Words
from vitrim.experiments.cells import Cell, expand, read_cells
from vitrim.experiments.grid import read_groups, read_options, split_values
from vitrim.experiments.launch import Commands, Launcher, Local, Ray, Slurm
from vitrim.experiments.sweep import (
    BLOCKED,
    ELSEWHERE,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    WAITING,
    Status,
    Sweep,
    record,
    resolve_recipe,
    share_done,
    state_of,
    with_needs,
)  # fmt: skip

Options = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]


def sweep(
    recipe: Path | None = None,
    /,
    *options: Options,
    out: Path,
    workers: int = 1,
    threads: int | None = None,
    gpus: Words | None = None,
    on: Literal["local", "slurm", "ray"] = "local",
    resources: Words | None = None,
    python: str = "",
    only: Words | None = None,
    retries: int = 0,
    dry_run: Flag = False,
) -> int:
    """Train every combination of options, several at once; the same command goes on after a crash.

    Every option of a recipe takes several values: --method evit,topk --schedule "keep(rate=0.7)" "keep(rate=0.5)" --seed 0 1
    are eight cells. Commas separate values outside of brackets; null is none; [a, b] is one value that is a list. A sweep file
    with the keys base, grid and cells says the same, and more (docs/experiments.md). Without RECIPE, the cells on record in the
    folder go on.

    Finished cells are skipped, interrupted ones resumed, failed ones tried again. Exit codes: 0 when all cells are finished,
    1 when some are not, 2 for wrong input, 130 when interrupted.

    Args:
        recipe: recipe, or sweep file.
        *options: options of the recipe, each with one value or several.
        out: folder of the sweep; the run of a cell is OUT/NAME.
        workers: cells at once.
        threads: CPU threads of each cell; the cores shared among the workers when left out, 0 leaves them alone.
        gpus: CUDA devices to hand out to the cells of this machine, one each.
        on: where cells run: local (processes), slurm (by submitit) or ray.
        resources: KEY=VALUE for submitit's executor (slurm_partition=gpu gpus_per_node=1) or a Ray task (num_gpus=1).
        python: command that runs a cell in place of this Python, such as "accelerate launch --num_processes 4".
        only: names of cells to run, with * and ?; what they need runs, too.
        retries: times to take up a killed cell again in the same call.
        dry_run: list the cells and their states, and run nothing.
    """
    if workers < 1 or retries < 0 or (threads is not None and threads < 0):
        raise ValueError("--workers must be 1 or more, --retries and --threads 0 or more")
    recorded = read_cells(out / "sweep.yaml")
    cells = _cells(recipe, options, recorded, out)
    if only:
        cells = _only(cells, only)
    cells = with_needs(cells, recorded)
    if dry_run:
        return _list(cells, out)
    if threads is None:
        threads = max(1, (os.cpu_count() or 1) // workers) if on == "local" else 0
    table = _settings(resources)
    record(out, cells)
    screen = Screen(workers)
    commands = Commands.train(shlex.split(python))
    work = Sweep(out, cells, commands, threads, retries, screen.said, screen.beat)
    screen.begin(work)
    launcher: Launcher = (
        Local(workers, gpus or ()) if on == "local"
        else Slurm(out / ".sweep" / "slurm", table, threads) if on == "slurm"
        else Ray(table, threads)
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        work.run(launcher, workers)
    except KeyboardInterrupt:
        screen.clear()
        print(f"interrupted: {work.count(FINISHED)} of {len(cells)} cells are finished; the same command goes on")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return screen.end(work)


def _cells(recipe: Path | None, options: Sequence[str], recorded: Sequence[Cell], out: Path) -> list[Cell]:
    if recipe is None:
        if not recorded:
            raise ValueError(f"{out} holds no sweep to go on with; give a recipe or a sweep file")
        return list(recorded)
    if not recipe.is_file():
        raise ValueError(f"{recipe} does not exist; give a recipe or a sweep file")
    return expand(read_groups(recipe, read_options(options)), recorded, resolve_recipe, recipe.stem)


def _only(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    from fnmatch import fnmatchcase

    found = [cell for cell in cells if any(fnmatchcase(cell.name, pattern) for pattern in patterns)]
    if not found:
        raise ValueError(f"--only {' '.join(patterns)}: no cell has such a name; --dry-run lists them")
    return found


def _settings(resources: Sequence[str] | None) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for text in resources or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--resources {text}: write KEY=VALUE")
        (table[key],) = [_plain(value)] if "," in value else map(_plain, split_values([value]))
    return table


def _plain(text: Any) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            pass
    return {"true": True, "false": False, "null": None}.get(str(text).lower(), text)


def _list(cells: Sequence[Cell], out: Path) -> int:
    width = max(len(cell.name) for cell in cells)
    states = [state_of(out, cell)[0] for cell in cells]
    for cell, state in zip(cells, states, strict=True):
        print(f"{cell.name.ljust(width)}  {state}{'  after ' + ', '.join(cell.needs) if cell.needs else ''}")
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{len(cells)} cells: {counts}")
    return 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class Screen:
    """A line for every cell that ends; on a terminal, a line at the bottom about the whole sweep."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._live = sys.stderr.isatty()
        self._looked, self._left = 0.0, None

    def begin(self, sweep: Sweep) -> None:
        """Say what there is to do."""
        done = sweep.count(FINISHED)
        told = f", {done} of them finished already" if done else ""
        print(f"{len(sweep.cells)} cells in {sweep.folder}{told}; {self._workers} at once", flush=True)

    def said(self, sweep: Sweep, status: Status) -> None:
        """Tell of a change."""
        if status.state in (WAITING, RUNNING) and not status.note:
            return
        done = len(sweep.cells) - sweep.count(WAITING, RUNNING, ELSEWHERE)
        self.clear()
        what = status.note
        if status.state == FINISHED:
            _, run = state_of(sweep.folder, status.cell)
            what = (
                f"{run.metric} {run.last[run.metric]:.2f}, {span(status.seconds)}" if run and run.last else span(status.seconds)
            )
        if status.state == FAILED:
            what = f"{what}  (log: {sweep.state_path(status.cell.name, 'log')})"
        if status.state == ELSEWHERE:
            what = "another process is at it; waiting for its end"
        number = f"[{done:{len(str(len(sweep.cells)))}}/{len(sweep.cells)}]"
        print(f"{number} {status.cell.name}  {status.state}{': ' if what else ''}{what}", flush=True)

    def beat(self, sweep: Sweep) -> None:
        """Renew the bottom line."""
        if not self._live:
            return
        now = time.monotonic()
        if now - self._looked > 5:
            self._looked, self._left = now, sweep.left(self._workers)
        running = [s.cell for s in sweep.statuses.values() if s.state == RUNNING]
        shares = [(cell.name, share_done(sweep.run_folder(cell.name), cell.options)) for cell in running[:3]]
        names = ", ".join(name if share is None else f"{name} {share:.0%}" for name, share in shares)
        more = f" and {len(running) - 3} more" if len(running) > 3 else ""
        text = f"{sweep.count(FINISHED)}/{len(sweep.cells)} finished, {len(running)} running"
        lost = sweep.count(FAILED, INTERRUPTED, BLOCKED)
        text += f", {lost} failed" if lost else ""
        text += f", {span(self._left)} left" if self._left is not None else ""
        line = f"{text}: {names}{more}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the bottom line away."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def end(self, sweep: Sweep) -> int:
        """Say how it went; the exit code."""
        self.clear()
        states = {state: sweep.count(state) for state in (FINISHED, FAILED, INTERRUPTED, BLOCKED)}
        print(", ".join(f"{count} {state}" for state, count in states.items() if count))
        if states[FINISHED] == len(sweep.cells):
            print(f"vitrim report {sweep.folder} --out report.html  shows them")
            return 0
        print("the same command takes up what is not finished")
        return 1


def span(seconds: float) -> str:
    """A length of time for people: 40 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

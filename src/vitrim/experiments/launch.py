"""Where cells run: on this machine, on Slurm or on Ray. All of them call :func:`run_job`, which does the work."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

# PyTorch, MKL, OpenBLAS and numba each read a variable of their own.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# Seconds that a cell gets to save its state after an interrupt, before it is killed.
GRACE = 30.0


@dataclass(frozen=True)
class Commands:
    """How a cell is started and continued: ``{recipe}`` and ``{run}`` stand for its recipe file and its run folder.

    Attributes:
        start: command for a cell that has not begun.
        resume: command for a cell that has begun.
    """

    start: tuple[str, ...]
    resume: tuple[str, ...]

    @classmethod
    def train(cls, python: Sequence[str] = ()) -> Commands:
        """``vitrim train``, run by ``python`` (this interpreter; or words such as ``accelerate launch --num_processes 4``)."""
        words = (*(python or (sys.executable,)), "-m", "vitrim.cli.app", "train")
        return cls((*words, "{recipe}", "--out", "{run}"), (*words, "--resume", "{run}"))


@dataclass(frozen=True)
class Job:
    """One cell, as data that can be sent to another machine.

    Attributes:
        name: of the cell.
        run: the run folder.
        recipe: the recipe file.
        state: path without ending of the cell's ``.lock`` and ``.log``.
        commands: how it is started and continued.
        threads: CPU threads of the cell; 0 leaves them as they are.
        env: environment variables to set.
    """

    name: str
    run: str
    recipe: str
    state: str
    commands: Commands
    threads: int = 0
    env: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Result:
    """How a cell ended.

    Attributes:
        code: exit code; minus the signal's number when it was killed; None when another process is at this cell.
        error: the last line that it wrote, when it failed.
        seconds: that it ran.
    """

    code: int | None
    error: str = ""
    seconds: float = 0.0


class Handle(Protocol):
    """A submitted cell."""

    def done(self) -> bool: ...

    def result(self) -> Result:
        """How it ended; raises what kept it from running at all."""
        ...


class Launcher(Protocol):
    """A place where cells run."""

    def submit(self, job: Job) -> Handle: ...

    def close(self, *, cancel: bool) -> None:
        """Give the place back; ``cancel`` ends what still runs."""
        ...


def run_job(job: Job, *, started: Callable[[subprocess.Popen[bytes]], object] | None = None, detach: bool = False) -> Result:
    """Start or continue a cell, and wait for it.

    The lock is held by the training process itself: it is free exactly when that process is gone, whoever was killed.

    Args:
        job: the cell.
        started: told of the process.
        detach: whether the process gets a session of its own, out of reach of the terminal's Ctrl-C.
    """
    run, begin = Path(job.run), time.monotonic()
    lock = acquire(Path(f"{job.state}.lock"))
    if lock is None:
        return Result(None)
    try:
        if finished(run):
            return Result(0)
        words = job.commands.resume if begun(run) else job.commands.start
        command = [word.replace("{recipe}", job.recipe).replace("{run}", job.run) for word in words]
        env = {**os.environ, **(dict.fromkeys(_THREADS, str(job.threads)) if job.threads else {}), **job.env}
        with Path(f"{job.state}.log").open("ab") as log:
            offset = log.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, pass_fds=[lock], start_new_session=detach
            )
        if started is not None:
            started(process)
    finally:
        os.close(lock)
    code = process.wait()
    return Result(code, last_line(Path(f"{job.state}.log"), offset) if code else "", time.monotonic() - begin)


def finished(run: Path) -> bool:
    """Whether the run says that it is finished."""
    try:
        return bool(json.loads((run / "summary.json").read_text(encoding="utf-8")).get("state") == "finished")
    except (OSError, ValueError, AttributeError):
        return False


def begun(run: Path) -> bool:
    """Whether there is a run to continue, be it without a checkpoint yet."""
    return (run / "config.yaml").exists()


def acquire(path: Path) -> int | None:
    """Take the lock file: an open descriptor that holds it, or None when a living process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def held(path: Path) -> bool:
    """Whether a living process holds the lock file."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def last_line(log: Path, offset: int = 0, size: int = 8192) -> str:
    """The last line with text that was written to a log behind ``offset``."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(offset, end - size))
        text = file.read().decode("utf-8", errors="replace")
    lines = [part.strip() for line in text.splitlines() for part in line.split("\r") if part.strip()]
    return lines[-1].removeprefix("vitrim: ") if lines else ""


class Local:
    """Processes on this machine.

    Args:
        workers: cells at once.
        gpus: CUDA devices to hand out, one for each cell; none leaves the choice to the cell.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self._pool = ThreadPoolExecutor(workers)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._free = list(gpus)
        self._stopping = threading.Event()
        if gpus and len(gpus) < workers:
            # Several cells to a GPU, in turn.
            self._free = [gpus[i % len(gpus)] for i in range(workers)]

    def submit(self, job: Job) -> Future[Result]:
        return self._pool.submit(self._run, job)

    def close(self, *, cancel: bool) -> None:
        if cancel:
            self._stopping.set()
            self._end(signal.SIGINT)
            deadline = time.monotonic() + GRACE
            while any(p.poll() is None for p in self._processes) and time.monotonic() < deadline:
                time.sleep(0.05)
            self._end(signal.SIGKILL)
        self._pool.shutdown(cancel_futures=cancel)

    def _run(self, job: Job) -> Result:
        gpu = self._free.pop() if self._free else None
        if gpu is not None:
            job = replace(job, env={**job.env, "CUDA_VISIBLE_DEVICES": gpu})
        try:
            return run_job(job, started=self._started, detach=True)
        finally:
            if gpu is not None:
                self._free.append(gpu)

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        self._processes.add(process)
        if self._stopping.is_set():  # started while the others were being ended
            os.killpg(process.pid, signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        for process in list(self._processes):
            if process.poll() is None:
                os.killpg(process.pid, number)


class Slurm:
    """Jobs on a Slurm cluster, by submitit.

    Args:
        folder: for submitit's own files; all machines must see it.
        resources: parameters of submitit's executor, such as ``slurm_partition``, ``gpus_per_node``, ``timeout_min``;
            ``cluster`` is slurm, or local or debug to try it without one.
        threads: CPU threads of a cell.
    """

    def __init__(self, folder: Path, resources: Mapping[str, Any], threads: int = 0) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ValueError("--on slurm needs submitit: pip install 'vitrim[experiments]'") from error
        options = dict(resources)
        cluster = str(options.pop("cluster", "slurm"))
        defaults = {"name": "vitrim", "timeout_min": 24 * 60, **({"cpus_per_task": threads} if threads else {})}
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**{**defaults, **options})
        except (RuntimeError, AssertionError, NameError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"--on slurm: {str(error).splitlines()[0]}") from error
        self._jobs: list[Any] = []

    def submit(self, job: Job) -> Handle:
        self._jobs.append(self._executor.submit(run_job, job))
        return self._jobs[-1]

    def close(self, *, cancel: bool) -> None:
        for job in self._jobs:
            if cancel and not job.done():
                job.cancel()


class Ray:
    """Tasks on a Ray cluster.

    Args:
        resources: ``address`` of the cluster (a local one is started when left out), and options of a task, such as
            ``num_cpus`` and ``num_gpus``.
        threads: CPU threads of a cell.
    """

    def __init__(self, resources: Mapping[str, Any], threads: int = 0) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ValueError("--on ray needs Ray: pip install ray") from error
        options = dict(resources)
        address = options.pop("address", None)
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            ray.init(address=address, logging_level="error", include_dashboard=None if address else False)
        # A cell that was killed is not begun again behind the sweep's back.
        self._task: Any = ray.remote(run_job).options(**{"num_cpus": threads or 1, "max_retries": 0, **options})
        self._handles: list[_RayHandle] = []

    def submit(self, job: Job) -> Handle:
        self._handles.append(_RayHandle(self._ray, self._task.remote(job)))
        return self._handles[-1]

    def close(self, *, cancel: bool) -> None:
        for handle in self._handles:
            if cancel and not handle.done():
                self._ray.cancel(handle.reference, force=True)
        if self._ours:
            self._ray.shutdown()


@dataclass(frozen=True)
class _RayHandle:
    ray: Any
    reference: Any

    def done(self) -> bool:
        return bool(self.ray.wait([self.reference], timeout=0)[0])

    def result(self) -> Result:
        found: Result = self.ray.get(self.reference)
        return found

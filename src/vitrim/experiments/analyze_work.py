"""Jobs in several processes, whose results are kept in files: what was finished before is not done again."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from vitrim.training.checkpoint import WriteError, write_text

Found = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A call of a function of a module, with plain values.

    Attributes:
        name: for people.
        function: gives a dictionary of plain JSON values.
        arguments: by name.
        content: what the result depends on: hashes of the stores, the version of the measures, the settings.
    """

    name: str
    function: Callable[..., Found]
    arguments: Mapping[str, Any]
    content: Sequence[Any]

    @property
    def key(self) -> str:
        """The name of the result's file."""
        text = json.dumps([self.function.__name__, *self.content], sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


def run_jobs(
    jobs: Sequence[Job], folder: Path, workers: int, say: Callable[[int, int], None] | None = None
) -> tuple[list[Found], int]:
    """The results of jobs, in their order, and how many of them were there before.

    Args:
        jobs: to do; equal ones are done once.
        folder: of the results.
        workers: processes; 0 does all in this one.
        say: is told how many jobs are done, of how many.

    Raises:
        ValueError: whatever a job raises, with its name.
        WriteError: when the disk is full or refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {job.key: result for job in jobs if (result := _read(folder / f"{job.key}.json")) is not None}
    before = len(found)
    todo = list({job.key: job for job in jobs if job.key not in found}.values())
    tell = say or _quiet
    total = before + len(todo)
    tell(before, total)
    steps = _here(todo, folder) if workers == 0 or len(todo) < 2 else _apart(todo, folder, workers)
    for done, (job, result) in enumerate(steps, before + 1):
        found[job.key] = result
        tell(done, total)
    return [found[job.key] for job in jobs], before


def do(job: Job, folder: Path) -> Found:
    """Do a job and keep its result, complete or not at all.

    Raises:
        ValueError: whatever the job raises, with its name.
        WriteError: when the disk is full or refuses.
    """
    try:
        # Through text at once, so that a result is the same whether it was computed now or before.
        text = json.dumps(job.function(**job.arguments), allow_nan=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{job.name}: {error}") from error
    try:
        write_text(folder / f"{job.key}.json", text)
    except OSError as error:
        raise WriteError(f"cannot write into {folder}: {error.strerror or error}; the same command goes on from here") from error
    return json.loads(text)


def _quiet(done: int, total: int) -> None:
    pass


def _here(jobs: Sequence[Job], folder: Path) -> Generator[tuple[Job, Found]]:
    for job in jobs:
        yield job, do(job, folder)


def _apart(jobs: Sequence[Job], folder: Path, workers: int) -> Generator[tuple[Job, Found]]:
    with _one_thread_each():
        # A forked process would inherit PyTorch's threads in whatever state they are.
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=_stay_with_parent)
        pending: dict[Future[Found], Job] = {}
        queue = iter(jobs)
        try:
            while True:
                # Few at a time, so that Ctrl-C does not wait for a thousand.
                while len(pending) < 2 * workers and (job := next(queue, None)) is not None:
                    pending[pool.submit(do, job, folder)] = job
                if not pending:
                    break
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker was killed, most likely for memory; the same command goes on from here, with less at once: --workers 1"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _stay_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it: a process pool's workers would outlive a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def _one_thread_each() -> Generator[None]:
    """Processes started here compute with one thread each: more would stand in each other's way."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _read(path: Path) -> Found | None:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # a result that was cut off is computed again
    return found if isinstance(found, dict) else None

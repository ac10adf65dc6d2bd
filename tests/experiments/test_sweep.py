"""Sweeps over real processes: what is finished stays, what was killed goes on, what fails stops nobody."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrim.experiments.cells import Cell
from vitrim.experiments.launch import Commands, Job, Local, Ray, Slurm, acquire, held, run_job
from vitrim.experiments.runs import find_runs
from vitrim.experiments.sweep import Sweep, with_needs

STANDIN = str(Path(__file__).with_name("standin.py"))
COMMANDS = Commands((sys.executable, STANDIN, "{recipe}", "--out", "{run}"), (sys.executable, STANDIN, "--resume", "{run}"))


def cells(*names: str, **options: Any) -> list[Cell]:
    return [Cell(name, {"epochs": 2, "seed": i, **options}) for i, name in enumerate(names)]


def run(folder: Path, some: list[Cell], workers: int = 2, **settings: Any) -> Sweep:
    sweep = Sweep(folder, some, COMMANDS, **settings)
    sweep.run(Local(workers), workers, wait=0.02)
    return sweep


def states(sweep: Sweep) -> dict[str, str]:
    return {name: status.state for name, status in sweep.statuses.items()}


def work(folder: Path, name: str) -> list[int]:
    return [int(line) for line in (folder / name / "work.txt").read_text().split()]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_finished_cells_are_skipped(tmp_path: Path) -> None:
    run(tmp_path, cells("a", "b"))
    again = run(tmp_path, cells("a", "b", "c"))
    assert set(states(again).values()) == {"finished"}
    assert [again.statuses[n].skipped for n in "abc"] == [True, True, False]
    assert [work(tmp_path, n) for n in "abc"] == [[1, 2]] * 3
    assert [r.last["top1"] for r in find_runs(tmp_path)] == [52.0] * 3


def test_a_failing_cell_is_recorded_and_stops_nobody(tmp_path: Path) -> None:
    bad = Cell("bad", {"epochs": 3, "seed": 13})
    needs = Cell("needs", {"epochs": 1, "weights": "{bad}/model.safetensors"})
    sweep = run(tmp_path, [bad, needs, *cells("a", "b")], workers=1)
    assert states(sweep) == {"bad": "failed", "needs": "blocked", "a": "finished", "b": "finished"}
    assert sweep.statuses["bad"].note == "the loss is not a number"
    assert sweep.statuses["needs"].note == "needs bad"
    assert "the loss is not a number" in (tmp_path / ".sweep" / "bad.json").read_text()


def test_a_cell_runs_after_what_it_needs(tmp_path: Path) -> None:
    fine = Cell("fine", {"epochs": 1, "weights": "{dense}/model.safetensors"})
    dense = Cell("dense", {"epochs": 1, "nap": 0.2})
    ordered = with_needs([fine], [dense])
    assert [cell.name for cell in ordered] == ["dense", "fine"]
    assert states(run(tmp_path, [fine, dense])) == {"fine": "finished", "dense": "finished"}
    with pytest.raises(ValueError, match="needs 'dense', which is not in this sweep"):
        with_needs([fine], [])


@pytest.mark.parametrize("retries", [0, 1])
def test_a_killed_worker_loses_nothing(tmp_path: Path, retries: int) -> None:
    some = cells("a", "b", epochs=6, nap=0.08)
    sweep = Sweep(tmp_path, some, COMMANDS, retries=retries)
    launcher = Local(2)
    thread = threading.Thread(target=sweep.run, args=(launcher, 2, 0.02))
    thread.start()
    until(lambda: (tmp_path / "a" / "checkpoints" / "step-00000002").exists())
    victim = next(p for p in launcher._processes if str(tmp_path / "a") in " ".join(map(str, p.args)))  # type: ignore[arg-type]
    victim.send_signal(signal.SIGKILL)
    thread.join(30)
    if retries == 0:
        assert states(sweep) == {"a": "interrupted", "b": "finished"}
        assert "SIGKILL" in sweep.statuses["a"].note
        sweep = run(tmp_path, some)
    assert states(sweep) == {"a": "finished", "b": "finished"}
    assert work(tmp_path, "b") == list(range(1, 7))
    done = work(tmp_path, "a")
    assert sorted(set(done)) == list(range(1, 7))
    assert len(done) <= 7, "went on from its checkpoint, with the epoch that was cut off at most done again"


def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """The sweep itself dies: its cells live on, and the next call waits for them instead of starting them twice."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[2]]; from pathlib import Path; from tests.experiments.test_sweep import *; "
        "run(Path(sys.argv[1]), cells('a', 'b', 'c', epochs=8, nap=0.08))"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(root)])
    until(lambda: all((tmp_path / n / "checkpoints" / "step-00000001").exists() for n in "ab"))
    process.kill()
    process.wait()
    assert held(tmp_path / ".sweep" / "a.lock")
    said: list[tuple[str, str]] = []
    some = cells("a", "b", "c", epochs=8, nap=0.08)
    sweep = run(tmp_path, some, said=lambda _, status: said.append((status.cell.name, status.state)))
    assert ("a", "elsewhere") in said
    assert set(states(sweep).values()) == {"finished"}
    assert [work(tmp_path, n) for n in "abc"] == [list(range(1, 9))] * 3


def test_ctrl_c_ends_the_cells_and_the_next_call_goes_on(tmp_path: Path) -> None:
    some = cells("a", "b", epochs=30, nap=0.05)

    def interrupt(_: Sweep) -> None:
        if (tmp_path / "a" / "checkpoints" / "step-00000002").exists():
            raise KeyboardInterrupt

    sweep, launcher = Sweep(tmp_path, some, COMMANDS, beat=interrupt), Local(2)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(launcher, 2, 0.02)
    assert all(process.poll() is not None for process in launcher._processes)
    assert not held(tmp_path / ".sweep" / "a.lock")
    assert len(work(tmp_path, "a")) < 30
    assert set(states(run(tmp_path, some)).values()) == {"finished"}


def test_workers_at_once_threads_and_gpus(tmp_path: Path) -> None:
    script = tmp_path / "tell.py"
    script.write_text(
        "import os, sys, time, json, pathlib\nrun = pathlib.Path(sys.argv[2]); run.mkdir()\nbegin = time.time()\n"
        "time.sleep(0.3)\n"
        "json.dump({'state': 'finished', 'omp': os.environ['OMP_NUM_THREADS'], 'gpu': os.environ['CUDA_VISIBLE_DEVICES'], "
        "'span': [begin, time.time()]}, open(run / 'summary.json', 'w'))\n"
    )
    commands = Commands((sys.executable, str(script), "{recipe}", "{run}"), ())
    sweep = Sweep(tmp_path, cells("a", "b", "c", "d"), commands, threads=3)
    sweep.run(Local(2, gpus=["4", "5"]), 2, wait=0.02)
    found = [r.summary for r in [*map(_summary, sorted(tmp_path / n for n in "abcd"))]]
    assert {f["omp"] for f in found} == {"3"}
    assert {f["gpu"] for f in found} == {"4", "5"}
    for moment in (f["span"][0] for f in found):
        assert sum(f["span"][0] <= moment <= f["span"][1] for f in found) <= 2
    for gpu in ("4", "5"):
        spans = sorted(f["span"] for f in found if f["gpu"] == gpu)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), "two cells on one GPU"


def _summary(folder: Path) -> Any:
    from vitrim.experiments.runs import read_run

    return read_run(folder)


def test_the_lock_lives_as_long_as_the_process(tmp_path: Path) -> None:
    job = Job(
        "a", str(tmp_path / "a"), "", str(tmp_path / "a"), Commands((sys.executable, "-c", "import time; time.sleep(60)"), ())
    )
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=run_job, args=(job,), kwargs={"started": started.append})
    thread.start()
    until(lambda: bool(started))
    assert held(tmp_path / "a.lock")
    assert run_job(job).code is None, "a second worker leaves the cell alone"
    started[0].kill()
    thread.join(10)
    assert not held(tmp_path / "a.lock")
    descriptor = acquire(tmp_path / "a.lock")
    assert descriptor is not None
    os.close(descriptor)


def test_slurm_by_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    some = [
        *cells("a", "b"),
        Cell("bad", {"epochs": 2, "seed": 13}),
        Cell("after", {"epochs": 1, "weights": "{a}/model.safetensors"}),
    ]
    sweep = Sweep(tmp_path, some, COMMANDS)
    sweep.run(Slurm(tmp_path / ".sweep" / "slurm", {"cluster": "local"}), 3, wait=0.05)
    assert states(sweep) == {"a": "finished", "b": "finished", "bad": "failed", "after": "finished"}
    assert sweep.statuses["bad"].note == "the loss is not a number"
    with pytest.raises(ValueError, match="--on slurm"):
        Slurm(tmp_path / "x", {"cluster": "local", "no_such_parameter": 1})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    some = [*cells("a"), Cell("bad", {"epochs": 2, "seed": 13})]
    sweep = Sweep(tmp_path, some, COMMANDS)
    sweep.run(Ray({}), 2, wait=0.05)
    assert states(sweep) == {"a": "finished", "bad": "failed"}

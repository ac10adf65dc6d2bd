"""Run folders in whatever state, and questions about them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.experiments.fakeruns import score, write_run
from vitrim.experiments.launch import acquire
from vitrim.experiments.rows import chosen_columns, columns_of, in_order, to_csv, where
from vitrim.experiments.runs import find_runs, last_metrics, read_gradients, read_metrics, read_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "a" / "evit5", "evit", 0.5)
    write_run(root / "a" / "evit1", "evit", 0.1, clca=True)
    write_run(root / "b" / "topk", "topk", 0.5, seed=1)
    write_run(root / "dense", None)
    write_run(root / "late" / "failed", "sit", 0.5, state="failed")
    summary = root / "late" / "failed" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "error": "the loss is not a number"}))
    (root / ".hidden").mkdir()
    write_run(root / ".hidden" / "run")
    return root


def test_find(place: Path) -> None:
    found = {run.id: run for run in find_runs(place)}
    assert list(found) == ["a/evit1", "a/evit5", "b/topk", "dense", "late/failed"]
    assert found["a/evit5"].last["top1"] == score("evit", 0.5, False, 0)
    assert found["late/failed"].state == "failed"
    assert found["late/failed"].note == "the loss is not a number"
    assert 0 < found["late/failed"].last["top1"] < 90, "from its metrics.jsonl"
    assert [run.id for run in find_runs(place / "dense")] == ["dense"]
    with pytest.raises(ValueError, match="is no folder"):
        find_runs(place / "nothing")


def test_rows(place: Path) -> None:
    rows = [run.row() for run in find_runs(place)]
    row = next(row for row in rows if row["run"] == "a/evit1")
    assert row["cache"] == "clc(num_clr=1)"
    assert row["best_top1"] == row["top1"] == score("evit", 0.1, True, 0)
    assert {"gflops", "seconds", "parameters", "images_per_second", "schedule", "seed", "log"} <= set(row)
    shown = chosen_columns(rows, {"method", "schedule", "seed", "epochs", "model", "cache"})
    assert {"method", "schedule", "seed", "cache", "top1"} <= set(shown)
    assert not {"epochs", "model"} & set(shown), "the same for all"
    assert to_csv(rows, ["run", "top1", "gradients", "weights"]).splitlines()[4] == "dense,90.0,true,"


@pytest.mark.parametrize(
    ("expression", "runs"),
    [
        ("method like 'evit%' and top1 > 80", ["a/evit1", "a/evit5"]),
        ("method is null", ["dense"]),
        ("TOP1 >= 90 -- a comment", ["dense"]),
        ("state = 'failed' or seed = 1", ["b/topk", "late/failed"]),
        ("schedule like '%0.5%' and cache is null and gflops < 1", ["a/evit5", "b/topk", "late/failed"]),
        ("top1 = (select max(top1) from runs)", ["dense"]),
        ("not gradients", []),
    ],
)
def test_where(place: Path, expression: str, runs: list[str]) -> None:
    pytest.importorskip("duckdb")
    rows = [run.row() for run in find_runs(place)]
    assert [row["run"] for row in where(rows, expression)] == runs


@pytest.mark.parametrize(
    "expression", ["metod = 'evit'", "top1 >", "1); drop table runs; --", "epochs = read_text('/etc/passwd')"]
)
def test_where_that_is_wrong(place: Path, expression: str) -> None:
    pytest.importorskip("duckdb")
    rows = [run.row() for run in find_runs(place)]
    with pytest.raises(ValueError, match=r"--where .*; columns: run, state, top1"):
        where(rows, expression)


def test_where_without_duckdb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(ValueError, match=r"vitrim\[experiments\]"):
        where([{"run": "a"}], "true")


def test_order(place: Path) -> None:
    rows = [run.row() for run in find_runs(place)]
    assert in_order(rows, ["-top1"])[0]["run"] == "dense"
    assert [row["method"] for row in in_order(rows, ["method", "top1"])] == ["evit", "evit", "sit", "topk", None]
    with pytest.raises(ValueError, match="--sort -nothing: no such column"):
        in_order(rows, ["-nothing"])


def test_half_written_and_broken_runs(tmp_path: Path) -> None:
    """Whatever a killed process or a full disk leaves behind is shown, and costs the others nothing."""
    for name, files in {
        "begun": {"config.yaml": "method: evit\n"},
        "cut": {"config.yaml": "method: evit\n", "summary.json": '{"state": "fin'},
        "yaml": {"config.yaml": "a: [\n"},
        "list": {"config.yaml": "- 1\n"},
        "empty": {"config.yaml": "", "metrics.jsonl": "", "gradients.csv": ""},
        "binary": {"config.yaml": "method: evit\n", "metrics.jsonl": '\x00\xff{"kind"', "gradients.csv": "\x00"},
        "odd": {"config.yaml": "method: evit\n", "summary.json": '{"state": "finished", "last": [1], "best": {"top1": "x"}}'},
        "tail": {
            "config.yaml": "method: evit\n",
            "metrics.jsonl": '{"kind": "eval", "epoch": 1, "top1": 40}\n{"kind": "eval", "epoch": 2, "top1": 30}\n{"kind": "ev',
            "gradients.csv": "step,max_grad_all\n1,0.5\n2,0.2",
        },
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text, encoding="latin1")
    found = {run.id: run for run in find_runs(tmp_path)}
    assert {name: run.state for name, run in found.items()} == {
        "begun": "interrupted", "cut": "broken", "yaml": "broken", "list": "broken", "empty": "broken", "binary": "interrupted",
        "odd": "finished", "tail": "interrupted",
    }  # fmt: skip
    assert found["cut"].note.startswith("summary.json: ")
    assert (found["tail"].last["top1"], found["tail"].best["top1"]) == (30, 40)
    assert last_metrics(tmp_path / "tail")["epoch"] == 2
    assert [row["kind"] for row in read_metrics(tmp_path / "tail")] == ["eval", "eval"]
    assert read_gradients(tmp_path / "tail") == [(1.0, 0.5), (2.0, 0.2)]
    assert read_gradients(tmp_path / "binary") == []
    rows = [run.row() for run in found.values()]
    assert to_csv(rows, columns_of(rows))


def test_a_run_that_says_running(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", state="running")
    assert read_run(run).state == "running"
    for name in ("metrics.jsonl", "summary.json"):
        os.utime(run / name, (time.time() - 7200,) * 2)
    assert read_run(run).state == "stalled"
    assert "2.0 h" in read_run(run).note
    lock = acquire(tmp_path / ".sweep" / "a.lock")
    assert lock is not None
    assert read_run(run).state == "running", "its process holds the lock of the sweep"
    os.close(lock)
    assert read_run(run).state == "interrupted"


def test_metrics_by_weights(tmp_path: Path) -> None:
    """The moving average's numbers stand in columns of their own."""
    run = write_run(tmp_path / "a")
    summary = json.loads((run / "summary.json").read_text())
    scores = {"model": {"top1": 70.0, "loss": 1.0}, "ema": {"top1": 72.0, "loss": 0.9}}
    best = {"top1": 73.0, "epoch": 4, "step": 9, "weights": "ema"}
    (run / "summary.json").write_text(json.dumps({**summary, "last": scores, "best": best}))
    row = read_run(run).row()
    assert (row["top1"], row["ema_top1"], row["best_top1"]) == (70.0, 72.0, 73.0)
    assert not {"step", "best_step", "weights_"} & set(row)

"""``vitrim runs`` from the outside."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from cyclopts import App

from tests.experiments.fakeruns import score, write_run
from vitrim.cli.runs import runs


def call(*words: object) -> int:
    app = App()
    app.default(runs)
    return int(app([str(word) for word in words], exit_on_error=False, print_error=False, result_action="return_value"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for method in ("evit", "topk"):
        for rate in (0.5, 0.1):
            write_run(root / f"{method}{rate}", method, rate, epochs=2)
    write_run(root / "cut", "atc", state="interrupted", epochs=2)
    (root / "cut" / "summary.json").unlink()
    return root


def test_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(place, "--sort", "-top1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "top1"]
    assert "epochs" not in lines[0]
    assert lines[1].split()[:2] == ["evit0.5", "finished"]
    assert f"{score('evit', 0.5, False, 0):.6g}" in lines[1]
    assert any(line.startswith("cut") and "interrupted" in line for line in lines)
    assert lines[-1] == "5 runs"


def test_filter_columns_csv(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("duckdb")
    assert call(place, "--where", "method = 'topk' and gflops < 0.6", "--columns", "run", "top1,seed") == 0
    assert capsys.readouterr().out.split() == [
        "run",
        "top1",
        "seed",
        "topk0.1",
        f"{score('topk', 0.1, False, 0):g}",
        "0",
        "1",
        "of",
        "5",
        "runs",
    ]
    assert call(place, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run"] for row in rows] == ["cut", "evit0.1", "evit0.5", "topk0.1", "topk0.5"]
    assert rows[1]["schedule"] == "keep(rate=0.1, at=[3, 6, 9])"
    assert call(place, "--where", "top1 > 1000") == 0
    assert "0 of 5 runs" in capsys.readouterr().out


def test_wrong_words(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such column; there are: run, state"):
        call(place, "--columns", "topp1")
    with pytest.raises(ValueError, match="is no folder"):
        call(place / "nothing")
    assert call(tmp_path) == 1
    assert "no runs in" in capsys.readouterr().err

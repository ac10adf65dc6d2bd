"""``vitrim draw`` of trained runs and of their traces."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.training.small import recipe
from vitrim.cli.app import main
from vitrim.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(method="evit", schedule="keep(rate=0.5, at=[0, 1])", epochs=1), out)
    return out


def test_a_run_and_its_trace_have_one_depth(run: Path, tmp_path: Path) -> None:
    assert main(["eval", str(run), "--workers", "0", "--rounds", "0", "--trace"]) == 0
    tables = []
    for place in (run, run / "trace"):
        found = tmp_path / f"{place.name}.csv"
        arguments = ["--images", "0", "--workers", "0", "--table", str(found), "--out", str(tmp_path / "x.png")]
        assert main(["draw", "depth", str(place), *arguments]) == 0
        assert main(["draw", "tokens", str(run / "trace"), "--out", str(tmp_path / "x.png")]) == 2
        with found.open() as file:
            tables.append([{k: v for k, v in row.items() if k != "name"} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert len({row["depth_mean"] for row in tables[0]}) > 1


def test_stages_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.svg"
    assert main(["draw", "tokens", str(run), "--images", "2", "--side", "0.5", "--out", str(out)]) == 0
    text = out.read_text()
    assert text.count("<image") == 6
    assert "run · evit · keep(rate=0.5, at=[0, 1])" in text
    assert "block 1: " in text
    assert main(["draw", "grid", str(run), "--model", "fashion"]) == 2
    assert "leave out --model" in capsys.readouterr().err

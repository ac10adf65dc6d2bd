"""``vitrim report`` from the outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from cyclopts import App

from tests.experiments.fakeruns import write_run
from vitrim.cli.report import report


def call(*words: object) -> int:
    app = App()
    app.default(report)
    return int(app([str(word) for word in words], exit_on_error=False, print_error=False, result_action="return_value"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for method in ("evit", "topk"):
        write_run(root / "a" / method, method, 0.5, epochs=1, steps=3)
    write_run(root / "b" / "evit", "evit", 0.1, epochs=1, steps=3)
    return root


def test_page_and_table(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "report.html"
    assert call(place / "a", place / "b", place / "a" / "evit", "--out", out, "--title", "Leaves") == 0
    assert "3 runs, 3 settings; written:" in capsys.readouterr().out
    assert "<title>Leaves</title>" in out.read_text()
    assert call(place / "a", "--out", out) == 0, "a report is written over"
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(ValueError, match="is no report"):
        call(place, "--out", tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_markdown_of_some_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("duckdb")
    assert call(place, "--markdown", "-", "--where", "method = 'evit'") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["setting", ":--", "evit rate0.5", "evit rate0.1"]
    with pytest.raises(ValueError, match="leaves no runs"):
        call(place, "--markdown", "-", "--where", "false")


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs to report"):
        call(tmp_path)
    with pytest.raises(ValueError, match="name the runs"):
        call()

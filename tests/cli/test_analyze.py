"""``vitrim analyze`` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.faketraces import write_trace
from vitrim.cli.app import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for method in ("topk", "evit", "dynamicvit", "tome"):
        write_trace(root / method, method, images=40, root=root / "images")
    return root


def test_one_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = [
        "analyze",
        str(runs),
        "--by",
        "method",
        "--out",
        str(out),
        "--workers",
        "0",
        "--resamples",
        "30",
        "--examples",
        "1",
    ]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "4 runs, 6 pairs that differ in method" in told
    assert "with the difference in accuracy" in told
    assert "cannot be read" not in told
    assert "data:image/png;base64," in (out / "index.html").read_text()
    assert main(arguments) == 0
    assert "(6 finished before)" in capsys.readouterr().out


def test_images_that_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("topk", "evit"):
        write_trace(tmp_path / "runs" / method, method, images=10)
    assert main(["analyze", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--workers", "0", "--examples", "1"]) == 0
    assert "patterns are drawn on grey (another place: --data)" in capsys.readouterr().out


def test_wrong_input(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        assert main(["analyze", *arguments]) == 2
        return capsys.readouterr().err

    assert "name the runs" in error()
    assert "vitrim eval RUN --trace" in error(str(tmp_path))
    assert "cannot be compared with others" in error(str(runs / "topk"))
    assert "--by method" in error(str(runs), "--by", "rate", "--out", str(tmp_path / "new"))
    assert "--examples is 0 to 3" in error(str(runs), "--examples", "4")
    assert "3 or more" in error(str(runs), "--images", "2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert "holds something that is no analysis" in error(str(runs), "--out", str(tmp_path / "full"))

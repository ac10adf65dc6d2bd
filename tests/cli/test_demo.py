"""``vitrim demo`` on a handful of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitrim.cli.app import main


def test_report_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--limit", "10", "--methods", "tome", "topk", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "Report: " in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    assert "tome" in text
    assert "data:image/png;base64," in text
    assert 'src="http' not in text
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows][:2] == ["dense", "tome"]


def test_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, message in (
        (["--limit", "0"], "1 or more"),
        (["--methods", "tomee"], "did you mean"),
        (["--threads", "0"], "1 or more"),
    ):
        assert main(["demo", *extra, "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err

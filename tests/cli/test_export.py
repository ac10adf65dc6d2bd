"""``vitrim export`` writes, checks and times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitrim.cli import export as module
from vitrim.cli.app import main
from vitrim.cli.export import differences
from vitrim.export.onnx import OnnxModel
from vitrim.export.program import load_program

TINY = ["--model", "timm/vit_tiny_patch16_224(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2)", "--random-weights"]
TINY += ["--schedule", "keep(rate=0.5, at=[1, 2])"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "model.onnx"


def test_embedded_model(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--reduce", "evit", "--rounds", "0", "--out", str(out), "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "fashion, evit under keep(rate=0.5)"
    assert lines[1].startswith(f"written: {out} (")
    assert lines[2].startswith("check: 10 images, largest difference to PyTorch ")
    assert len(lines) == 3
    assert OnnxModel(out)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_times(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *TINY, "--reduce", "tome", "--rounds", "2", "--out", str(out)]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[0] for row in rows] == ["dense ONNX", "dense PyTorch", "tome ONNX", "tome PyTorch"]
    assert rows[0][-1].strip() == "1.00"


def test_any_batch_of_a_model_on_noise(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dynamic-batch", "--batch-size", "3", "--rounds", "0", "--reduce", "sit", "--out", str(out)]
    assert main(["export", *TINY, *options]) == 0
    said = capsys.readouterr().out
    assert "batch: any" in said
    assert "the learned part of sit is untrained" in said
    assert "noise for images" in said
    assert "check: 9 images" in said
    assert "latency" not in said
    assert OnnxModel(out)(torch.zeros(5, 3, 32, 32)).shape == (5, 1000)


def test_program_and_dense(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out.with_suffix(".pt2")
    assert main(["export", *TINY, "--reduce", "dense", "--rounds", "1", "--out", str(path)]) == 0
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split("  ")[0] for row in rows] == ["dense program", "dense PyTorch"]
    assert load_program(path)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_a_failed_check_exits_1(out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.OnnxModel, "__call__", lambda self, x: torch.full((len(x), 1000), torch.nan))
    assert main(["export", *TINY, "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "check FAILED: 10 of 10 images differ from PyTorch by over 1e-04, the largest by inf" in said
    assert "latency" not in said


def test_differences_take_full_batches() -> None:
    def wrong(x: Tensor) -> Tensor:
        return x.clone().index_fill_(0, torch.tensor([1]), 5.0)

    found = differences(torch.nn.Identity(), wrong, torch.zeros(5, 3), 2)
    assert found.tolist() == [0, 5, 0, 5]


def test_an_existing_file_stays_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    assert main(["export", *TINY, "--rounds", "0", "--out", str(path)]) == 2
    assert capsys.readouterr().err == f"vitrim: --out {path} exists; overwrite it with --force, or name another file\n"
    assert path.read_text() == "mine"
    assert main(["export", *TINY, "--rounds", "0", "--out", str(path), "--force"]) == 0
    assert path.stat().st_size > 1000


def test_missing_packages(out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.require_onnx.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else real(name))
    assert main(["export", *TINY, "--out", str(out)]) == 2
    assert "pip install vitrim[export]" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reduce", "tomee"], "did you mean 'tome'"),
        (["--reduce", "tome(metric=nonsense)"], "metric must be"),
        (["--schedule", "keep(rate=2)"], "(0, 1]"),
        (["--schedule", "keep(at=[40])"], "block 40 does not exist"),
        (["--out", "model.pb"], "FILE.onnx for ONNX or FILE.pt2"),
        (["--out", "."], "FILE.onnx"),
        (["--opset", "17"], "opset must be 18 to 22"),
        (["--opset", "20", "--out", "model.pt2"], "--opset is for ONNX files"),
        (["--batch-size", "0"], "--batch-size must be 1 or more"),
        (["--limit", "0"], "--limit must be 1 or more"),
        (["--threads", "0"], "--threads must be 1 or more"),
        (["--rounds", "-1"], "--rounds"),
        (["--images", "/nonexistent"], "does not exist"),
        (["--model", "fashio"], "unknown model"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    out: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [] if "--out" in arguments else ["--out", str(out)]
    assert main(["export", *given, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("vitrim: ")
    assert captured.out == ""
    assert not out.parent.exists()

"""``vitrim sweep`` from the outside: names, states, exit codes; and over the real training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cyclopts import App, CycloptsError
from safetensors.torch import load_file

from vitrim.cli.sweep import span, sweep
from vitrim.experiments.launch import Commands

STANDIN = str(Path(__file__).parents[1] / "experiments" / "standin.py")
RECIPE = """
model: timm/vit_tiny_patch16_224(pretrained=false, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
schedule: keep(rate=0.5, at=[1])
data: folder
fake: true
transform: weak(size=32)
epochs: 2
batch_size: 8
workers: 0
"""


def call(*words: object) -> int:
    app = App()
    app.default(sweep)
    return int(app([str(word) for word in words], exit_on_error=False, print_error=False, result_action="return_value"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands((sys.executable, STANDIN, "{recipe}", "--out", "{run}"), (sys.executable, STANDIN, "--resume", "{run}"))
    monkeypatch.setattr(Commands, "train", lambda python=(): commands)


@pytest.mark.usefixtures("standin")
def test_from_lists_to_runs(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    words = [recipe, "--out", out, "--method", "null,evit", "--schedule", "keep(rate=0.7, at=[1])", "keep(rate=0.5, at=[1])"]
    assert call(*words, "--dry-run") == 0
    assert not out.exists()
    told = capsys.readouterr().out
    assert "3 cells: 3 waiting" in told
    assert call(*words, "--workers", "2") == 0
    told = capsys.readouterr().out
    assert {p.name for p in out.iterdir() if p.is_dir()} == {".sweep", "dense", "evit-rate0.7", "evit-rate0.5"}
    assert "[3/3]" in told
    assert "finished: top1 52.00" in told
    assert call(*words, "--seed", "0", "13") == 1, "seed 13 fails"
    told = capsys.readouterr().out
    assert "6 cells" in told
    assert "3 of them finished already" in told
    assert "evit-rate0.5-seed13  failed: the loss is not a number  (log: " in told
    assert "3 finished, 3 failed" in told
    assert call("--out", out, "--only", "evit*", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "4 cells: 2 finished, 2 interrupted" in told or "4 cells: 2 interrupted, 2 finished" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metod", "evit"], "did you mean 'method'"),
        (["--method", "evitt"], "did you mean 'evit'"),
        (["--epochs", "many"], "'epochs' is a whole number"),
        (["--method", "evit(", "--seed", "1"], "is open"),
        (["--weights", "{dense}/model.safetensors"], "names no cell"),
        (["--workers", "0"], "1 or more"),
        (["--only", "x*"], "no cell has such a name"),
        (["--on", "slurm", "--resources", "gpus"], "KEY=VALUE"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(recipe: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(recipe, "--out", tmp_path / "sweep", *words)
    assert not (tmp_path / "sweep").exists()


def test_without_a_recipe(tmp_path: Path, recipe: Path) -> None:
    with pytest.raises(ValueError, match="holds no sweep to go on with"):
        call("--out", tmp_path / "sweep")
    with pytest.raises(ValueError, match="does not exist"):
        call(tmp_path / "none.yaml", "--out", tmp_path / "sweep")
    with pytest.raises(CycloptsError, match="--method"):
        call("--out", tmp_path / "sweep", "--method", "evit")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.yaml").write_text("grid: {}\n")
    with pytest.raises(ValueError, match="no record of a sweep"):
        call(recipe, "--out", tmp_path / "sweep")


def test_spans_of_time() -> None:
    assert [span(s) for s in (3.2, 89, 120, 5399, 12000)] == ["3 s", "89 s", "2 min", "1 h 30 min", "3 h 20 min"]


@pytest.mark.slow
def test_a_killed_training_loses_nothing(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL of a worker, then of the sweep itself: the weights are those of a sweep that nobody touched, bit for bit."""
    words = [str(recipe), "--method", "topk", "--seed", "0", "1", "--epochs", "60", "--workers", "2"]
    code = "import sys; from tests.cli.test_sweep import call; sys.exit(call(*sys.argv[1:]))"
    root = Path(__file__).parents[2]

    def start(out: Path) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
        return subprocess.Popen([sys.executable, "-c", code, *words, "--out", str(out)], env=env)

    assert start(tmp_path / "whole").wait() == 0
    out = tmp_path / "cut"
    sweeper = start(out)
    while not any((out / "seed0" / "checkpoints").glob("step-*")):
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(sweeper.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    sweeper.kill()
    sweeper.wait()
    assert start(out).wait() == 0
    for name in ("seed0", "seed1"):
        whole, cut = (load_file(place / name / "model.safetensors") for place in (tmp_path / "whole", out))
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole)

import json

import pytest

from tests.training.small import SMALL, written
from vitrim.cli import app
from vitrim.cli.train import read_words


@pytest.fixture
def main():
    return lambda *arguments: app.main(["train", *map(str, arguments)])


def test_a_run_from_a_file(main, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(written(tmp_path, epochs=2), "--out", out, "--epochs", "1", "--method", "tome", "--schedule.at", "[1]") == 0
    told = capsys.readouterr()
    assert "written:" in told.out
    assert str(out / "model.safetensors") in told.out
    assert "val (model)" in told.err
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["state"], summary["epochs"]) == ("finished", 1)
    assert "at=[1])\n" in (out / "config.yaml").read_text()
    assert main("--resume", out) == 0
    assert "is finished already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "recipe: unknown key 'epoch'; did you mean 'epochs'?"),
        (["--epochs", "many"], "recipe: 'epochs' is a whole number; got 'many'"),
        (["--method", "evitt"], "unknown method 'evitt'; did you mean 'evit'?"),
        (["--transform", "weakk"], "unknown transform 'weakk'; did you mean 'weak'?"),
        (["--lr_schedule", "cosin"], "unknown learning-rate schedule 'cosin'; did you mean 'cosine'?"),
        (["--optimizer", "adamww(lr=1)"], "unknown optimizer 'adamww'; did you mean 'adamw'?"),
        (["--loss", "asymmetric"], "loss 'asymmetric' does not fit the task 'classify'"),
        (["--batch_size", "64"], "lower batch_size"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(main, tmp_path, capsys, arguments, message):
    assert main(written(tmp_path), "--out", tmp_path / "run", *arguments) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_said(main, tmp_path, capsys):
    for arguments in ([], ["--out", tmp_path / "run"], [written(tmp_path)]):
        assert main(*arguments) == 2
        assert "give a recipe and a folder, as in: vitrim train recipes/smoke.yaml --out RUN" in capsys.readouterr().err
    assert main("--resume", tmp_path / "nothing") == 2
    assert "holds no run (no config.yaml)" in capsys.readouterr().err
    assert main(written(tmp_path), "--resume", tmp_path) == 2
    assert "leave out the recipe and --out" in capsys.readouterr().err


def test_what_cannot_change_when_a_run_goes_on(main, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in SMALL.items()))
    assert main("--resume", tmp_path, "--method", "evit") == 2
    assert "--method cannot change in a run that goes on" in capsys.readouterr().err


def test_words():
    words = ["r.yaml", "--epochs", "3", "--fake", "--schedule.rate=0.5", "--lr", "-1"]
    assert read_words(words) == ("r.yaml", {"epochs": "3", "fake": "true", "schedule.rate": "0.5", "lr": "-1"})
    with pytest.raises(ValueError, match="--epochs needs a value"):
        read_words(["--epochs"])
    with pytest.raises(ValueError, match=r"'b.yaml' is a second recipe"):
        read_words(["a.yaml", "b.yaml"])

import json
import shutil

import pytest

from tests.training.small import recipe
from vitrim.cli import app
from vitrim.experiments.tracestore import TraceStore
from vitrim.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(method="evit", schedule="keep(rate=0.5, at=[1, 2])", epochs=1), out)
    return out


@pytest.fixture
def main():
    return lambda *arguments: app.main(["eval", *map(str, arguments)])


def test_a_run(main, run, capsys):
    assert main(run, "--workers", 0, "--rounds", 2, "--trace", "--predictions", "csv", "--batch-size", 8) == 0
    told = capsys.readouterr().out
    for words in ("top-1", "GFLOPs", "times the dense model", "parameters", "kB per image", "evit, keep(rate=0.5, at=[1, 2])"):
        assert words in told
    values = json.loads((run / "evaluation.json").read_text())
    assert values["images_per_second"] > 0
    assert f"{values['top1']:.2f} %" in told
    store = TraceStore(run)
    assert len(store) == values["images"]
    assert store.meta["metrics"]["top1"] == values["top1"]


def test_a_look_at_a_part_does_not_pass_for_the_run(main, run, capsys):
    before = (run / "evaluation.json").read_text() if (run / "evaluation.json").is_file() else None
    assert main(run, "--workers", 0, "--rounds", 0, "--limit", 4) == 0
    assert main(run, "--workers", 0, "--rounds", 0, "--limit", 4, "--method", "none") == 0
    told = capsys.readouterr().out
    assert "4 images" in told
    assert (run / "evaluations" / "limit4" / "evaluation.json").is_file()
    assert (run / "evaluations" / "none" / "limit4" / "evaluation.json").is_file()
    assert ((run / "evaluation.json").read_text() if before else None) == before


def test_a_weights_file_and_a_model(main, run, tmp_path, capsys):
    assert main("--weights", run / "model.safetensors", "--workers", 0, "--rounds", 0, "--out", tmp_path) == 0
    first = json.loads((tmp_path / "evaluation.json").read_text())
    assert first["method"] == "evit"
    from vitrim.datasets.base import DATASETS

    place = DATASETS.get("folder").fake(tmp_path / "images").root
    model = "timm/vit_tiny_patch16_224(pretrained=false, img_size=32, patch_size=8, depth=2, num_classes=4)"
    data = f"folder(root={place})"
    assert main("--model", model, "--data", data, "--method", "tome", "--schedule", "r(n=2)", "--rounds", 0, "--workers", 0) == 0
    told = capsys.readouterr().out
    assert "note: the weights are random" in told
    assert "written" not in told.split("random")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one thing to evaluate: vitrim eval RUN"),
        (["RUN", "--weights", "x.safetensors"], "give one thing to evaluate"),
        (["RUN", "--model", "fashion"], "is a run, which knows its model; leave out --model"),
        (["--model", "timm/vit_tiny_patch16_224"], "--model needs images; give a data set"),
        (["nowhere"], "'nowhere' does not exist"),
        (["--weights", "nowhere.safetensors"], "weights: 'nowhere.safetensors' does not exist"),
        (["RUN", "--split", "tests"], "has no split 'tests'; it has: train, val"),
        (["RUN", "--method", "evitt"], "unknown method 'evitt'; did you mean 'evit'?"),
        (["RUN", "--ema"], "keeps no moving average"),
        (["RUN", "--threads", "0"], "--threads is 1 or more"),
        (["RUN", "--trace", "--blocks", "9"], "the model has the blocks 0 to 3"),
        (["RUN", "--task", "multilabel"], "task 'multilabel' does not fit the data set"),
    ],
)
def test_wrong_input_is_one_line(main, run, capsys, arguments, message):
    out = run.parent / "wrong"
    assert main(*[run if word == "RUN" else word for word in arguments], "--workers", 0, "--out", out) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
    assert not (out / "evaluation.json").exists()


def test_ctrl_c(main, run, tmp_path, capsys, monkeypatch):
    from vitrim.experiments import passes

    original, calls = passes.of_batch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(passes, "of_batch", interrupted)
    options = ("--workers", 0, "--rounds", 0, "--batch-size", 4, "--out", tmp_path, "--split", "train")
    assert main(run, *options) == 130
    assert "interrupted after 8 of 40 images; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "evaluation.json").exists()
    monkeypatch.undo()
    assert main(run, *options) == 0


def test_several_runs(main, run, tmp_path, capsys):
    twin = tmp_path / "twin"
    shutil.copytree(run, twin)
    out = tmp_path / "results"
    assert main(run, tmp_path / "nothing", twin, "--workers", 0, "--rounds", 0, "--batch-size", 8, "--out", out) == 1
    told = capsys.readouterr()
    assert "nothing" in told.err
    assert "1 of 3 runs could not be evaluated" in told.err
    one, other = (json.loads((out / name / "evaluation.json").read_text()) for name in ("run", "twin"))
    assert one["top1"] == other["top1"]
    assert main(run, run / "model.safetensors", "--out", out) == 2
    assert "two runs are called 'run'" in capsys.readouterr().err
    assert main(run, twin, "--model", "fashion") == 1
    assert "leave out --model" in capsys.readouterr().err


def test_the_embedded_model_has_images(main, tmp_path, capsys):
    asked = ("--model", "fashion", "--method", "tome", "--schedule", "keep(rate=0.5)", "--limit", 20, "--rounds", 0)
    assert main(*asked, "--workers", 0, "--out", tmp_path) == 0
    assert "embedded, test: 20 images, 10 classes" in capsys.readouterr().out

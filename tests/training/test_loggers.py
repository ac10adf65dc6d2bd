import builtins
import errno
import json
import warnings

import pytest

from vitrim.training.checkpoint import WriteError
from vitrim.training.loggers import Loggers, scalars
from vitrim.training.progress import Progress, clock


def test_one_object_a_line(tmp_path):
    loggers = Loggers(["jsonl"], tmp_path, {})
    loggers.write("train", 3, 0.5, loss=1.5, lr=0.1)
    loggers.write("eval", 3, 0.5, split="val", weights="ema", top1=50.0)
    loggers.close()
    first, second = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (first["kind"], first["step"], first["epoch"], first["loss"]) == ("train", 3, 0.5, 1.5)
    assert second["weights"] == "ema"
    assert scalars(second) == {"eval_ema/epoch": 0.5, "eval_ema/top1": 50.0}


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorBoard's own imports
        for start in (0, 2):  # the second run goes on from step 2 and overwrites step 3
            loggers = Loggers(["jsonl", "tensorboard"], tmp_path, {}, start)
            for step in range(start + 1, 4):
                loggers.write("train", step, 0.0, loss=float(step + start))
            loggers.close()
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 5.0)]


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of W&B's own imports
        loggers = Loggers(["wandb"], tmp_path, {"epochs": 3})
        loggers.write("train", 1, 0.1, loss=2.0)
        loggers.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert (tmp_path / "wandb-id.txt").read_text()


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, name, module):
    real = builtins.__import__

    def without(wanted, *rest, **more):
        if wanted == module:
            raise ImportError(wanted)
        return real(wanted, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"log: {name} is not installed; install vitrim\[{name}\]"):
        Loggers([name], tmp_path, {})


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    loggers = Loggers(["jsonl"], tmp_path, {})
    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(WriteError, match=r"cannot write .*metrics.jsonl: No space left on device; free space, then --resume"):
        loggers.write("train", 1, 0.0)


def test_the_line_of_progress(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vitrim.training.progress.time.monotonic", lambda: now[0])
    progress = Progress(total=100, steps=10, epochs=10)
    for step in range(1, 21):
        now[0] += 1.0
        progress.step(step, 2.0, 50.0, 64.0, 1024.0)
    told = capsys.readouterr().err.splitlines()
    assert told == ["epoch 2/10  step 15/100  loss 2.0000  top-1  50.0 %  64 images/s  1024 MB  1:25 left"]
    assert clock(3661) == "1:01:01"
    silent = Progress(total=100, steps=10, epochs=10, show=False)
    now[0] += 100
    silent.step(30, 1.0, None, 1.0, 1.0)
    silent.say("x")
    assert capsys.readouterr().err == ""

import errno
import json
import os
import shutil
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.training.small import MODEL, recipe
from vitrim.datasets.base import DataError
from vitrim.training import checkpoint as checkpoints
from vitrim.training.build import build_dataset, load_run
from vitrim.training.checkpoint import WriteError
from vitrim.training.loop import Run, TrainingError, train


def lines(run, kind=None):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if kind in (None, r["kind"])]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    summary = train(recipe(method="evit", schedule="keep(rate=0.5, at=[1, 2])", epochs=6, ema=0.8, gradients=True), out)
    return out, summary


def test_it_learns(finished):
    out, summary = finished
    first, *_, last = [r for r in lines(out, "eval") if r["weights"] == "model"]
    assert first["step"] == 0
    assert last["step"] == summary["steps"] == 30
    assert last["loss"] < 0.7 * first["loss"]
    assert last["top1"] >= 75
    assert summary["last"]["model"]["top1"] == last["top1"]


def test_the_folder_is_complete(finished):
    out, summary = finished
    assert summary["state"] == "finished"
    assert json.loads((out / "summary.json").read_text()) == summary
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "gradients.csv", "summary.json", "checkpoints", "model.safetensors", "ema.safetensors"
    }  # fmt: skip
    assert [r["step"] for r in lines(out, "train")] == list(range(1, 31))
    assert [int(r.split(",")[0]) for r in (out / "gradients.csv").read_text().splitlines()[1:]] == list(range(1, 31))
    assert {"loss", "top1", "lr", "images_per_second", "memory_mb"} <= set(lines(out, "train")[0])
    assert {r["step"] for r in lines(out, "eval")} == {0, 5, 10, 15, 20, 25, 30}
    assert summary["parameters"] == summary["trainable"]
    assert summary["gflops"] > 0
    assert len(list((out / "checkpoints").iterdir())) == 2


def test_the_weights_rebuild_the_model(finished):
    out, summary = finished
    for source in (out, out / "model.safetensors"):
        loaded = load_run(source)
        split, transform = loaded.dataset.split("val"), loaded.transform.eval()
        images = torch.stack([transform(image) for image, _ in split])
        right = (loaded.model(images).argmax(-1) == torch.tensor(split.targets)).float().mean()
        assert 100 * right == pytest.approx(summary["last"]["model"]["top1"])
        assert loaded.recipe.method == "evit"
        assert loaded.model.reduction.method == "evit"
    averaged = load_run(out, which="ema")
    assert not torch.equal(averaged.model.head.weight, loaded.model.head.weight)


def test_the_file_says_what_the_model_takes(finished):
    with safe_open(finished[0] / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert len(json.loads(metadata["classes"])) == 4
    assert len(json.loads(metadata["mean"])) == 3


def test_a_second_run_needs_a_folder_of_its_own(finished):
    with pytest.raises(ValueError, match=r"holds a run already; go on with --resume .*, or give another --out"):
        train(recipe(), finished[0])


def test_a_finished_run_is_not_run_again(finished):
    before = (finished[0] / "model.safetensors").stat().st_mtime_ns
    assert train(recipe(), finished[0], resume=True) == finished[1]
    assert (finished[0] / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "values",
    [
        {"method": "dynamicvit", "schedule": "keep(rate=0.5, at=[1, 2])"},
        {"method": "none", "cache": "clc(num_clr=1)", "head": "cla", "schedule": "keep(rate=0.5, at=[1, 2])"},
        {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "repeats": 3},
        {"precision": "bf16", "accumulate": 2, "clip": 1.0, "batch_size": 4},
        {"freeze": "backbone", "layer_decay": 0.8},
        {"optimizer": "sgd(lr=0.01)", "freeze_epochs": 1, "cooldown_epochs": 1, "backbone_lr_scale": 0.1},
        {"loss": "bce", "drop": 0.1, "drop_path": 0.1, "workers": 2},
        {"data": "coco", "transform": "multilabel(size=32)"},
        {"epochs": 0},
    ],
    ids=lambda values: "-".join(map(str, values)),
)
def test_variants(tmp_path, values):
    summary = train(recipe(**{"epochs": 1, **values}), tmp_path / "run")
    assert summary["state"] == "finished"
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point())
    if "data" in values:
        assert summary["score"] == "mAP"
    if values.get("freeze") == "backbone":
        assert summary["trainable"] == 4 * 24 + 4


def test_freezing_leaves_the_backbone_alone(tmp_path):
    train(recipe(epochs=0), tmp_path / "start")
    train(recipe(epochs=1, freeze="backbone"), tmp_path / "run")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("start", "run"))
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"head.weight", "head.bias"}


def test_no_number_stops_with_the_last_good_state(tmp_path):
    wild = recipe(optimizer="sgd(lr=1e30)", epochs=4, lr_schedule="constant", checkpoint_every="1 step")
    with pytest.raises(
        TrainingError, match=r"step \d+ \(epoch \d+\): .*lower the learning rate \(now 1e\+30\), set --clip 1"
    ) as error:
        train(wild, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert summary["error"] == " ".join(str(error.value).split())
    kept = checkpoints.newest(tmp_path / "run" / "checkpoints")
    if kept is not None:
        state = checkpoints.read_checkpoint(kept).tensors["model"]
        assert all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point())


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    real, written = os.fsync, []

    def full(handle):
        if len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1:
            written.append(handle)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(WriteError, match=r"No space left on device.*step-00000002") as error:
        train(recipe(checkpoint_every="2 steps", eval_every=9), tmp_path / "run")
    monkeypatch.undo()
    assert written
    assert "\n" not in str(error.value)
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").name == "step-00000002"
    assert train(recipe(checkpoint_every="2 steps", eval_every=9), tmp_path / "run", resume=True)["state"] == "finished"
    assert [r["step"] for r in lines(tmp_path / "run", "train")] == list(range(1, 16))


def test_ctrl_c_finishes_the_step_and_saves(tmp_path, monkeypatch):
    step = Run._step

    def pressed(self, parts):
        if self.session.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, parts)

    monkeypatch.setattr(Run, "_step", pressed)
    before = signal.getsignal(signal.SIGINT)
    summary = train(recipe(), tmp_path / "run")
    assert (summary["state"], summary["step"], summary["signal"]) == ("interrupted", 7, signal.SIGINT)
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").name == "step-00000007"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before


def broken_set(tmp_path):
    """A copy of the fake set with one unreadable training image."""
    root = tmp_path / "data"
    shutil.copytree(build_dataset(recipe()).root, root)
    victim = sorted((root / "train").rglob("*.*"))[3]
    victim.write_bytes(b"no image")
    return root, victim


def test_an_unreadable_image_stops_the_run_before_it_starts(tmp_path):
    root, victim = broken_set(tmp_path)
    with pytest.raises((DataError, ValueError), match=victim.name):
        train(recipe(fake=False, data=f"folder(root='{root}')"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_and_counted_when_asked(tmp_path, workers):
    root, _ = broken_set(tmp_path)
    summary = train(
        recipe(fake=False, data=f"folder(root='{root}')", skip_unreadable=True, workers=workers, epochs=2), tmp_path / "run"
    )
    assert summary["skipped_images"] == 2
    assert summary["state"] == "finished"


def test_a_step_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a step takes 128 images .*the split 'train' has 40; lower batch_size"):
        train(recipe(batch_size=64, accumulate=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_grey_model_learns_too(tmp_path):
    summary = train(
        recipe(epochs=1, transform="small(size=32, grey=true)", model=MODEL.replace("tiny", "small")), tmp_path / "run"
    )
    assert summary["state"] == "finished"
    assert load_run(tmp_path / "run").model.patch_embed.proj.in_channels == 1


def test_shards_are_read_as_a_stream(tmp_path):
    summary = train(recipe(data="wds", workers=2, epochs=2), tmp_path / "run")
    assert summary["state"] == "finished"
    assert summary["train_images"] == 40
    assert [r["step"] for r in lines(tmp_path / "run", "train")] == list(range(1, summary["steps"] + 1))

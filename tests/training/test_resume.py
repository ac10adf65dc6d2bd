"""Runs that are killed and go on: the same weights, and every step told once."""

import json
import os
import random
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.training.small import processes, recipe, written
from vitrim.cli import app
from vitrim.training.loop import Run, train

EVERYTHING = {
    "method": "dynamicvit",  # Gumbel noise
    "schedule": "keep(rate=0.5, at=[1, 2])",
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path": 0.2,
    "drop": 0.1,
    "smoothing": 0.1,
    "ema": 0.9,
    "gradients": True,
    "accumulate": 2,
    "batch_size": 4,
    "repeats": 2,
    "workers": 1,
    "epochs": 6,
    "eval_every": 3,
    "checkpoint_every": "2 steps",
    "transform": "medium(size=32)",
}


def same(one, other):
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert [k for k in a if not torch.equal(a[k], b[k])] == []


def told_once(folder, steps):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, steps + 1))
    rows = (folder / "gradients.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, steps + 1))
    evaluated = [(r["step"], r["weights"]) for r in records if r["kind"] == "eval"]
    assert len(evaluated) == len(set(evaluated))
    return {k: v for r in records for k, v in [((r["kind"], r["step"], r.get("weights")), r.get("loss"))] if "loss" in r}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    summary = train(recipe(**EVERYTHING), out)
    return out, summary["steps"], time.monotonic() - began


def test_killed_at_random_instants(whole, tmp_path):
    out = tmp_path / "run"
    dice = random.Random(7)
    deaths = 0
    for _ in range(30):
        going_on = (out / "config.yaml").exists()
        process = processes().Process(target=train, args=(recipe(**EVERYTHING), out, going_on))
        process.start()
        process.join(dice.uniform(0.05, 0.4) * whole[2] if deaths < 5 else 120)
        if process.exitcode == 0:
            break
        deaths += 1
        process.kill()
        process.join()
    assert deaths >= 2
    assert json.loads((out / "summary.json").read_text())["state"] == "finished"
    same(whole[0], out)
    assert told_once(out, whole[1]) == told_once(whole[0], whole[1])
    assert not list((out / "checkpoints").glob(".*"))


def in_the_terminal(arguments, place):
    sys.stderr = (place / "errors.txt").open("w")
    sys.exit(app.main(["train", *map(str, arguments)]))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_by_hand(whole, tmp_path, number, code):
    out = tmp_path / "run"
    arguments = [written(tmp_path, **EVERYTHING), "--out", out]
    process = processes().Process(target=in_the_terminal, args=(arguments, tmp_path))
    process.start()
    deadline = time.monotonic() + 60
    while process.is_alive() and not list((out / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    errors = (tmp_path / "errors.txt").read_text()
    assert process.exitcode == code, errors
    assert f"go on with: vitrim train --resume {out}" in errors
    assert "Traceback" not in errors
    assert json.loads((out / "summary.json").read_text())["state"] == "interrupted"
    train(recipe(**EVERYTHING), out, resume=True)
    same(whole[0], out)
    told_once(out, whole[1])


@pytest.mark.parametrize("at", [3, 14])
def test_stopped_between_checkpoints(whole, tmp_path, monkeypatch, at):
    step = Run._step

    def broken(self, parts):
        if self.session.step == at:
            raise MemoryError
        step(self, parts)

    monkeypatch.setattr(Run, "_step", broken)
    with pytest.raises(MemoryError):
        train(recipe(**EVERYTHING), tmp_path / "run")
    monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "failed"
    train(recipe(**EVERYTHING), tmp_path / "run", resume=True)
    same(whole[0], tmp_path / "run")
    told_once(tmp_path / "run", whole[1])


def test_the_number_of_workers_does_not_matter(whole, tmp_path):
    train(recipe(**{**EVERYTHING, "workers": 0}), tmp_path / "run")
    same(whole[0], tmp_path / "run")


def test_another_batch_cannot_go_on(tmp_path, monkeypatch):
    step = Run._step

    def broken(self, parts):
        if self.session.step == 3:
            raise MemoryError
        step(self, parts)

    monkeypatch.setattr(Run, "_step", broken)
    with pytest.raises(MemoryError):
        train(recipe(checkpoint_every="1 step"), tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"another number of images per step \(8, now 4\); resume with the same"):
        train(recipe(batch_size=4), tmp_path / "run", resume=True)

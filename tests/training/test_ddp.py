"""Two processes are one: the same global batch gives the same weights."""

import json
import os
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.training.small import processes, recipe, written
from vitrim.cli import app
from vitrim.experiments.evaluate import Settings, evaluate
from vitrim.experiments.subject import Changes, of_run
from vitrim.training.loop import train

# Nothing that depends on which images share a process: no mixing, no noise in the blocks.
PLAIN = {"method": "evit", "schedule": "keep(rate=0.5, at=[1, 2])", "epochs": 2, "ema": 0.9, "gradients": True, "clip": 1.0}


def one_of_two(rank, port, file, out):
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
    if rank:
        sys.stdout = sys.stderr = (out.parent / "second.txt").open("w")
    sys.exit(app.main(["train", str(file), "--out", str(out)]))


def two_processes(file, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [processes().Process(target=one_of_two, args=(rank, port, file, out)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    return [process.exitcode for process in both]


# Two passes for each image, and a block and a token of its own; no term between the images of a process.
RECOGNISER = {"recognise": "glsim(top=3, aux=cls)", "epochs": 2, "ema": 0.9, "gradients": True, "clip": 1.0}


@pytest.mark.parametrize("values", [PLAIN, RECOGNISER], ids=["reduced", "recogniser"])
def test_two_processes_equal_one(tmp_path, values):
    train(recipe(**values, batch_size=8), tmp_path / "one")
    file = written(tmp_path, **values, batch_size=4)
    assert two_processes(file, tmp_path / "two") == [0, 0]
    for name in ("model.safetensors", "ema.safetensors"):
        one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert one.keys() == two.keys()
        for key, value in one.items():
            torch.testing.assert_close(value, two[key], atol=1e-5, rtol=0)
    told = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()] for run in ("one", "two")]
    for a, b in zip(*told, strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        assert abs(a.get("loss", 0) - b.get("loss", 0)) < 1e-5
        assert a.get("top1") == b.get("top1")
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
    # Only the first process speaks.
    assert (tmp_path / "second.txt").read_text() == ""


def test_a_head_of_its_own_leaves_no_parameter_without_gradient(tmp_path):
    """The model's own classifier rests; a second step would fail if the processes waited for its gradients."""
    file = written(tmp_path, method="evit", schedule="keep(rate=0.5, at=[1, 2])", epochs=1, batch_size=4, cache="clc", head="cla")
    assert two_processes(file, tmp_path / "two") == [0, 0], (tmp_path / "second.txt").read_text()


def test_running_means_and_centres_are_those_of_all_processes(tmp_path):
    """CAL normalises over a process's images and keeps centres of classes; all evaluate what the first one writes."""
    file = written(tmp_path, recognise="cal(maps=4)", epochs=2, batch_size=4)
    assert two_processes(file, tmp_path / "two") == [0, 0], (tmp_path / "second.txt").read_text()
    told = json.loads((tmp_path / "two" / "summary.json").read_text())["last"]["model"]
    values = evaluate(of_run(tmp_path / "two", Changes(), torch.device("cpu")), None, Settings(rounds=0))
    assert values["loss"] == pytest.approx(told["loss"], abs=1e-5)
    assert values["top1"] == pytest.approx(told["top1"])

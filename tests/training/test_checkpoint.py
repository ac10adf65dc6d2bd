import errno
import json
import os

import pytest
import torch

from vitrim.training import checkpoint as module
from vitrim.training.checkpoint import WriteError, newest, read_checkpoint, write_checkpoint
from vitrim.training.optimizer_state import pack_optimizer, unpack_optimizer

TENSORS = {"model": {"a": torch.arange(3.0)}, "optimizer": {}}


def write(root, step, keep=2, **state):
    return write_checkpoint(root, step, TENSORS, state, keep)


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path / "c", 12, best=1.5)
    found = read_checkpoint(path)
    assert path.name == "step-00000012"
    assert torch.equal(found.tensors["model"]["a"], torch.arange(3.0))
    assert found.tensors["optimizer"] == {}
    assert (found.state["best"], found.state["step"]) == (1.5, 12)


def test_the_newest_stay(tmp_path):
    for step in (1, 2, 10):
        write(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    assert newest(tmp_path).name == "step-00000010"


def test_tied_weights_can_be_written(tmp_path):
    weight = torch.ones(2, 2)
    path = write_checkpoint(tmp_path, 1, {"model": {"a": weight, "b": weight, "c": weight[0]}}, {}, 1)
    assert torch.equal(read_checkpoint(path).tensors["model"]["b"], weight)


@pytest.mark.parametrize("damage", ["cut", "no state", "half state", "no weights"])
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    if damage == "cut":
        os.truncate(path / "model.safetensors", 20)
    elif damage == "no state":
        (path / "state.json").unlink()
    elif damage == "half state":
        os.truncate(path / "state.json", 9)
    else:
        (path / "model.safetensors").unlink()
    assert newest(tmp_path).name == "step-00000001"


@pytest.mark.parametrize("instant", range(1, 12))
def test_the_old_one_survives_an_error_at_any_instant(tmp_path, monkeypatch, instant):
    """The disk fills up at the n-th operation on it."""
    write(tmp_path, 1)
    count = 0

    def failing(real):
        def call(*arguments, **more):
            nonlocal count
            count += 1
            if count == instant:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **more)

        return call

    monkeypatch.setattr(module.os, "fsync", failing(os.fsync))
    monkeypatch.setattr(module.Path, "mkdir", failing(module.Path.mkdir))
    monkeypatch.setattr(module.Path, "rename", failing(module.Path.rename))
    told = "No space left on device"
    try:
        write(tmp_path, 2, keep=1)
    except WriteError as error:
        told = str(error)
    assert told.count("No space left on device") == 1
    monkeypatch.undo()
    found = newest(tmp_path)
    assert found is not None
    assert torch.equal(read_checkpoint(found).tensors["model"]["a"], torch.arange(3.0))
    write(tmp_path, 3, keep=1)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_damaged_one_says_what_to_do(tmp_path):
    path = write(tmp_path, 1)
    (path / "state.json").write_text(json.dumps({"parts": [], "sizes": {"other.safetensors": 1}}))
    with pytest.raises(ValueError, match=r"is damaged .*; remove the folder to go on from the one before"):
        read_checkpoint(path)


@pytest.mark.parametrize("make", [lambda p: torch.optim.AdamW(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_an_optimiser_goes_on_where_it_was(make):
    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))

    def step(net, optimizer):
        net(torch.ones(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one = model()
    first = make(one.parameters())
    step(one, first)
    other = model()
    other.load_state_dict(one.state_dict())
    second = make(other.parameters())
    tensors, numbers = pack_optimizer(first, one)
    unpack_optimizer(second, other, {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(numbers)))
    step(one, first)
    step(other, second)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"there is no trained parameter '9\.weight'"):
        unpack_optimizer(second, other, {"9.weight|exp_avg": torch.zeros(1)}, {})

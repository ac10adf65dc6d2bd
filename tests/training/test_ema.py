"""The moving average against its formula and timm's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn

from vitrim.training.ema import Ema


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def step(model: nn.Module) -> None:
    model(torch.randn(8, 3))  # moves the statistics of batch norm
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))


def test_is_the_published_average_and_timms() -> None:
    model = make()
    ours, timms = Ema(model, 0.9), ModelEmaV3(model, decay=0.9)
    wanted = {name: t.double() for name, t in model.state_dict().items()}
    for i in range(5):
        step(model)
        ours.update(model)
        timms.update(model)
        for name, t in model.state_dict().items():
            wanted[name] = 0.9 * wanted[name] + 0.1 * t.double()
        if i == 0:
            timms.module.load_state_dict(ours.weights())  # timm starts with the weights of the first step
    for name, t in ours.weights().items():
        if t.is_floating_point():
            torch.testing.assert_close(t.double(), wanted[name], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(t, timms.module.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert ours.weights()["1.num_batches_tracked"] == 5


def test_half_precision_does_not_stand_still() -> None:
    model = nn.Linear(2, 2).to(torch.bfloat16)
    nn.init.zeros_(model.weight)
    ema = Ema(model, 0.999)
    nn.init.ones_(model.weight)
    for _ in range(1000):
        ema.update(model)
    assert ema.weights()["weight"].dtype is torch.bfloat16
    assert ema.weights()["weight"].float().mean().item() == pytest.approx(1 - 0.999**1000, rel=0.01)
    assert ema.state()["weight"].dtype is torch.float32


def test_saves_loads_and_goes_on_exactly(tmp_path: Path) -> None:
    model = make()
    ema = Ema(model, 0.99)
    step(model)
    ema.update(model)
    save_file(ema.state(), tmp_path / "ema.safetensors")
    other = Ema(make(), 0.99)
    other.load(load_file(tmp_path / "ema.safetensors"))
    step(model)
    ema.update(model)
    other.update(model)
    assert all(torch.equal(a, other.state()[n]) for n, a in ema.state().items())


def test_applied_and_back() -> None:
    model = make()
    ema = Ema(model, 0.5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    step(model)
    now = {n: t.clone() for n, t in model.state_dict().items()}
    with contextlib.suppress(KeyboardInterrupt), ema.applied(model):
        assert torch.equal(model[0].weight, before["0.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(now[n], t) for n, t in model.state_dict().items())


def test_refuses_what_does_not_fit() -> None:
    model = make()
    ema = Ema(model, 0.5)
    model.register_buffer("extra", torch.zeros(1))
    with pytest.raises(ValueError, match=r"has changed.*extra"):
        ema.update(model)
    with pytest.raises(ValueError, match=r"another model: entry '2\.bias'"):
        ema.load({n: t for n, t in ema.state().items() if n != "2.bias"})
    with pytest.raises(ValueError, match="decay"):
        Ema(model, 1.5)

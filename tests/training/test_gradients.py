"""The gradient record against its definition in plain PyTorch, and the file through a resume."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from vitrim.training.gradients import COLUMNS, GradientLog, gradient_record, tracked


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 3))


def plain(model: nn.Module) -> list[float]:
    tops, means = [], []
    for name, p in model.named_parameters():
        if p.requires_grad and "bias" not in name:
            g = torch.zeros_like(p) if p.grad is None else p.grad
            tops.append(g.double().abs().max())
            means.append(g.double().abs().mean())
    a, b = torch.stack(tops), torch.stack(means)
    return [float(v) for v in (a.max(), a.mean(), a.std(), b.mean(), b.std())]


def test_record_is_its_definition(model: nn.Sequential) -> None:
    model[:3](torch.randn(6, 5)).square().sum().backward()  # the last layer has no gradient
    model[0].weight.requires_grad_(False)
    assert model[3].weight.grad is None
    found = gradient_record(tracked(model))
    assert len(tracked(model)) == 3
    torch.testing.assert_close(found.tolist(), plain(model), rtol=1e-6, atol=0)
    for p in model.parameters():
        if p.grad is not None:
            p.grad *= 1024
    torch.testing.assert_close(gradient_record(tracked(model), scale=1024), found)


def test_no_gradient_anywhere_is_zero_and_nan_shows(model: nn.Sequential) -> None:
    assert gradient_record(tracked(model)).tolist() == [0.0] * 5
    model[0].weight.grad = torch.full_like(model[0].weight, math.nan)
    assert gradient_record(tracked(model)).isnan().all()


def test_single_tensor_has_no_spread() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.grad = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    top, mean_top, std_top, mean, std = gradient_record(tracked(layer)).tolist()
    assert (top, mean_top, mean) == (3.0, 3.0, 1.5)
    assert math.isnan(std_top)
    assert math.isnan(std)
    with pytest.raises(ValueError, match="nothing to record"):
        gradient_record([])


def test_half_precision_gradients_are_summed_in_float32() -> None:
    big = nn.Linear(400, 400, bias=False).to(torch.bfloat16)
    big.weight.grad = torch.full_like(big.weight, 1.0)
    assert gradient_record([*tracked(big), nn.Parameter(torch.ones(1))])[3].item() == 0.5  # mean of 1 and 0


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf8") as file:
        return list(csv.DictReader(file))


def test_file_survives_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "gradients.csv"
    log = GradientLog(path, every=2)
    for step in (1, 1, 2, 3, 3):  # two backward passes in a step
        log.append(step, torch.arange(5.0) + step / 3)
    assert [r["step"] for r in rows(path)] == ["1", "1", "2", "3"]  # the fifth waits
    log.flush()
    kept = rows(path)[:3]
    with path.open("a", encoding="utf8") as file:
        file.write("4,0.1,0.2")  # killed in the middle of a line
    again = GradientLog(path, step=2)
    assert rows(path) == kept
    again.append(3, torch.zeros(5))
    again.flush()
    assert [r["step"] for r in rows(path)] == ["1", "1", "2", "3"]
    assert tuple(rows(path)[0]) == ("step", *COLUMNS)
    assert float(rows(path)[0]["max_grad_all"]) == pytest.approx(1 / 3, abs=1e-8)
    GradientLog(path)
    assert len(rows(path)) == 4
    GradientLog(path, step=0)
    assert rows(path) == []


def test_record_of_a_model(tmp_path: Path, model: nn.Sequential) -> None:
    model(torch.randn(6, 5)).square().sum().backward()
    log = GradientLog(tmp_path / "g.csv")
    log.record(7, model)
    log.flush()
    (row,) = rows(tmp_path / "g.csv")
    assert row.pop("step") == "7"
    torch.testing.assert_close([float(v) for v in row.values()], plain(model), rtol=1e-6, atol=0)

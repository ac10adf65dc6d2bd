"""Adapters and inter-layer modules against numbers of the published code, in training mode too; parameters by a rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrim.core.tuner import Arrangement
from vitrim.tuning.adapter import Bottleneck
from vitrim.tuning.convpass import ConvBottleneck
from vitrim.tuning.ila import InterLayer

GRID = Arrangement(1, (4, 4))
DEFAULTS: dict[str, Any] = {
    "same": False, "norms": ("bn", "bn", "bn"), "multiplier": 1, "dilation": 1, "apart": True, "residual": "depthwise",
    "start": "sum", "drop": 0.0, "official": True,
}  # fmt: skip
ORDER = ("down", "up", "norm1.norm", "norm3.norm", "token", "skip", "conv", "norm2.norm", "mix")


def wave(shape: tuple[int, ...], amplitude: float, phase: float) -> Tensor:
    """The filling rule of the records."""
    count = int(torch.tensor(shape).prod())
    j = torch.arange(count, dtype=torch.float64)
    return (amplitude * torch.sin(1.7 * j + phase)).reshape(shape)


def filled(module: nn.Module, order: tuple[str, ...]) -> nn.Module:
    """Every parameter by the rule, in the given order of modules, weight before bias."""
    module = module.double()
    i = 0
    with torch.no_grad():
        for name in order:
            try:
                part = module.get_submodule(name)
            except AttributeError:
                continue
            for kind in ("weight", "bias"):
                tensor = getattr(part, kind, None)
                if isinstance(tensor, Tensor):
                    tensor.copy_(wave(tuple(tensor.shape), 0.2, 0.3 * i + 0.1))
                    i += 1
    return module


def check(y: Tensor, first: list[float], total: float, squares: float) -> None:
    flat = y.detach().flatten()
    torch.testing.assert_close(flat[:4], torch.tensor(first, dtype=torch.float64), atol=1e-8, rtol=0)
    assert float(flat.sum()) == pytest.approx(total, abs=1e-7)
    assert float(flat.square().sum()) == pytest.approx(squares, abs=1e-7)


INTER_LAYER = [
    ("shrinking", {}, False, [0.17303787, 1.10589115, -0.40061420, -0.91232173], 3.74444262, 6.34417803),
    ("shrinking, batch statistics", {}, True, [0.17766902, 1.13084337, -0.36185856, -0.86988584], 3.84670050, 6.37232586),
    ("padded", {"same": True, "residual": "identity"}, False, [0.17303787, 1.10589115, -0.40061420, -0.91232173], 12.89577462,
     105.14307552),
    ("padded, batch statistics", {"same": True, "residual": "identity"}, True, [0.17965918, 1.15750195, -0.31749490, -0.81940513],
     13.26258858, 105.20922555),
    ("layer norms, two channels per channel", {"norms": ("ln", "ln", "ln"), "multiplier": 2}, False,
     [0.17958985, 1.12024515, -0.38220752, -0.89467030], 3.55811245, 6.34426402),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "training", "first", "total", "squares"), INTER_LAYER, ids=[case[0] for case in INTER_LAYER]
)
def test_inter_layer(
    name: str, settings: dict[str, Any], training: bool, first: list[float], total: float, squares: float
) -> None:
    module = filled(InterLayer(6, 4, 3, **{**DEFAULTS, **settings}), ORDER).train(training)
    check(module(wave((2, 17, 6), 1.0, 0.0), GRID), first, total, squares)


def test_inter_layer_without_a_class_token() -> None:
    module = filled(InterLayer(6, 4, 3, **{**DEFAULTS, "apart": False}), ORDER).eval()
    x = wave((2, 17, 6), 1.0, 0.0)[:, :16]
    check(module(x, Arrangement(0, (4, 4))), [0.24193237, 0.14136197, -0.23045088, 0.02519451], 3.08763260, 1.11331169)


def test_inter_layer_dense_and_pooled() -> None:
    settings = {"same": True, "norms": (None, None, None), "multiplier": 0, "apart": False, "residual": "pool"}
    module = filled(InterLayer(6, 4, 3, **{**DEFAULTS, **settings}), ("down", "up", "conv")).eval()
    check(module(wave((2, 17, 6), 1.0, 0.0), GRID), [0.20635898, 1.12856708, -0.39450652, -0.92437767], 11.83515409, 9.31674831)


def test_adapter() -> None:
    module = filled(Bottleneck(6, 4), ("down", "up"))
    y = module(wave((2, 17, 6), 1.0, 0.0), GRID)
    check(y, [0.21583201, 0.18869581, -0.05838010, 0.08976483], 7.47777537, 5.07895398)


def test_convpass() -> None:
    module = filled(ConvBottleneck(6, 4, 3), ("down", "up", "conv"))
    y = module(wave((2, 17, 6), 1.0, 0.0), GRID)
    check(y, [0.20635898, 0.13690227, -0.13896542, 0.00143701], 11.96469594, 4.14985993)

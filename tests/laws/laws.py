"""What the law tests share: the matrix of families and methods, and one traced run of each pair."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES, make, run
from torch import Tensor, nn

import vitrim
from vitrim.core.reduction import Reduction
from vitrim.core.trace import Trace

METHODS = vitrim.list_methods()
SCHEDULE = "keep(rate=0.7, at=[1, 2])"

# By default every method meets these families and every family these methods; `-m heavy` runs the rest of the matrix.
SOME_FAMILIES = ("timm_vit", "timm_dinov3", "timm_siglip")
SOME_METHODS = ("topk", "ats", "tome", "sinkhorn")


def _pair(family: str, method: str) -> Any:
    common = family in SOME_FAMILIES or method in SOME_METHODS
    return pytest.param(family, method, id=f"{family}-{method}", marks=() if common else pytest.mark.heavy)


def pairs(families: list[str], methods: list[str] | None = None) -> Any:
    """Parametrise over families and methods."""
    found = [_pair(f, m) for f in families for m in methods or METHODS]
    return pytest.mark.parametrize(("family", "method"), found)


every_pair = pairs(list(FAMILIES))
every_method = pytest.mark.parametrize("method", METHODS)
every_family = pytest.mark.parametrize("family", list(FAMILIES))


def reduced_model(family: str, method: str, schedule: str = SCHEDULE) -> nn.Module:
    """A fresh model of the family at work with the method; learned parameters are the same each time."""
    model = make(family)
    torch.manual_seed(0)
    vitrim.reduce(model, method, schedule)
    return model


@dataclass(frozen=True)
class Run:
    """One forward pass: the output, the trace, and the length of the sequence that left each block."""

    reduction: Reduction
    output: Tensor
    trace: Trace
    lengths: list[int]


@cache
def traced(family: str, method: str) -> Run:
    """A shared run of the pair without gradients; read only."""
    model = reduced_model(family, method)
    reduction: Any = model.reduction
    lengths: list[int] = []

    def note(_module: nn.Module, _inputs: Any, out: Any) -> None:
        lengths.append((out[0] if isinstance(out, tuple) else out).shape[1])

    handles = [b.register_forward_hook(note) for b in reduction.backbone.blocks(model)]
    with torch.no_grad():
        output = run(model)
    for handle in handles:
        handle.remove()
    return Run(reduction, output, reduction.trace, lengths)
